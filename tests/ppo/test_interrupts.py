"""Ctrl-C at any moment of `learn`: the trainer can continue correctly."""

import os
import signal
import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import PPO, UserError
from rl_lnlstm.interrupts import interrupts_deferred

# Workers then need not import this module, and TensorFlow with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SMALL = {
    **{"num_envs": 3, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "units": 4, "jit_compile": False},
    **{"shared_lstm": True, "head_layers": (), "encoder_layers": (4,)},
    **{"seed": 0, "normalize_rewards": True, "normalize_observations": True},
}


class Ten(gym.Env):
    """Its episodes have ten steps and earn ten; step number `interrupted_at` is interrupted."""

    observation_space, action_space = gym.spaces.Box(0, 10, (1,), np.float32), gym.spaces.Discrete(2)
    steps, interrupted_at = 0, -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        Ten.steps += 1
        self.t += 1
        if Ten.steps == Ten.interrupted_at:
            os.kill(os.getpid(), signal.SIGINT)
        return np.full(1, self.t, np.float32), 1.0, self.t == 10, False, {}


@pytest.fixture(autouse=True)
def _python_decides_what_ctrl_c_does():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    Ten.steps, Ten.interrupted_at = 0, -1
    yield
    signal.signal(signal.SIGINT, before)


def lengths_of(ppo, frames=90):
    lengths = []
    ppo.learn(frames, lambda metrics: lengths.append(metrics["rollout/ep_len_mean"]))
    return lengths


def test_interrupted_while_acting(tmp_path):
    """At whichever step of whichever environment: the episodes that are counted are whole, before and after."""
    ppo = PPO("auto", Ten, **SMALL)
    for at in (1, 2, 3, 17, 29, 40, 47, 48, 49, 63, 95):
        Ten.steps, Ten.interrupted_at = 0, at
        with pytest.raises(KeyboardInterrupt):
            ppo.learn(10**6)
        assert not ppo.between_iterations
        frames = ppo.num_timesteps
        assert set(lengths_of(ppo)) == {10}
        assert ppo.num_timesteps >= frames + 90

    Ten.steps, Ten.interrupted_at = 0, 70
    with pytest.raises(KeyboardInterrupt):
        ppo.learn(10**6)
    ppo.save_checkpoint(tmp_path / "checkpoint")
    resumed = PPO("auto", Ten, **SMALL)
    resumed.load_checkpoint(tmp_path / "checkpoint")
    assert (resumed.iteration, resumed.num_timesteps) == (ppo.iteration, ppo.num_timesteps)
    assert lengths_of(resumed) == lengths_of(ppo)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_interrupted_by_a_signal_at_any_time(vectorization):
    with PPO("auto", Ten, **SMALL, vectorization=vectorization) as ppo:
        ppo.learn(50)
        for seconds in (0.03, 0.05, 0.08, 0.11):
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):  # the timer starts inside, because a slow machine may take as long
                signal.setitimer(signal.ITIMER_REAL, seconds), ppo.learn(10**7)
            assert set(lengths_of(ppo)) == {10}


@pytest.mark.parametrize("method", ["update_statistics", "evaluate_actions"])
def test_an_update_is_done_whole(method, monkeypatch):
    """Weights, statistics and counters are those of one iteration, and the interrupt comes after it."""
    ppo, alone = PPO("auto", Ten, **SMALL), PPO("auto", Ten, **SMALL)
    original = getattr(ppo.policy, method)

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(ppo.policy, method, interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        ppo.learn(10**6)
    alone.learn(1)
    assert (ppo.iteration, ppo.num_timesteps) == (alone.iteration, alone.num_timesteps) == (1, 45)
    for one, other in zip(ppo.policy.get_weights(), alone.policy.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_interrupted_in_a_callback(tmp_path):
    ppo = PPO("auto", Ten, **SMALL)

    def interrupt(metrics):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ppo.learn(1000, interrupt)
    assert ppo.between_iterations
    ppo.save_checkpoint(tmp_path / "checkpoint")
    assert set(lengths_of(ppo)) == {10}


def test_there_is_no_checkpoint_while_an_iteration_is_under_way(tmp_path):
    ppo = PPO("auto", lambda: Ten(), **SMALL)
    original = ppo._collector.collect

    def run():
        with pytest.raises(UserError, match="iteration 1 has begun"):
            ppo.save_checkpoint(tmp_path / "checkpoint")
        return original()

    ppo._collector.collect = run
    ppo.learn(1)


def test_deferring_leaves_the_handlers_of_others_alone():
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append("theirs"))
    with interrupts_deferred():
        os.kill(os.getpid(), signal.SIGINT)
        assert heard == ["theirs"]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), interrupts_deferred():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        heard.append("to the end")
    assert heard[-1] == "to the end"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
