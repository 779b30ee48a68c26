"""V-trace against its definition in the paper, in float64."""

import numpy as np
import pytest

from rl_lnlstm.ppo.advantages import generalized_advantages
from rl_lnlstm.ppo.rollout import cut_sequences
from rl_lnlstm.ppo.vtrace import Steps, cut_column, join_column, vtrace
from tests.ppo.tiny_ppo import iterate, tiny_ppo, untimed


def recorded(seed, num_steps=23, num_envs=5, end_probability=0.2):
    rng = np.random.default_rng(seed)
    ends = rng.random((num_steps, num_envs)) < end_probability
    rewards, values, following, log_probs = rng.normal(size=(4, num_steps, num_envs)).astype(np.float32)
    following[:-1] = np.where(ends[:-1], following[:-1], values[1:])
    terminations = ends & (rng.random(ends.shape) < 0.5)
    return Steps(rewards, log_probs, values, following, terminations, ends, np.ones_like(ends))


def current(seed, shape):
    """Random log-probabilities and values, as if the policy had changed since it acted."""
    return np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)


def targets_by_definition(steps, log_probs, values, gamma, gae_lambda):
    """v_s of equation 1, with rho_t = min(1, ratio) and c_i = lambda min(1, ratio)."""
    ratios = np.minimum(1.0, np.exp(log_probs.astype(np.float64) - steps.log_probs))
    targets = values.astype(np.float64)
    for s, env in np.ndindex(values.shape):
        ends = np.flatnonzero(steps.episode_ends[s:, env])
        last = s + ends[0] if len(ends) else len(values) - 1
        for t in range(s, last + 1):
            following = steps.next_values[t, env] if t == last else values[t + 1, env]
            following *= not steps.terminations[t, env]
            delta = ratios[t, env] * (steps.rewards[t, env] + gamma * following - values[t, env])
            targets[s, env] += gamma ** (t - s) * np.prod(gae_lambda * ratios[s:t, env]) * delta
    return targets


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.9)])
@pytest.mark.parametrize("end_probability", [0.0, 0.2, 1.0])
def test_equation_1_of_the_paper(gamma, gae_lambda, end_probability):
    steps = recorded(0, end_probability=end_probability)
    log_probs, values = current(1, steps.values.shape)
    advantages, returns = vtrace(steps, log_probs, values, gamma, gae_lambda)
    expected = targets_by_definition(steps, log_probs, values, gamma, gae_lambda)
    # The reward, and what follows by V-trace; with lambda, as in generalised advantage estimation.
    after = np.concatenate([expected[1:] - values[1:], np.zeros([1, 5])])
    following = np.concatenate([values[1:], steps.next_values[-1:]]) + gae_lambda * after
    following = np.where(steps.episode_ends, steps.next_values, following)
    following = np.where(steps.terminations, 0, following)
    np.testing.assert_allclose(advantages, steps.rewards + gamma * following - values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(returns, steps.rewards + gamma * following, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("more_probable", [0.0, 2.0])
def test_actions_that_are_as_probable_or_more_have_generalised_advantages(more_probable):
    steps = recorded(2)
    advantages, _ = vtrace(steps, steps.log_probs + np.float32(more_probable), steps.values, 0.99, 0.95)
    columns = steps.rewards, steps.values, steps.next_values, steps.terminations, steps.episode_ends
    np.testing.assert_allclose(advantages, generalized_advantages(*columns, 0.99, 0.95), rtol=1e-4, atol=1e-5)


def test_what_followed_an_action_that_is_never_taken_now_tells_nothing_about_earlier_ones():
    steps = recorded(3, end_probability=0.0)
    log_probs = steps.log_probs.copy()
    log_probs[10] = -np.inf
    before, returns = vtrace(steps, log_probs, steps.values, 0.99, 0.95)
    changed = steps._replace(rewards=np.where(np.arange(23)[:, None] >= 10, 1e6, steps.rewards).astype(np.float32))
    after, returns_after = vtrace(changed, log_probs, steps.values, 0.99, 0.95)
    np.testing.assert_array_equal(after[:10], before[:10])
    assert (after[10:] != before[10:]).numpy().all()  # the action itself may become probable again
    np.testing.assert_array_equal(returns_after[:10], returns[:10])


def test_steps_that_are_not_valid_keep_what_was_recorded():
    steps = recorded(4)
    steps.valid[1:][steps.episode_ends[:-1]] = False  # resets, after episodes' ends
    log_probs, values = current(5, steps.values.shape)
    expected = vtrace(steps, log_probs, values, 0.99, 0.95)
    log_probs[~steps.valid] = values[~steps.valid] = np.nan
    for got, wanted in zip(vtrace(steps, log_probs, values, 0.99, 0.95), expected, strict=True):
        np.testing.assert_array_equal(got[steps.valid], wanted[steps.valid])
        assert np.isfinite(got).all()


@pytest.mark.parametrize("length", [4, 12])
def test_sequences_are_joined_as_they_were_cut(length, intercept):
    pairs = []
    intercept(lambda rollout, sequences: pairs.append((rollout, sequences)))
    iterate(tiny_ppo(num_envs=3, sequence_length=length), 1)
    rollout, sequences = pairs[0]
    np.testing.assert_array_equal(join_column(sequences.values, 3), rollout.values)
    np.testing.assert_array_equal(cut_column(rollout.values, length), sequences.values)
    again = cut_sequences(rollout, rollout.values, rollout.values, length)
    np.testing.assert_array_equal(cut_column(rollout.values, length), again.advantages)


def test_the_first_epoch_is_that_of_ppo():
    """Nothing is computed anew before it. The second epoch differs."""

    def metrics(epochs, vtrace):
        return untimed(iterate(tiny_ppo(update_epochs=epochs, vtrace=vtrace), 2))

    assert metrics(1, True) == metrics(1, False)
    assert metrics(2, True) != metrics(2, False)


def test_previous_rewards_and_several_layers():
    """The policy is run as the update runs it, with its memory of rewards."""
    options = {"previous_reward": True, "previous_action": True, "num_layers": 2, "vtrace": True, "update_epochs": 2}
    metrics = iterate(tiny_ppo(num_envs=2, **options), 2)
    assert all(np.isfinite(value) for name, value in metrics[-1].items() if name.startswith("train/"))
