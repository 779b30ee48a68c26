"""The last action and its reward as inputs of the LSTM."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rl_lnlstm import UserError
from rl_lnlstm.policies import (
    MlpLnLstmPolicy,
    RecurrentPolicy,
)
from rl_lnlstm.policies.last_action_reward import LastActionRewardState
from tests.policies.numpy_layers import run_lstm_layers
from tests.policies.reference import randomise, weights_of
from tests.policies.test_encoders import DISCRETE, VECTOR


def symlog(rewards):
    return np.sign(rewards) * np.log(1 + np.abs(rewards))


def test_what_the_lstm_sees_of_the_step_before():
    """One-hot, within bounds and symlog, in every order that a user meets them; zeros at an episode's start."""
    actions_space = spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-0.1, 0.2, (2,)), spaces.MultiBinary(2)])
    options = {"previous_action": True, "previous_reward": True, "units": 4, "head_layers": (), "log_std_init": 0.0}
    policy = randomise(RecurrentPolicy(VECTOR, actions_space, seed=0, **options))
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(2, 6, 3)).astype(np.float32)
    rewards = rng.normal(0, 20, (2, 6))
    masks = np.array([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]], np.float64)
    state, acted, seen, values = policy.initial_state(2), [], [], []
    assert isinstance(state, LastActionRewardState)
    first = state
    for t in range(6):
        seen.append(state.last_action_reward)
        actions, value, _, state = policy.step(observations[:, t], state, masks[:, t] == 0)
        acted.append(actions)
        values.append(value)
        state = policy.rewarded(state, rewards[:, t])
    assert not seen[0].any()
    for t in range(1, 6):
        number, box, bits = acted[t - 1]
        expected = [np.eye(3)[number - 1], np.clip(box, -1, 1), bits, rewards[:, t - 1 : t]]
        np.testing.assert_allclose(seen[t], np.concatenate(expected, -1), atol=1e-6)
    assert np.any(np.abs(np.stack([box for _, box, _ in acted])) > 1)  # clipping mattered

    last = np.stack(seen, 1).astype(np.float64)
    last[..., -1] = symlog(last[..., -1])
    zeros = tuple(np.zeros((2, 2, 4)))
    _, critic = run_lstm_layers(policy, observations, masks, zeros, last)
    weights = weights_of(policy)
    expected = np.concatenate([critic, observations], -1) @ weights["value_head/kernel"] + weights["value_head/bias"]
    np.testing.assert_allclose(np.stack(values, 1), expected[..., 0], atol=1e-5)
    sequences = tuple(np.stack(parts, 1) for parts in zip(*acted, strict=True))
    again = policy.evaluate_actions(observations, sequences, first, 1 - masks, rewards=rewards)[2]
    np.testing.assert_allclose(again, np.stack(values, 1), atol=1e-5)
    with pytest.raises(UserError, match=r"rewards: .*previous_reward"):
        policy.evaluate_actions(observations, sequences, first, 1 - masks)


def test_predict_remembers_what_it_did():
    """Rewards are 0 for `predict`, unless they are passed to `rewarded`."""
    options = {"previous_action": True, "previous_reward": True, "units": 4, "encoder_layers": (), "head_layers": ()}
    policy = randomise(MlpLnLstmPolicy(VECTOR, DISCRETE, seed=0, **options))
    observations = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    actions, state = policy.predict(observations, deterministic=True)
    assert isinstance(state, tuple)
    assert [part.shape for part in state] == [(3, 4), (3, 4), (3, 4)]
    np.testing.assert_array_equal(state[2], np.concatenate([np.eye(3)[actions], np.zeros((3, 1))], 1))
    told = policy.rewarded(state, np.array([1.0, 0.0, -3.0]))
    untold_h, told_h = (policy.predict(observations, given, np.zeros(3, bool))[1][0] for given in (state, told))
    np.testing.assert_array_equal((untold_h != told_h).any(1), [True, False, True])
    reset = [policy.predict(observations, given, np.ones(3, bool))[1][0] for given in (state, told, None)]
    np.testing.assert_array_equal(reset[0], reset[1])
    np.testing.assert_array_equal(reset[0], reset[2])
    with pytest.raises(UserError, match=r"state must be \(h, c, last_action_reward\)"):
        policy.predict(observations, state[:2])


@pytest.mark.peers
def test_stable_baselines3_evaluates_one_that_remembers():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    env = gym.make("CartPole-v1")
    for previous_reward in (False, True):
        options = {"previous_action": True, "previous_reward": previous_reward, "units": 4, "seed": 0}
        policy = MlpLnLstmPolicy(env.observation_space, env.action_space, **options)
        envs = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))] * 2)
        mean, _ = evaluate_policy(policy, envs, n_eval_episodes=3)
        assert mean > 0
