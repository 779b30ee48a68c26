"""The data of an iteration: a step, the rollout of many, and the sequences that it is cut into."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.spaces import map_arrays


class Transition(NamedTuple):
    """One step of all environments. Arrays are `[num_envs, ...]`, and `[num_steps, num_envs, ...]` once stacked."""

    observations: Any
    episode_starts: np.ndarray
    action_masks: np.ndarray | None  # None if the environments have none
    actions: Any
    values: np.ndarray
    log_probs: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    valid: np.ndarray
    aborted: np.ndarray  # bool: the environment failed in this step
    has_final_value: np.ndarray  # bool: the episode was truncated, and no later step sees its final observation
    final_values: np.ndarray  # the value of that observation; 0 elsewhere


class Rollout(NamedTuple):
    """What `num_envs` environments produced in `num_steps` steps; arrays are `[num_steps, num_envs, ...]`.

    Observations and actions are structures of arrays where their spaces are `Dict` or `Tuple`.

    Transitions that are not `valid` must not enter losses, advantages or statistics. There are two kinds. In autoreset
    mode NEXT_STEP, the step after an episode's end only resets the environment. And if an environment failed, the steps
    of its aborted episode do not count; that episode ends where it was aborted.
    """

    observations: Any
    actions: Any
    log_probs: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    episode_starts: np.ndarray  # bool: the observation is an episode's first, the state was reset before it
    valid: np.ndarray  # bool
    terminations: np.ndarray  # bool: the step led to a terminal state, or was aborted
    episode_ends: np.ndarray  # bool: terminated, truncated or aborted
    next_values: np.ndarray  # of what the step led to, in the same episode, with the policy's state of that moment
    sequence_states: Any  # before every `sequence_length`-th step, each [sequences per environment, num_envs, width]
    episodes: list[Episode]  # those that ended, in order
    action_masks: np.ndarray | None = None  # bool: the legal actions; None if environments do not say


class Sequences(NamedTuple):
    """A rollout cut into sequences, `[sequences, sequence_length, ...]`, and the states they started from."""

    observations: Any
    actions: Any
    log_probs: Any
    values: Any
    advantages: Any
    returns: Any
    rewards: Any
    episode_starts: Any
    valid: Any
    state: Any  # the policy's, each [sequences, width]
    action_masks: Any  # None if the environments have none


def cut_sequences(rollout: Rollout, advantages: np.ndarray, returns: np.ndarray, length: int) -> Sequences:
    """Cuts a time-major rollout into batch-major sequences of `length` steps."""

    def cut(column: np.ndarray) -> np.ndarray:
        steps, envs, *rest = column.shape
        pieces = column.reshape(steps // length, length, envs, *rest).swapaxes(1, 2)
        return np.ascontiguousarray(pieces.reshape(-1, length, *rest))

    return Sequences(
        observations=map_arrays(cut, rollout.observations),
        actions=map_arrays(cut, rollout.actions),
        log_probs=cut(rollout.log_probs),
        values=cut(rollout.values),
        advantages=cut(advantages),
        returns=cut(returns.astype(np.float32)),
        rewards=cut(rollout.rewards.astype(np.float32)),
        episode_starts=cut(rollout.episode_starts),
        valid=cut(rollout.valid.astype(np.float32)),
        state=map_arrays(lambda part: part.reshape(-1, part.shape[-1]), rollout.sequence_states),
        action_masks=map_arrays(cut, rollout.action_masks),
    )
