"""`predict` has the interface of Stable-Baselines3's."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import UserError
from rl_lnlstm.policies import MlpLnLstmPolicy
from tests.policies import reference
from tests.policies.small_policy import OBSERVATIONS, each_action_space, observations_of, policy_for


@each_action_space
def test_predict_gives_legal_actions_for_one_or_many(action_space):
    policy = policy_for(action_space=action_space, log_std_init=2.0)  # far beyond any bounds
    observations = observations_of(OBSERVATIONS, 50)
    for deterministic in (True, False):
        actions, state = policy.predict(observations, deterministic=deterministic)
        assert isinstance(actions, np.ndarray)
        assert isinstance(state, tuple)
        assert all(isinstance(part, np.ndarray) and part.shape == (50, 5) for part in state)
        assert actions.shape == (50, *action_space.shape)
        assert actions.dtype == action_space.dtype
        assert all(action_space.contains(action) for action in actions)
        action, state = policy.predict(observations[0], deterministic=deterministic)
        assert action_space.contains(action)
        assert np.shape(action) == action_space.shape
        assert all(part.shape == (1, 5) for part in state)


def test_predict_carries_and_resets_the_state(discrete):
    sequence = observations_of(OBSERVATIONS, 8)
    starts = np.array([False, False, True, False, False, True, True, False])
    states, state = [], None
    for observation, start in zip(sequence, starts, strict=True):
        _, state = discrete.predict(observation, state=state, episode_start=np.array([start]), deterministic=True)
        states.append(state[0][0])
    expected = reference.run(discrete, sequence[None], 1 - starts[None])
    np.testing.assert_allclose(states, expected.hs[0], atol=1e-5)
    # Without episode_start nothing is reset, and no state is the state before an episode.
    _, carried = discrete.predict(sequence[1], state=discrete.predict(sequence[0])[1])
    np.testing.assert_allclose(carried[0], expected.hs[:, 1], atol=1e-5)


def test_deterministic_actions_repeat_and_sampled_ones_do_not(discrete):
    observations = observations_of(OBSERVATIONS, 200)
    best, _ = discrete.predict(observations, deterministic=True)
    np.testing.assert_array_equal(best, discrete.predict(observations, deterministic=True)[0])
    sampled = discrete.predict(observations)[0]
    assert (sampled != discrete.predict(observations)[0]).any()
    assert (sampled != best).any()


@pytest.mark.parametrize(
    ("observation", "state", "message"),
    [
        (np.zeros(4), None, r"observation must have shape .*\[3\].* got \[4\]"),
        (np.zeros((2, 2, 3)), None, r"observation must have shape .* got \[2, 2, 3\]"),
        (np.zeros((2, 3)), (np.zeros((1, 5)), np.zeros((1, 5))), r"state must be .*\[2, 5\].*\[1, 5\]"),
    ],
)
def test_predict_names_what_does_not_fit(discrete, observation, state, message):
    with pytest.raises(UserError, match=message):
        discrete.predict(observation, state)


@pytest.mark.peers
def test_stable_baselines3_evaluates_it():
    """SB3's own `evaluate_policy`, against one environment and one step at a time."""
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    space = gym.make("CartPole-v1")
    policy = reference.randomise(policy_for(space.observation_space, space.action_space))
    envs = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))] * 3)
    envs.seed(11)
    returns, lengths = evaluate_policy(policy, envs, n_eval_episodes=6, return_episode_rewards=True)

    expected = []
    for number in range(3):
        env = gym.make("CartPole-v1")
        for episode in range(2):
            observation, _ = env.reset(seed=11 + number if episode == 0 else None)
            state, total, ended = None, 0.0, False
            while not ended:
                action, state = policy.predict(observation, state, deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, ended = total + reward, terminated or truncated
            expected.append(total)
    assert sorted(returns) == sorted(lengths) == sorted(expected)
    mean, std = evaluate_policy(policy, envs, n_eval_episodes=6, deterministic=False)
    assert mean > 0 <= std


@pytest.mark.parametrize("units", [128, 256])
def test_many_rows_act_as_each_of_them_alone(units):
    vectors = gym.spaces.Box(-1, 1, (6,))
    policy = reference.randomise(MlpLnLstmPolicy(vectors, gym.spaces.Discrete(3), units=units, seed=0), scale=0.1)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(700, 6)).astype(np.float32)
    state = tuple(rng.normal(size=(700, part.shape[1])).astype(np.float32) for part in policy.initial_state(1))
    starts = rng.random(700) < 0.3
    values, after = policy.value(observations, state, starts), policy.predict(observations, state, starts, True)[1]
    for rows in (slice(0, 1), slice(300, 302), slice(690, 700)):
        some = observations[rows], tuple(part[rows] for part in state), starts[rows]
        np.testing.assert_allclose(values[rows], policy.value(*some), rtol=1e-4, atol=1e-5)
        for part, alone in zip(after, policy.predict(*some, True)[1], strict=True):
            np.testing.assert_allclose(part[rows], alone, rtol=1e-4, atol=1e-5)
