"""Checkpoints of a trainer from Python: what can be restored for each kind of environment, and what cannot."""

import sys
import threading

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.utils import EzPickle
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lnlstm import PPO, Callback, UserError
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.ppo.checkpoint_files import read, write
from rl_lnlstm.runs.checkpoints import Checkpoints, read_newest
from rl_lnlstm.seeding import derived_seed
from tests.failing_env import FailingEnv, Failure
from tests.policies.card_env import CardEnv

# Workers then need not import this module, and TensorFlow with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

TINY = {
    **{"num_envs": 3, "num_steps": 16, "num_minibatches": 1, "units": 4, "jit_compile": False, "seed": 3},
    **{"shared_lstm": True, "head_layers": ()},  # fewer weights, so that tracing takes less time
}
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}
FRAMES = 8 * 3 * 16
FAILURES = Failure("raise", 4, 2), Failure("nan", 12, 1), Failure("raise", 14, 1)  # of the three environments


def trainer(env="CartPole-v1", **config):
    return PPO("auto", env() if isinstance(env, type) else env, **{**TINY, **config})


def untimed(metrics):
    return {name: repr(value) for name, value in metrics.items() if name not in ("time/fps", "time/time_elapsed")}


def train(ppo, checkpoint=None, at=4):
    """The metrics of each iteration; a checkpoint is written after one of them."""
    seen = []

    def record(metrics):
        seen.append(untimed(metrics))
        if checkpoint is not None and ppo.iteration == at:
            ppo.save_checkpoint(checkpoint)

    ppo.learn(None if checkpoint is None else FRAMES, record)
    ppo.envs.close()
    return seen


class Truncated(gym.Wrapper):
    """Ends when its time is up, which a wrapper counts."""

    def __init__(self, env, limit):
        super().__init__(env)
        self.limit, self.count = limit, 0

    def step(self, action):
        self.count += 1
        *result, _, info = self.env.step(action)
        return *result, self.count % self.limit == 0, info


def in_mode(mode):
    return lambda: SyncVectorEnv([lambda i=i: Truncated(CartPoleEnv(), 4 + i) for i in range(3)], autoreset_mode=mode)


KINDS = {
    "sync": ("CartPoleNoVel-v1", {**NORMALIZED, "eval_interval": 3, "n_eval_episodes": 4}),
    "async": ("CartPole-v1", {"vectorization": "async"}),
    "CartPole's own vector environment": ("CartPole-v1", NORMALIZED),
    "vector_entry_point": ("TMaze-v0", {"vectorization": "vector_entry_point", "sequence_length": 4}),
    "continuous": ("Pendulum-v1", {"shared_lstm": False, "target_kl": 0.001}),
    "structured": ("Blackjack-v1", {"num_layers": 2, "previous_action": True, "previous_reward": True}),
    "held noise": ("Pendulum-v1", {"std": "gsde", "sde_sample_freq": 5}),
    "masks": (lambda: CardEnv("info"), {}),
    # One before the checkpoint and one after it, which has to find the counts and the seeds of the first
    "failures": (
        lambda: FailingEnv({derived_seed(TINY["seed"], "environments", i): fails for i, fails in enumerate(FAILURES)}),
        NORMALIZED,
    ),
    "a function": (lambda: Truncated(CartPoleEnv(), 5), NORMALIZED),
    "next step": (in_mode(AutoresetMode.NEXT_STEP), {}),
    "same step": (in_mode(AutoresetMode.SAME_STEP), {}),
    "disabled": (in_mode(AutoresetMode.DISABLED), {}),
}


@pytest.mark.many_cases
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error::rl_lnlstm.errors.RunWarning")
def test_resumed_trainer_equals_uninterrupted_one(kind, tmp_path):
    make, config = KINDS[kind]
    env = None if " step" in kind or kind == "disabled" else make
    alone = trainer(env or make(), **config)
    expected = train(alone, tmp_path / "checkpoint")
    resumed = trainer(env or make(), **config)
    resumed.load_checkpoint(tmp_path / "checkpoint")
    assert train(resumed) == expected[4:]
    if kind == "failures":
        counts = [float(metrics["rollout/env_failures"]) for metrics in expected]
        assert 0 < counts[3] < counts[-1], "or there was nothing to go on from"
    for one, other in zip(alone.policy.get_weights(), resumed.policy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert resumed.policy.generator.random() == alone.policy.generator.random()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_pending_resets_survive_a_checkpoint(vectorization, tmp_path):
    """In mode NEXT_STEP the vector environment knows of it, and in a worker nobody else."""
    # An episode is three steps and a reset: the 15th step ends one.
    config = {"num_envs": 2, "num_steps": 15, "vectorization": vectorization}
    alone = trainer(lambda: Truncated(CartPoleEnv(), 3), **config)
    expected = train(alone, tmp_path / "checkpoint", at=1)
    assert read(tmp_path / "checkpoint").tree["runner"]["stepper"]["_resetting"].all()
    resumed = trainer(lambda: Truncated(CartPoleEnv(), 3), **config)
    resumed.load_checkpoint(tmp_path / "checkpoint")
    assert train(resumed) == expected[1:]


class Locked(CartPoleEnv):
    """Holds what cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class MadeAnew(CartPoleEnv, EzPickle):
    """Pickles its arguments, and not its state."""

    def __init__(self):
        CartPoleEnv.__init__(self)
        EzPickle.__init__(self)


@pytest.mark.many_cases
@pytest.mark.parametrize("env", [Locked, MadeAnew])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_environments_that_cannot_be_pickled_begin_new_episodes_and_say_so(env, vectorization, tmp_path):
    ppo = PPO("MlpLnLstmPolicy", lambda: env(), **TINY, vectorization=vectorization)
    with pytest.warns(RunWarning, match="do not contain the environments for training.*(lock|EzPickle)"):
        train(ppo, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint" / "envs.pkl").exists()
    resumed = PPO("MlpLnLstmPolicy", lambda: env(), **TINY, vectorization=vectorization)
    with pytest.warns(RunWarning, match="the environments for training begin new episodes"):
        resumed.load_checkpoint(tmp_path / "checkpoint")
    assert len(train(resumed)) >= 4


def test_a_screen_that_is_open_is_left_out(tmp_path):
    ppo = trainer(lambda: gym.make("CartPole-v1", render_mode="rgb_array"))
    ppo.envs.call("render")
    ppo.save_checkpoint(tmp_path / "checkpoint")
    ppo.load_checkpoint(tmp_path / "checkpoint")
    assert ppo.envs.call("render")[0].shape == (400, 600, 3)
    ppo.envs.close()


class Refuses(Callback):
    def on_training_start(self, ppo):
        raise UserError("not now")


def test_the_call_of_learn_that_was_interrupted_is_finished(tmp_path):
    ppo = trainer()
    ppo.learn(FRAMES, lambda _: ppo.save_checkpoint(tmp_path / "checkpoint") or ppo.iteration < 2)
    resumed = trainer()
    resumed.load_checkpoint(tmp_path / "checkpoint")
    assert not resumed.finished
    before = resumed.num_timesteps
    with pytest.raises(UserError, match="not now"):
        resumed.learn(10**6, callback=Refuses())
    assert resumed.target == ppo.target
    resumed.learn()
    assert before < FRAMES <= resumed.num_timesteps < FRAMES + 3 * 16
    assert resumed.finished
    done = resumed.num_timesteps
    assert trained_on(resumed, tmp_path).learn().num_timesteps == done, "nothing is left to do"
    resumed.learn(10)
    assert resumed.num_timesteps >= done + 10, "and then each call trains so many more"


def trained_on(ppo, tmp_path):
    """Another trainer, which has loaded a checkpoint of this one."""
    ppo.save_checkpoint(tmp_path / "after")
    other = trainer(eval_interval=ppo.config.eval_interval, n_eval_episodes=ppo.config.n_eval_episodes)
    other.load_checkpoint(tmp_path / "after")
    return other


def test_a_checkpoint_after_learn_holds_the_weights_of_the_last_iteration(tmp_path):
    """And the best policy beside them, which is the one that is saved."""
    ppo, last = trainer(eval_interval=1, n_eval_episodes=2), []
    ppo.learn(FRAMES, lambda _: last.append(ppo.policy.get_weights()))
    resumed = trained_on(ppo, tmp_path)
    for one, other in zip(last[-1], resumed.policy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with ppo.best_weights(), resumed.best_weights():
        for one, other in zip(ppo.policy.get_weights(), resumed.policy.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_run_goes_on_with_another_number_of_environments(vectorization, tmp_path):
    options = {**NORMALIZED, "vectorization": vectorization, "eval_interval": 2, "n_eval_episodes": 5}
    ppo = trainer(**options)
    ppo.learn(FRAMES, lambda _: ppo.save_checkpoint(tmp_path / "checkpoint") or ppo.iteration < 3)
    for num_envs in (2, 4):
        with trainer(**options, num_envs=num_envs) as other:
            with pytest.warns(RunWarning, match=f"the checkpoint has 3 environments, this trainer {num_envs}"):
                other.load_checkpoint(tmp_path / "checkpoint")
            assert (other.iteration, other.num_timesteps) == (3, ppo.num_timesteps)
            for one, same in zip(ppo.policy.get_weights(), other.policy.get_weights(), strict=True):
                np.testing.assert_array_equal(one, same)
            assert other.learn().num_timesteps >= FRAMES
    ppo.close()


def test_discounted_sums_begin_afresh_with_new_episodes(tmp_path):
    ppo = trainer(**NORMALIZED)
    ppo.learn(1)
    assert ppo._discounted_sums.any()
    for saved, reason in ((False, "the checkpoint does not contain their snapshot"), (True, "env_snapshot=False")):
        ppo.save_checkpoint(tmp_path / "checkpoint", env_snapshot=saved)
        resumed = trainer(**NORMALIZED)
        with pytest.warns(RunWarning, match=f"begin new episodes: {reason}"):
            resumed.load_checkpoint(tmp_path / "checkpoint", env_snapshot=not saved)
        assert not resumed._discounted_sums.any()


def test_discounted_sums_begin_afresh_where_a_new_worker_began_episodes():
    ppo = trainer(**NORMALIZED)
    rollout = ppo._collector.collect()
    assert rollout.episode_starts[0].all()
    ppo._discounted_sums = np.full(3, 1e6)  # of the episodes of a worker that was lost
    ppo._scaled_rewards(rollout)
    assert ppo.policy.return_statistics.variance.numpy() < TINY["num_steps"] ** 2, "each step earns 1"


MISMATCHES = {
    "spaces": ({"env": "Pendulum-v1"}, "spaces"),
    "weights": ({"units": 5}, "weights"),
}


@pytest.mark.parametrize("what", MISMATCHES)
def test_a_checkpoint_of_another_trainer_is_refused(what, tmp_path):
    trainer().save_checkpoint(tmp_path / "checkpoint")
    config, named = MISMATCHES[what]
    other = trainer(**config)
    before = other.policy.get_weights()
    with pytest.raises(UserError, match=named):
        other.load_checkpoint(tmp_path / "checkpoint")
    assert all(np.array_equal(*pair) for pair in zip(before, other.policy.get_weights(), strict=True))


def test_in_the_middle_of_an_iteration_there_is_no_checkpoint(tmp_path):
    class Broken(CartPoleEnv):
        count = 0

        def step(self, action):
            Broken.count += 1
            if Broken.count == 70:
                raise ZeroDivisionError
            return super().step(action)

    ppo = trainer(lambda: Broken(), max_env_failures=0)
    with pytest.raises(Exception, match="ZeroDivisionError"):
        ppo.learn(FRAMES)
    with pytest.raises(UserError, match="iteration 2 has begun"):
        ppo.save_checkpoint(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_a_resumed_policy_knows_that_it_was_trained_with_masks(tmp_path):
    trainer(lambda: CardEnv("info")).learn(FRAMES).save_checkpoint(tmp_path / "checkpoint")
    resumed = trainer(lambda: CardEnv("info"))
    resumed.load_checkpoint(tmp_path / "checkpoint")
    assert resumed.policy.uses_action_masks


# ----------------------------------------------------------------------------------------------------- what is kept


def test_the_newest_are_kept(tmp_path):
    ppo = trainer()
    checkpoints = Checkpoints(tmp_path, ppo, lambda: None, interval=2, keep=2)
    (tmp_path / "best").mkdir()
    ppo.learn(FRAMES, checkpoints)
    assert ppo.iteration == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000008", "00000009", "best"], "also of the last one"
    assert read_newest(tmp_path).tree["iteration"] == 9


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = {
        "array": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.float64(0.1),
        "nothing": np.zeros((0, 2), bool),
        "structure": ({"camera": np.ones((1, 2), np.uint8)}, (1, [2.5, None, True])),
        "large": 2**127 + 1,
        "infinite": [float("inf"), 0.1 + 0.2],
    }
    write(tmp_path / "tree", tree, {})
    got = read(tmp_path / "tree").tree
    assert isinstance(got["structure"], tuple)
    assert got["structure"][1] == (1, [2.5, None, True])
    assert (got["large"], got["infinite"]) == (tree["large"], tree["infinite"])
    for name in ("array", "scalar", "nothing"):
        assert got[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(got[name], tree[name])
    np.testing.assert_array_equal(got["structure"][0]["camera"], 1)
    with pytest.raises(TypeError, match="object"):
        write(tmp_path / "tree", np.array([print]), {})
    assert read(tmp_path / "tree").tree["large"] == tree["large"], "what was there is not touched"
