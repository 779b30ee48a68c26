"""The terms of PPO's loss: pure functions of tensors `[batch, time]`, float32.

Each term takes `valid`, `[batch, time]` of 0 and 1. It returns a scalar, the mean over the transitions where
`valid` is 1, or 0 if there are none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def mean_of_valid(values: Any, valid: Any) -> Any:
    """The mean of `values` where `valid` is 1."""
    check_shapes(values=values, valid=valid)
    weights = tf.math.divide_no_nan(valid, tf.reduce_sum(valid))
    return tf.reduce_sum(values * weights)


def normalized_advantages(advantages: Any, returns: Any, valid: Any) -> Any:
    """Shifts and scales advantages to mean 0 and standard deviation 1 over the valid transitions.

    The divisor is at least 1% of the standard deviation of the returns. Advantages that vary less than that, as they
    may after cloning, are only the critic's errors, and no reason to change the policy.
    """
    centred, std = _centred(advantages, valid)
    _, returns_std = _centred(returns, valid)
    return centred / (tf.maximum(std, 0.01 * returns_std) + 1e-8)


def _centred(values: Any, valid: Any) -> tuple[Any, Any]:
    """The values minus their mean, and their standard deviation."""
    centred = values - mean_of_valid(values, valid)
    return centred, tf.sqrt(mean_of_valid(centred**2, valid))


def clipped_policy_loss(log_ratios: Any, advantages: Any, valid: Any, clip_coef: Any) -> Any:
    """The negated clipped surrogate objective of Schulman et al. (2017), equation 7.

    Args:
        log_ratios: log pi(a|s) - log pi_old(a|s) for the actions that were taken.
        advantages: the advantages of these actions.
        valid: which transitions count.
        clip_coef: epsilon. The objective does not reward ratios below 1 - epsilon or above 1 + epsilon.
    """
    check_shapes(log_ratios=log_ratios, advantages=advantages, valid=valid)
    ratios = tf.exp(log_ratios)
    clipped = tf.clip_by_value(ratios, 1 - clip_coef, 1 + clip_coef)
    return -mean_of_valid(tf.minimum(ratios * advantages, clipped * advantages), valid)


def value_loss(values: Any, returns: Any, valid: Any) -> Any:
    """Half the mean squared error of the values, Schulman et al. (2017), equation 9."""
    check_shapes(values=values, returns=returns, valid=valid)
    return 0.5 * mean_of_valid((values - returns) ** 2, valid)


def clipped_value_loss(values: Any, old_values: Any, returns: Any, valid: Any, clip_coef: Any) -> Any:
    """`value_loss` with clipping, as in OpenAI baselines' PPO2.

    A value gains nothing by moving more than `clip_coef` towards its return.

    Args:
        values: predicted with the current weights.
        old_values: predicted when the actions were taken.
        returns: the targets.
        valid: which transitions count.
        clip_coef: the largest change of a value that still reduces the loss.
    """
    check_shapes(values=values, old_values=old_values, returns=returns, valid=valid)
    clipped = old_values + tf.clip_by_value(values - old_values, -clip_coef, clip_coef)
    errors = tf.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    return 0.5 * mean_of_valid(errors, valid)


def entropy_loss(entropies: Any, valid: Any) -> Any:
    """The negated mean entropy. Minimising it encourages exploration."""
    return -mean_of_valid(entropies, valid)


def approximate_kl(log_ratios: Any, valid: Any) -> Any:
    """Estimates KL(pi_old | pi) with low variance, as in Schulman (2020), "Approximating KL divergence"."""
    return mean_of_valid(tf.exp(log_ratios) - 1 - log_ratios, valid)


def clip_fraction(log_ratios: Any, valid: Any, clip_coef: Any) -> Any:
    """The fraction of ratios outside the clipping range."""
    return mean_of_valid(tf.cast(tf.abs(tf.exp(log_ratios) - 1) > clip_coef, tf.float32), valid)


def regularized(total: Any, penalties: Sequence[Any]) -> Any:
    """Adds the penalties of regularizers, which an encoder may have, to a loss."""
    for penalty in penalties:
        total += tf.cast(penalty, tf.float32)
    return total


def check_shapes(**tensors: Any) -> None:
    """Raises `ValueError` unless all tensors have the same shape, as far as shapes are known."""
    shapes = {name: tf.TensorShape(tf.convert_to_tensor(tensor).shape) for name, tensor in tensors.items()}
    first = next(iter(shapes.values()))
    if not all(shape.is_compatible_with(first) for shape in shapes.values()):
        described = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected tensors of the same shape, got {described}")
