"""Recorded episodes as one padded batch, for training and analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.record import STATE, EpisodeArrays, structured

REPEATED = "observations", "actions", "action_masks"  # padded with their last step; everything else with zeros
WHOLE = "final_observation", "terminated", "truncated", "seed"  # of a whole episode, not of its steps


class PaddedEpisodes(NamedTuple):
    """Episodes side by side, as long as the longest one.

    There are three kinds of masks in this package. `mask` here is Keras' padding mask: pass it to a layer as its
    argument `mask`, or multiply losses with it. The layer's `masks`, which reset the state, are `1 - episode_starts`.
    `action_masks` say which actions are legal.

    After the end of an episode, observations, actions and action masks repeat their last step, so that they stay in
    their spaces. Everything else is 0 there.

    Attributes:
        observations, actions: `[batch, time, *shape]`; for `Dict` and `Tuple` spaces, dicts and tuples of such arrays.
        rewards: `[batch, time]`.
        mask: `[batch, time]` bool, true where the episode has a step.
        episode_starts: `[batch, time]` bool, true at the first step.
        lengths: `[batch]`, number of steps.
        final_observation: `[batch, *shape]`, after the last action; structured as `observations`.
        terminated, truncated: `[batch]` bool, how the episode ended.
        seeds: `[batch]`; None if the episodes have no seeds of their own.
        action_masks: `[batch, time, size]` bool; None if there are none.
        values: `[batch, time]`; None for a policy of another package, or if entries of `critic_keys` were missing.
        state: the recurrent state before each step: `h` and `c` `[batch, time, state_size]`, and the last action and
            reward if the policy sees them. None for a policy of another package.
    """

    observations: Any
    actions: Any
    rewards: np.ndarray
    mask: np.ndarray
    episode_starts: np.ndarray
    lengths: np.ndarray
    final_observation: Any
    terminated: np.ndarray
    truncated: np.ndarray
    seeds: np.ndarray | None
    action_masks: np.ndarray | None
    values: np.ndarray | None
    state: tuple[np.ndarray, ...] | None


def pad_episodes(
    episodes: Sequence[EpisodeArrays],
    observation_space: gym.Space | None = None,
    action_space: gym.Space | None = None,
) -> PaddedEpisodes:
    """Pads episodes of different lengths to one batch.

    Args:
        episodes: what `record_episodes` or `load_episodes` returned.
        observation_space, action_space: the spaces of the episodes. They are needed only if a `Dict` space has keys
            with a "/" or keys that are numbers. Otherwise the structure follows from the names of the arrays:
            `observations/image` is an entry of a dict, `actions/0` an entry of a tuple.

    Raises:
        UserError: there are no episodes, or they do not have the same arrays.

    Example:

    `record_episodes` returns actions as they were sent; `scale_actions` converts them to the policy's units.

    >>> batch = pad_episodes(record_episodes(policy, "CartPole-v1", 10))
    >>> returns = batch.rewards.sum(axis=1)
    >>> log_probs, entropies, values = policy.evaluate_actions(
    ...     batch.observations, policy.scale_actions(batch.actions), None, batch.episode_starts
    ... )
    >>> loss = -tf.reduce_sum(tf.where(batch.mask, log_probs, 0.0)) / batch.mask.sum()
    """
    episodes = list(episodes)
    if not episodes:
        raise UserError("there are no episodes to pad")
    lengths = np.array([length_of(episode, number) for number, episode in enumerate(episodes)])
    columns: dict[str, np.ndarray] = {}
    for name in _names(episodes):
        parts = [episode[name] for episode in episodes]
        try:
            columns[name] = np.stack(
                parts if _kind(name) in WHOLE else [_padded(name, p, lengths.max()) for p in parts]
            )
        except ValueError as error:
            raise UserError(f"{name} differs in shape from episode to episode: {error}") from error
    times = np.arange(lengths.max())
    state = tuple(columns[name] for name in STATE if name in columns)
    return PaddedEpisodes(
        observations=_structured("observations", columns, observation_space),
        actions=_structured("actions", columns, action_space),
        rewards=columns["rewards"],
        mask=times < lengths[:, np.newaxis],
        episode_starts=np.broadcast_to(times == 0, (len(episodes), len(times))),
        lengths=lengths,
        final_observation=_structured("final_observation", columns, observation_space),
        terminated=columns["terminated"],
        truncated=columns["truncated"],
        seeds=columns.get("seed"),
        action_masks=columns.get("action_masks"),
        values=columns.get("values"),
        state=state or None,
    )


def length_of(episode: EpisodeArrays, number: int) -> int:
    """The number of steps of an episode, which all its arrays must have.

    Raises:
        UserError: they differ, or arrays are missing; the message names the number of the episode.
    """
    if missing := [name for name in ("rewards", "terminated", "truncated") if name not in episode]:
        raise UserError(f"episode {number} is not one of record_episodes: it has no {missing[0]}")
    if single := [name for name, array in episode.items() if _kind(name) not in WHOLE and not np.ndim(array)]:
        raise UserError(f"episode {number}: {single[0]} must be an array with a row for each step, got a single value")
    steps = {name: len(array) for name, array in episode.items() if _kind(name) not in WHOLE}
    if len(set(steps.values())) != 1 or not steps["rewards"]:
        raise UserError(f"episode {number}: its arrays must have the same number of steps, at least 1, got {steps}")
    return steps["rewards"]


def _names(episodes: Sequence[EpisodeArrays]) -> list[str]:
    first = episodes[0]
    for number, episode in enumerate(episodes):
        if differing := sorted(first.keys() ^ episode.keys()):
            raise UserError(f"episodes 0 and {number} do not have the same arrays: {', '.join(differing)}")
    return list(first)


def _kind(name: str) -> str:
    return name.partition("/")[0]


def _padded(name: str, array: np.ndarray, length: int) -> np.ndarray:
    widths = [(0, length - len(array)), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, widths, mode="edge" if _kind(name) in REPEATED else "constant")


def _structured(name: str, columns: Mapping[str, np.ndarray], space: gym.Space | None) -> Any:
    """The arrays of this name, in the structure of the space."""
    if space is not None:
        try:
            return structured(name, space, columns)
        except KeyError as error:
            raise UserError(f"the episodes have no {error.args[0]}, which the space has") from None
    if name in columns:
        return columns[name]
    keys = dict.fromkeys(entry[len(name) + 1 :].partition("/")[0] for entry in columns if entry.startswith(f"{name}/"))
    if not keys:
        raise UserError(f"the episodes have no {name}")
    parts = {key: _structured(f"{name}/{key}", columns, None) for key in keys}
    return tuple(parts.values()) if list(parts) == [str(index) for index in range(len(parts))] else parts
