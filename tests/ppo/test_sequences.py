"""Sequences are pieces of a rollout, and the update reproduces on them exactly what acting recorded."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import AutoresetMode

from rl_lnlstm.lstm.equations import State
from rl_lnlstm.ppo.rollout import Rollout, cut_sequences
from tests.policies import reference
from tests.policies.scripted_env import MODES, SCRIPTS, ScriptedEnv, scripted_envs
from tests.ppo.tiny_ppo import iterate, tiny_ppo

NEXT_STEP, SAME_STEP, DISABLED = MODES


@pytest.mark.parametrize(
    ("mode", "action_space", "config"),
    [
        (NEXT_STEP, gym.spaces.Discrete(3, start=2), {}),
        (NEXT_STEP, gym.spaces.Box(-0.5, 0.5, (2,), np.float32), {"sequence_length": 4, "shared_lstm": False}),
        (SAME_STEP, gym.spaces.Box(-1, 1, (1, 2), np.float32), {"shared_lstm": False}),
        (SAME_STEP, gym.spaces.Discrete(2, start=-1), {"sequence_length": 1}),
        (DISABLED, gym.spaces.Discrete(4), {"sequence_length": 6, "shared_lstm": False}),
        (DISABLED, gym.spaces.Box(-0.5, 0.5, (), np.float32), {"sequence_length": 3}),
    ],
    ids=lambda given: given.name if isinstance(given, AutoresetMode) else None,
)
def test_the_update_reproduces_acting(mode, action_space, config, intercept):
    """Before the first gradient step, log-probabilities and values equal the recorded ones, so ratios are 1.

    This also holds after updates of weights and observation statistics, which are large here.
    """
    ppo = tiny_ppo(
        scripted_envs(mode, action_space=action_space), normalize_observations=True, learning_rate=0.1, **config
    )
    reference.randomise(ppo.policy)
    seen = []

    def see(rollout, sequences):
        log_probs, _, values = ppo.policy.evaluate_actions(
            sequences.observations, sequences.actions, sequences.state, sequences.episode_starts
        )
        np.testing.assert_allclose(log_probs, sequences.log_probs, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(values, sequences.values, atol=1e-5, rtol=1e-5)
        seen.append((np.array(log_probs), ppo.policy.observation_statistics.mean.numpy()))

    intercept(see)
    for metrics in iterate(ppo, 3):
        assert abs(metrics["train/approx_kl"]) < 1e-9
        assert metrics["train/clip_fraction"] == 0
        assert metrics["train/policy_gradient_loss"] == pytest.approx(0, abs=1e-5)  # advantages are centred
    assert len(seen) == 3
    for earlier, later in itertools.pairwise(seen):
        assert all(np.abs(one - two).max() > 0.01 for one, two in zip(earlier, later, strict=True))


def numbered_rollout(num_steps, num_envs, length):
    """A rollout whose entries contain their step, `[..., 0]`, and environment, `[..., 1]`."""
    steps, envs = np.indices((num_steps, num_envs))
    number = (1000 * steps + envs).astype(np.float32)
    rng = np.random.default_rng(0)
    columns = {name: number + 0.1 * i for i, name in enumerate(Rollout._fields)}
    columns["observations"] = np.stack([steps, envs], -1).astype(np.float32)
    columns["actions"] = np.stack([steps, envs, steps], -1)
    for name in ("episode_starts", "valid", "terminations", "episode_ends"):
        columns[name] = rng.random((num_steps, num_envs)) < 0.4
    states = np.stack([steps, envs], -1)[::length].astype(np.float32)
    return Rollout(**{**columns, "sequence_states": State(states, states + 0.5), "episodes": []})


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 12])
def test_sequences_are_pieces_of_one_environments_steps(length):
    rollout = numbered_rollout(12, 5, length)
    advantages, returns = rollout.rewards + 0.5, rollout.rewards + 0.7
    sequences = cut_sequences(rollout, advantages, returns, length)
    expected_columns = {
        "observations": rollout.observations,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "values": rollout.values,
        "advantages": advantages,
        "returns": returns,
        "rewards": rollout.rewards,
        "episode_starts": rollout.episode_starts,
        "valid": rollout.valid,
        "action_masks": rollout.action_masks,
    }
    assert set(expected_columns) == set(sequences._fields) - {"state"}
    found = set()
    for index, piece in enumerate(sequences.observations):
        first, env = (int(number) for number in piece[0])
        assert first % length == 0
        found.add((first, env))
        for name, column in expected_columns.items():
            got = np.asarray(getattr(sequences, name))[index]
            expected = np.stack([column[t, env] for t in range(first, first + length)])
            np.testing.assert_allclose(got, expected, err_msg=name)
        np.testing.assert_array_equal(sequences.state.h[index], [first, env])
        np.testing.assert_array_equal(sequences.state.c[index], [first + 0.5, env + 0.5])
    assert len(sequences.observations) == len(found) == 12 // length * 5


class Ticker(ScriptedEnv):
    """Observations contain the number of the environment and of its observations so far."""

    ticks = -1

    def _observation(self, step, signal):
        self.ticks += 1
        return np.array([self.number, self.ticks, 0, 0], np.float32)


def test_every_epoch_takes_every_sequence_once_and_whole():
    makers = [lambda n=n, script=script: Ticker(script, number=n) for n, script in enumerate(SCRIPTS)]
    envs = gym.vector.SyncVectorEnv(makers)
    ppo = tiny_ppo(envs, sequence_length=3, num_minibatches=4, update_epochs=3, vtrace=False)
    evaluate, minibatches = ppo.policy.evaluate_actions, []

    def evaluate_and_see(observations, *rest):
        minibatches.append(np.array(observations))
        return evaluate(observations, *rest)

    ppo.policy.evaluate_actions = evaluate_and_see
    tf.config.run_functions_eagerly(True)
    try:
        iterate(ppo, 1)
    finally:
        tf.config.run_functions_eagerly(False)

    assert [minibatch.shape for minibatch in minibatches] == [(4, 3, 4)] * 12
    epochs = [np.concatenate(minibatches[first : first + 4])[..., :2] for first in (0, 4, 8)]
    for epoch in epochs:
        assert (epoch[:, :, 0] == epoch[:, :1, 0]).all()  # of one environment
        np.testing.assert_array_equal(np.diff(epoch[..., 1], axis=1), np.ones((16, 2)))  # steps in order
        assert {tuple(step) for step in epoch.reshape(-1, 2)} == {(n, t) for n in range(4) for t in range(12)}
    assert any((epoch != epochs[0]).any() for epoch in epochs[1:])  # shuffled anew
