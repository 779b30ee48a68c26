"""Actions in TensorFlow operations: as the environment takes them, and back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.exporting.signature import entry_name
from rl_lnlstm.policies.distributions import Composite, StateDependentGaussian
from rl_lnlstm.policies.heads import CompositeHead, GaussianHead

Tensor = Any


def sent(head: Any, actions: Any, name: str) -> dict[str, Tensor]:
    """Actions in the distribution's form, `[..., size]`, as elements of the action space, by the names of its leaves.

    The same as `RecurrentPolicy.clip_actions` of what `RecurrentPolicy.step` returns, but computed in float32 and not
    yet in the dtype of the space.
    """
    if isinstance(head, CompositeHead):
        entries = zip(head.keys, head.parts, actions, strict=True)
        return _merge_dicts(sent(part, own, entry_name(name, key)) for key, part, own in entries)
    space = head.space
    if isinstance(head, GaussianHead):
        low, high = _bounds(space)
        centre, half = (part.astype(np.float32).ravel() for part in (head.centre, head.half_range))
        scaled = centre + half * tf.clip_by_value(actions, -1.0, 1.0)
        actions = tf.where(head.rescaled.ravel(), scaled, actions) if head.rescaled.any() else actions
        actions = tf.clip_by_value(actions, low, high)
    elif not isinstance(space, gym.spaces.MultiBinary):
        actions += np.ravel(space.start).astype(np.int64) if space.shape else int(space.start)
    if space.shape:
        leading = tf.shape(actions)[:-1]
        known = actions.shape[:-1]
        actions = tf.reshape(actions, tf.concat([leading, space.shape], 0))
        actions.set_shape([*known, *space.shape])
    return {name: actions}


def _bounds(space: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The bounds in float32, `[size]`. They are rounded inwards, because actions outside the space would be refused."""
    low, high = space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()
    low = np.where(low < space.low.ravel(), np.nextafter(low, np.float32(np.inf)), low)
    return low, np.where(high > space.high.ravel(), np.nextafter(high, np.float32(-np.inf)), high)


def last_action(head: Any, actions: Any) -> Tensor:
    """The features of actions that were sent, for `previous_action`: the inverse of `sent`, then `head.features`.

    `actions` have the structure of the action space.
    """
    return head.features(_unsent(head, actions))


def _unsent(head: Any, actions: Any) -> Any:
    if isinstance(head, CompositeHead):
        return tuple(_unsent(part, actions[key]) for key, part in zip(head.keys, head.parts, strict=True))
    flat = head.to_distribution(actions)
    if isinstance(head, GaussianHead) and head.rescaled.any():
        centre, half = head.centre.ravel(), head.half_range.ravel()
        unit = (flat - centre.astype(np.float32)) / np.where(half > 0, half, 1).astype(np.float32)
        flat = tf.where(head.rescaled.ravel(), unit, flat)
    return flat


def parameters(distribution: Any, head: Any, suffix: str = "") -> dict[str, Tensor]:
    """The parameters of a distribution, by their names."""
    if isinstance(distribution, Composite):
        entries = zip(head.keys, distribution.parts, head.parts, strict=True)
        return _merge_dicts(parameters(own, part, entry_name(suffix, key)) for key, own, part in entries)
    if isinstance(head, GaussianHead):
        normal = distribution.marginal if isinstance(distribution, StateDependentGaussian) else distribution
        return {f"mean{suffix}": normal.mean, f"log_std{suffix}": tf.zeros_like(normal.mean) + normal.log_std}
    return {f"logits{suffix}": distribution.logits}


def _merge_dicts(parts: Any) -> dict[str, Tensor]:
    return {name: tensor for part in parts for name, tensor in part.items()}
