"""The terms of the loss, each alone, against NumPy over the transitions that are valid."""

import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm.ppo import loss

SHAPE = (5, 7)
rng = np.random.default_rng(0)
LOG_RATIOS, ADVANTAGES, VALUES, OLD_VALUES, RETURNS = rng.normal(0, 0.5, (5, *SHAPE)).astype(np.float32)
VALID = (rng.random(SHAPE) < 0.7).astype(np.float32)
HAPPENED = VALID == 1
RATIOS = np.exp(LOG_RATIOS)[HAPPENED]


def test_normalized_advantages():
    returns = 50 * ADVANTAGES
    got = loss.normalized_advantages(ADVANTAGES, returns, VALID).numpy()[HAPPENED]
    assert got.mean() == pytest.approx(0, abs=1e-6)
    assert got.std() == pytest.approx(1, abs=1e-5)


def test_the_errors_of_a_critic_that_predicts_all_returns_are_not_scaled_up():
    returns = 5000 * ADVANTAGES
    got = loss.normalized_advantages(ADVANTAGES, returns, VALID).numpy()[HAPPENED]
    assert got.mean() == pytest.approx(0, abs=1e-6)
    assert got.std() == pytest.approx(1 / 50, rel=1e-4)


@pytest.mark.parametrize("clip", [0.1, 0.3])
def test_clipped_policy_loss(clip):
    advantages = ADVANTAGES[HAPPENED]
    surrogate = np.minimum(RATIOS * advantages, np.clip(RATIOS, 1 - clip, 1 + clip) * advantages)
    assert float(loss.clipped_policy_loss(LOG_RATIOS, ADVANTAGES, VALID, clip)) == pytest.approx(
        -surrogate.mean(), rel=1e-5
    )


def test_a_ratio_beyond_the_range_has_no_gradient_where_that_would_increase_the_objective():
    log_ratios = tf.Variable([[0.5, 0.5, -0.5, -0.5]])
    with tf.GradientTape() as tape:
        value = loss.clipped_policy_loss(log_ratios, tf.constant([[1.0, -1.0, 1.0, -1.0]]), tf.ones([1, 4]), 0.2)
    np.testing.assert_array_equal(tape.gradient(value, log_ratios)[0] != 0, [False, True, True, False])


def test_value_losses():
    errors = (VALUES - RETURNS)[HAPPENED] ** 2
    assert float(loss.value_loss(VALUES, RETURNS, VALID)) == pytest.approx(errors.mean() / 2, rel=1e-5)
    moved = OLD_VALUES + np.clip(VALUES - OLD_VALUES, -0.2, 0.2)
    larger = np.maximum(errors, (moved - RETURNS)[HAPPENED] ** 2)
    got = loss.clipped_value_loss(VALUES, OLD_VALUES, RETURNS, VALID, 0.2)
    assert float(got) == pytest.approx(larger.mean() / 2, rel=1e-5)


def test_what_is_reported():
    assert float(loss.entropy_loss(VALUES, VALID)) == pytest.approx(-VALUES[HAPPENED].mean(), rel=1e-4)
    expected = (RATIOS - 1 - np.log(RATIOS)).mean()
    assert float(loss.approximate_kl(LOG_RATIOS, VALID)) == pytest.approx(expected, rel=1e-4)
    assert float(loss.clip_fraction(LOG_RATIOS, VALID, 0.2)) == pytest.approx((abs(RATIOS - 1) > 0.2).mean())


def test_nothing_valid_is_0():
    assert loss.value_loss(VALUES, RETURNS, np.zeros_like(VALID)) == 0


@pytest.mark.parametrize("wrong", [SHAPE[::-1], (5,), (5, 7, 1)])
def test_other_shapes_are_refused_with_their_names(wrong):
    """Broadcasting would make a plausible number of them."""
    other = np.zeros(wrong, np.float32)
    with pytest.raises(ValueError, match=r"expected tensors of the same shape, got .*returns"):
        loss.value_loss(VALUES, other, VALID)
    with pytest.raises(ValueError, match=r"advantages"):
        loss.clipped_policy_loss(LOG_RATIOS, other, VALID, 0.2)
    with pytest.raises(ValueError, match=r"valid"):
        loss.entropy_loss(VALUES, other)
