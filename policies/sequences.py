"""Recomputing what acting recorded for sequences: the body of `RecurrentPolicy.evaluate_actions`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.network import Outputs
from rl_lnlstm.spaces import flatten, map_leaves

ILLEGAL = -1e8  # log-probabilities of legal actions are larger


def evaluate_sequences(
    policy: Any,
    observations: Any,
    actions: Any,
    state: Any,
    episode_starts: Any,
    action_masks: Any = None,
    rewards: Any = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Log-probabilities, entropies and values, each `[batch, time]`; see `RecurrentPolicy.evaluate_actions`."""
    shape = _swapped(flatten(policy.observation_space, observations)[0]).shape[:2]
    given = {"episode_starts": episode_starts, "rewards": rewards, "actions": flatten(policy.action_space, actions)[0]}
    given = {name: _swapped(part) for name, part in given.items() if part is not None}
    for name, part in {**given, **({} if action_masks is None else {"action_masks": _swapped(action_masks)})}.items():
        if not shape.is_compatible_with(part.shape[:2]):
            expected, got = shape.as_list()[::-1], part.shape[:2].as_list()[::-1]
            raise UserError(f"{name} must have [batch, time] = {expected} as first axes, got {got}")
    if state is None:
        state = policy.initial_state(int(shape[1]))
    h, c, *first = state
    observations = map_leaves(lambda _, part: _swapped(part), policy.observation_space, observations)
    actions = map_leaves(lambda _, part: _swapped(part), policy.action_space, actions)
    actions = policy.action_head.to_distribution(actions)
    kept = policy.last_action_reward.sequence(first[0], actions, given.get("rewards")) if first else None
    starts = tf.cast(given["episode_starts"], tf.float32)
    masks = None if action_masks is None else tf.cast(_swapped(action_masks), tf.bool)
    outputs, _ = policy._forward_sequences(observations, h, c, starts, kept, masks)
    results = _log_probs(outputs, actions), outputs.distribution.entropy(), outputs.values
    return tuple(tf.transpose(result) for result in results)


def _log_probs(outputs: Outputs, actions: Any) -> Any:
    """Log-probabilities of actions. Outside of a graph, an illegal action raises an error."""
    if not tf.executing_eagerly():
        return outputs.distribution.log_prob(actions)
    try:
        log_probs = outputs.distribution.log_prob(actions)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"actions: one of them is not in the action space: {error.message}") from error
    illegal = np.argwhere(log_probs.numpy() < ILLEGAL)
    if len(illegal):
        t, row = map(int, illegal[0])
        raise UserError(f"actions[{row}, {t}] is illegal by its action mask: its probability is 0")
    return log_probs


def _swapped(sequence: Any) -> Any:
    """Converts a batch-major sequence to time-major."""
    sequence = tf.convert_to_tensor(sequence)
    if sequence.shape.rank is not None and sequence.shape.rank < 2:
        raise UserError(f"sequences must have shape [batch, time, ...], got {sequence.shape.as_list()}")
    return tf.transpose(sequence, [1, 0, *range(2, sequence.shape.rank)])
