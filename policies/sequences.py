"""Recomputing what acting recorded for sequences: the body of `RecurrentPolicy.evaluate_actions`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.envs.action_masks import checked_masks
from rl_lnlstm.envs.checks import checked_observation, checked_parts, wrong_values
from rl_lnlstm.envs.faults import Fault
from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.acting import check_state, in_space
from rl_lnlstm.policies.critic_entries import check_complete
from rl_lnlstm.policies.network import Outputs
from rl_lnlstm.spaces import flatten, map_leaves

ILLEGAL = -1e8  # log-probabilities of legal actions are larger


class Evaluated(NamedTuple):
    """Sequences that a policy ran through: log-probabilities, entropies and values are `[batch, time]`.

    Attributes:
        mode: the most probable actions, time-major, in the distribution's form.
        actions: the given actions, in the same form.
        state: the state after the last step, as `RecurrentPolicy.step` returns it. Its reward part is that of the last
            step.
    """

    log_probs: tf.Tensor
    entropies: tf.Tensor
    values: tf.Tensor
    mode: Any
    actions: Any
    state: tuple[Any, ...]


def evaluate_sequences(
    policy: Any,
    observations: Any,
    actions: Any,
    state: Any,
    episode_starts: Any,
    action_masks: Any = None,
    rewards: Any = None,
) -> Evaluated:
    """Runs a policy through recorded sequences; see `RecurrentPolicy.evaluate_actions` for the arguments."""
    check_complete(policy.critic_observation_space, observations)
    if tf.executing_eagerly():
        observations = in_space(policy.observation_space, observations)
    shape = swap_batch_and_time(flatten(policy.observation_space, observations)[0]).shape[:2]
    given = {"episode_starts": episode_starts, "rewards": rewards, "actions": flatten(policy.action_space, actions)[0]}
    given = {name: swap_batch_and_time(part) for name, part in given.items() if part is not None}
    swapped_masks = {} if action_masks is None else {"action_masks": swap_batch_and_time(action_masks)}
    for name, part in {**given, **swapped_masks}.items():
        if not shape.is_compatible_with(part.shape[:2]):
            expected, got = shape.as_list()[::-1], part.shape[:2].as_list()[::-1]
            raise UserError(f"{name} must have [batch, time] = {expected} as first axes, got {got}")
    if state is None:
        state = _initial_state(policy, shape[1], given["episode_starts"])
    check_state(policy, state, shape[1])
    h, c, *first = state
    _check_actions(policy.action_space, actions)
    observations = map_leaves(lambda _, part: swap_batch_and_time(part), policy.observation_space, observations)
    actions = map_leaves(lambda _, part: swap_batch_and_time(part), policy.action_space, actions)
    actions = policy.action_head.to_distribution(actions)
    before = policy.last_action_reward.sequence(first[0], actions, given.get("rewards")) if first else None
    starts = tf.cast(given["episode_starts"], tf.float32)
    masks = None if action_masks is None else swap_batch_and_time(_masks(policy.action_space, action_masks))
    outputs, after = policy._forward_sequences(observations, h, c, starts, before, masks)
    results = _log_probs(outputs, actions, masks is not None), outputs.distribution.entropy(), outputs.values
    log_probs, entropies, values = (tf.transpose(result) for result in results)
    last = []
    if first:
        of_last = tf.nest.map_structure(lambda part: part[-1], actions)
        last = [policy.last_action_reward.after(of_last, given["rewards"][-1] if "rewards" in given else None)]
    mode = outputs.distribution.mode()
    return Evaluated(log_probs, entropies, values, mode, actions, (*after, *last))


def _initial_state(policy: Any, batch: int | None, starts: tf.Tensor) -> Any:
    """The state before an episode. If a graph does not know the batch size, it is that of `starts`, `[time, batch]`."""
    if batch is not None:
        return policy.initial_state(batch)
    return tf.nest.map_structure(
        lambda part: tf.zeros([tf.shape(starts)[1], part.shape[1]]), tuple(policy.initial_state(1))
    )


def _log_probs(outputs: Outputs, actions: Any, masked: bool) -> Any:
    """Log-probabilities of actions. Outside of a graph, an action that its mask forbids raises an error."""
    if not tf.executing_eagerly():
        return outputs.distribution.log_prob(actions)
    try:
        log_probs = outputs.distribution.log_prob(actions)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"actions: one of them is not in the action space: {error.message}") from error
    illegal = np.argwhere(log_probs.numpy() < ILLEGAL)
    if masked and len(illegal):  # without masks, densities of Box actions can be as small
        t, row = map(int, illegal[0])
        raise UserError(f"actions[{row}, {t}] is illegal by its action mask: its probability is 0")
    return log_probs


def _check_actions(space: gym.Space, actions: Any) -> None:
    """Outside of a graph, raises `UserError` for actions that are not in the space; these have no log-probability."""
    if not tf.executing_eagerly():
        return
    actions = map_leaves(lambda _, part: np.asarray(part), space, actions)
    batch = flatten(space, actions)[0].shape[:2]
    try:
        actions = checked_observation(space, actions, batch, "actions")
    except Fault as fault:
        raise UserError(str(fault).removeprefix("returned ")) from fault
    for row, wrong in wrong_values(list(checked_parts(space)), actions).items():
        text = str(wrong).replace("returned ", "actions: got ").replace("in observation", f"in sequence {row}, at ")
        raise UserError(text)


def _masks(space: gym.Space, action_masks: Any) -> tf.Tensor:
    """Masks `[batch, time, size]` as bool."""
    masks = tf.convert_to_tensor(action_masks)
    if tf.executing_eagerly():
        rows = masks.shape[0] * masks.shape[1]
        checked = checked_masks(np.reshape(masks, (rows, *masks.shape[2:])), space, rows)
        return tf.reshape(checked, [*masks.shape[:2], checked.shape[-1]])
    if isinstance(space, gym.spaces.MultiBinary):  # they may have shape [batch, time, n, 2]
        masks = tf.reshape(masks, [*tf.unstack(tf.shape(masks)[:2]), 2 * math.prod(space.shape)])
    return tf.cast(masks, tf.bool)


def swap_batch_and_time(sequence: Any) -> Any:
    """Converts a batch-major sequence to time-major, and back."""
    sequence = tf.convert_to_tensor(sequence)
    if sequence.shape.rank is not None and sequence.shape.rank < 2:
        raise UserError(f"sequences must have shape [batch, time, ...], got {sequence.shape.as_list()}")
    return tf.transpose(sequence, [1, 0, *range(2, sequence.shape.rank)])
