"""How far back a policy looks: the gradient of its actions with respect to earlier observations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rl_lnlstm.evaluation.record import STATE, structured
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.policies.encoders import as_floats
from rl_lnlstm.policies.heads import ActionHead, CompositeHead, GaussianHead
from rl_lnlstm.policies.network import Seen
from rl_lnlstm.policies.normalization import normalize_each
from rl_lnlstm.spaces import flatten, leaves, map_leaves, width

MAX_ACTIONS = 32  # the gradients of at most so many actions of an episode are averaged
MAX_VALUES = 1 << 24  # numbers in the observations of windows that are processed at once


class _Windows(NamedTuple):
    """Pieces of an episode of equal length, each of which ends with an action."""

    steps: np.ndarray  # [length, windows]: the step of the episode; negative before its start
    actions: np.ndarray  # [windows]: the step of the action


def gradient_norms(
    policy: RecurrentPolicy, episode: Mapping[str, np.ndarray], max_lag: int, rng: np.random.Generator
) -> np.ndarray:
    """The norm of the gradient of an action's log-probability with respect to the observation k steps before.

    For the action a of each step (of long episodes, 32 steps drawn at random, with the last one), the gradient
    d log pi(a) / d x has one part for each earlier observation x. The norm of this part is averaged over the steps, for
    each distance k. This is a saliency map over time (Simonyan et al., 2014, "Deep inside convolutional networks").

    Instead of the continuous actions that were taken, others are drawn from the policy, because the gradient at the
    most probable action of a normal distribution is zero.

    x is the input of the encoder: observations are normalised, and categories are one-hot. If the encoder has no
    gradient, because it begins with an embedding, x is the output of the encoder.

    Args:
        policy: the policy.
        episode: the recorded episode, as from `record_episodes`, of T steps.
        max_lag: the largest k.
        rng: draws steps, and continuous actions.

    Returns:
        `[max_lag + 1]`, NaN for k >= T. The unit is nats per unit of the encoder's input.
    """
    length = len(episode["rewards"])
    lags = min(max_lag, length - 1)
    actions = np.arange(length)
    if length > MAX_ACTIONS:
        drawn = rng.choice(length - 1, MAX_ACTIONS - 1, replace=False)
        actions = np.sort(np.append(drawn, length - 1))
    values = (lags + 1) * sum(width(leaf) for leaf in leaves(policy.actor_observation_space))
    pieces = np.array_split(actions, -(-len(actions) * values // MAX_VALUES))
    norms = np.concatenate([_norms(policy, episode, _windows(piece, lags), rng) for piece in pieces if len(piece)], 1)
    exists = actions >= np.arange(lags + 1)[:, np.newaxis]
    result = np.full(max_lag + 1, np.nan)
    result[: lags + 1] = np.sum(norms, 1, where=exists) / exists.sum(1)
    return result


def _windows(actions: np.ndarray, lags: int) -> _Windows:
    return _Windows(actions + np.arange(-lags, 1)[:, np.newaxis], actions)


def _norms(
    policy: RecurrentPolicy, episode: Mapping[str, np.ndarray], windows: _Windows, rng: np.random.Generator
) -> np.ndarray:
    """The norms `[lags + 1, windows]`, for k = 0, 1, ..."""
    space, network, shape = policy.actor_observation_space, policy.network, windows.steps.shape
    steps = np.maximum(windows.steps, 0)  # before the episode's start: ignored, because the mask at its start is 0
    masks = (windows.steps != 0).astype(np.float32)
    h, c, *kept = (episode[name] for name in STATE if name in episode)
    last = policy.last_action_reward.inputs(tf.constant(kept[0][steps])) if kept else None
    legal = episode["action_masks"][windows.actions] if "action_masks" in episode else None
    noise = policy.action_head.noise(rng, len(windows.actions))
    taken = map_leaves(
        lambda _, part: tf.constant(part[windows.actions]),
        policy.action_space,
        structured("actions", policy.action_space, episode),
    )
    taken = policy.action_head.to_distribution(taken)

    observations = map_leaves(
        lambda leaf, part: tf.constant(part[steps.ravel()], leaf.dtype),
        space,
        structured("observations", space, episode),
    )
    inputs = map_leaves(as_floats, space, normalize_each(space, policy.observation_statistics, observations))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(flatten(space, inputs))
        encoded = network.encode_floats(inputs)
        tape.watch(encoded)
        features = tf.reshape(encoded, [*shape, encoded.shape[-1]])
        state = network.split(h[steps[0]], c[steps[0]], policy.is_asymmetric)
        seen, _ = network.unroll(features, state, tf.constant(masks), last)
        distribution = network.heads(Seen(*(None if part is None else part[-1] for part in seen)), legal).distribution
        drawn = tf.nest.map_structure(tf.stop_gradient, distribution.sample(noise))
        total = tf.reduce_sum(distribution.log_prob(_chosen(policy.action_head, taken, drawn)))
    *found, of_encoded = tape.gradient(total, [*flatten(space, inputs), encoded])
    policy._clear_losses()  # penalties of the encoder
    gradients = [of_encoded] if any(gradient is None for gradient in found) else found
    squares = sum(tf.reduce_sum(tf.reshape(part, [*shape, -1]) ** 2, -1) for part in gradients)
    return np.sqrt(np.asarray(squares))[::-1]


def _chosen(head: ActionHead, taken: Any, drawn: Any) -> Any:
    """The actions in the distribution's form: those that were taken, but of continuous ones those that were drawn."""
    if isinstance(head, CompositeHead):
        return tuple(_chosen(*parts) for parts in zip(head.parts, taken, drawn, strict=True))
    return drawn if isinstance(head, GaussianHead) else taken
