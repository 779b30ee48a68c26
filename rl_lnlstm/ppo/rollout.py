"""The data of an iteration: a step, a rollout of many steps, and the sequences that a rollout is cut into."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.spaces import map_arrays


class Transition(NamedTuple):
    """One step of all environments. Arrays are `[num_envs, ...]`; stacked, `[num_steps, num_envs, ...]`."""

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

    def write_to(self, columns: Transition, t: int) -> None:
        """Writes the step into row `t` of stacked transitions."""
        for column, part in zip(columns, self, strict=True):
            if isinstance(part, np.ndarray):  # nearly all are; walking a structure takes longer
                column[t] = part
            else:
                map_arrays(lambda rows, value: rows.__setitem__(t, value), column, part)


class Rollout(NamedTuple):
    """What `num_envs` environments produced in `num_steps` steps; arrays are `[num_steps, num_envs, ...]`.

    Observations and actions are structures of arrays where their spaces are `Dict` or `Tuple`.

    Transitions that are not `valid` must be left out of losses, advantages and statistics. There are two kinds. In
    autoreset mode NEXT_STEP, the step after an episode's end only resets the environment. And if an environment fails,
    all steps of its aborted episode are invalid. The episode ends where it was aborted.
    """

    observations: Any
    actions: Any
    log_probs: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    episode_starts: np.ndarray  # bool: the observation is the first of an episode, and the state was reset before it
    valid: np.ndarray  # bool
    terminations: np.ndarray  # bool: the step led to a terminal state, or was aborted
    episode_ends: np.ndarray  # bool: terminated, truncated or aborted
    next_values: np.ndarray  # values of the states that the steps led to, in the same episode
    sequence_states: Any  # the policy's, where sequences start; each [sequences per environment, num_envs, width]
    episodes: list[Episode]  # the episodes that ended, in order
    action_masks: np.ndarray | None = None  # bool: the legal actions; None if the environments have no masks
    episode_steps: tuple[int, ...] = ()  # the step of the rollout in which each of the episodes ended


class Sequences(NamedTuple):
    """A rollout cut into sequences `[sequences, sequence_length, ...]`, with the state that each one starts from."""

    observations: Any
    actions: Any
    log_probs: Any
    values: Any
    advantages: Any
    returns: Any
    rewards: Any
    episode_starts: Any
    valid: Any
    state: Any  # the policy's state at the start of each sequence: arrays [sequences, width]
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
