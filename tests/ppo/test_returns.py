"""Advantages and returns against their definitions, episode by episode, in float64."""

import numpy as np
import pytest

from rl_lnlstm.ppo.advantages import discounted_sums, explained_variance, generalized_advantages


def random_rollout(seed, num_steps=23, num_envs=5, end_probability=0.25):
    rng = np.random.default_rng(seed)
    ends = rng.random((num_steps, num_envs)) < end_probability
    values, final_values = rng.normal(size=(2, *ends.shape)).astype(np.float32)
    following = np.concatenate([values[1:], final_values[:1]])
    return {
        "rewards": rng.normal(size=ends.shape),
        "values": values,
        "next_values": np.where(ends, final_values, following),
        "terminations": ends & (rng.random(ends.shape) < 0.5),
        "episode_ends": ends,
    }


def n_step_advantage(rollout, t, env, n, gamma):
    """r_t + gamma r_{t+1} + ... + gamma^n V(what step t + n - 1 led to) - V(s_t), nothing of other episodes."""
    last = t + n - 1
    rewards = sum(gamma**k * float(rollout["rewards"][t + k, env]) for k in range(n))
    bootstrap = 0.0 if rollout["terminations"][last, env] else float(rollout["next_values"][last, env])
    return rewards + gamma**n * bootstrap - float(rollout["values"][t, env])


def advantages_by_definition(rollout, gamma, gae_lambda):
    """Schulman et al. (2016), before equation 16: n-step advantages, weighted geometrically.

    The longest one that the episode (or the rollout) allows takes the weight of all that would be longer.
    """
    steps, envs = rollout["rewards"].shape
    advantages = np.zeros((steps, envs))
    for t, env in np.ndindex(steps, envs):
        ends = np.flatnonzero(rollout["episode_ends"][t:, env])
        longest = (ends[0] if len(ends) else steps - t - 1) + 1
        for n in range(1, longest + 1):
            weight = gae_lambda ** (n - 1) * (1 - gae_lambda if n < longest else 1)
            advantages[t, env] += weight * n_step_advantage(rollout, t, env, n, gamma)
    return advantages


@pytest.mark.parametrize("end_probability", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.5, 0.3), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
def test_advantages_are_the_weighted_n_step_advantages(gamma, gae_lambda, end_probability):
    rollout = random_rollout(1, end_probability=end_probability)
    advantages = generalized_advantages(**rollout, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages, advantages_by_definition(rollout, gamma, gae_lambda), rtol=1e-5, atol=1e-5)
    assert advantages.dtype == np.float32


def test_lambda_1_is_the_discounted_return_minus_the_value():
    rollout, gamma = random_rollout(2), 0.97
    advantages = generalized_advantages(**rollout, gamma=gamma, gae_lambda=1.0)
    for env in range(5):
        following = float(rollout["next_values"][-1, env])  # what the rollout broke off at
        for t in reversed(range(23)):
            if rollout["episode_ends"][t, env]:
                following = 0.0 if rollout["terminations"][t, env] else float(rollout["next_values"][t, env])
            following = rollout["rewards"][t, env] + gamma * following
            assert advantages[t, env] == pytest.approx(following - rollout["values"][t, env], abs=1e-5)


def test_lambda_0_is_the_temporal_difference():
    rollout = random_rollout(3)
    target = rollout["rewards"] + 0.9 * np.where(rollout["terminations"], 0, rollout["next_values"])
    advantages = generalized_advantages(**rollout, gamma=0.9, gae_lambda=0.0)
    np.testing.assert_allclose(advantages, target - rollout["values"], atol=1e-6)


def test_advantages_worked_by_hand():
    """gamma = lambda = 0.5: deltas 1 + 1 - 1, 2 - 2 (terminal), 3 + 4 - 1 (truncated), so 1 + 0, 0, 6."""
    columns = {
        "rewards": [1.0, 2.0, 3.0],
        "values": [1.0, 2.0, 1.0],
        "next_values": [2.0, 100.0, 8.0],
        "terminations": [False, True, False],
        "episode_ends": [False, True, True],
    }
    rollout = {name: np.array(column)[:, None] for name, column in columns.items()}
    advantages = generalized_advantages(**rollout, gamma=0.5, gae_lambda=0.5)
    np.testing.assert_array_equal(advantages[:, 0], [1.0, 0.0, 6.0])


def test_an_episode_knows_nothing_of_the_next():
    rollout = random_rollout(4)
    changed = {name: column.copy() for name, column in rollout.items()}
    first_end = rollout["episode_ends"].argmax(0)
    later = np.arange(23)[:, None] > first_end
    changed["rewards"][later] = 1e6
    changed["values"][later] = -1e6
    before, after = (generalized_advantages(**each, gamma=0.99, gae_lambda=0.95) for each in (rollout, changed))
    np.testing.assert_array_equal(before[~later], after[~later])
    assert (before[later] != after[later]).all()


def test_arguments_are_left_alone():
    rollout = random_rollout(5)
    copies = {name: column.copy() for name, column in rollout.items()}
    generalized_advantages(**rollout, gamma=0.99, gae_lambda=0.95)
    discounted_sums(rollout["rewards"], rollout["episode_ends"], np.ones(5), 0.9)
    for name, column in copies.items():
        np.testing.assert_array_equal(rollout[name], column)


def test_discounted_sums_run_within_episodes():
    rollout, gamma, start = random_rollout(6), 0.8, np.arange(5.0)
    sums, carried = discounted_sums(rollout["rewards"], rollout["episode_ends"], start, gamma)
    for env in range(5):
        first = 0
        for t in range(23):
            expected = sum(gamma ** (t - k) * rollout["rewards"][k, env] for k in range(first, t + 1))
            if first == 0:
                expected += gamma ** (t + 1) * start[env]
            assert sums[t, env] == pytest.approx(expected)
            if rollout["episode_ends"][t, env]:
                first = t + 1
        assert carried[env] == (0 if rollout["episode_ends"][-1, env] else sums[-1, env])
    assert sums.dtype == np.float64


def test_discounted_sums_carry_over_to_the_next_rollout():
    rollout = random_rollout(7)
    rewards, ends = rollout["rewards"], rollout["episode_ends"]
    whole, end = discounted_sums(rewards, ends, np.zeros(5), 0.9)
    first, carried = discounted_sums(rewards[:9], ends[:9], np.zeros(5), 0.9)
    second, carried = discounted_sums(rewards[9:], ends[9:], carried, 0.9)
    np.testing.assert_array_equal(whole, np.concatenate([first, second]))
    np.testing.assert_array_equal(end, carried)


def test_explained_variance():
    targets = np.array([[1.0, 2.0], [3.0, 6.0]])
    assert explained_variance(targets, targets) == 1
    assert explained_variance(targets + 5, targets) == 1  # a constant offset is no variance
    assert explained_variance(np.full((2, 2), 3.0), targets) == 0
    assert explained_variance(-targets, targets) == pytest.approx(-3)
    # var(targets) = 3.5; the errors 0, 0, 0, 4 have variance 3
    assert explained_variance(np.array([[1.0, 2.0], [3.0, 2.0]]), targets) == pytest.approx(1 - 3 / 3.5)
    assert np.isnan(explained_variance(targets, np.ones((2, 2))))
