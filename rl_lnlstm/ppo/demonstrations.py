"""Recorded episodes as demonstrations: checked, and cut into sequences of the same length for `pretrain`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.action_masks import checked_masks
from rl_lnlstm.envs.checks import checked_observation, checked_parts, wrong_values
from rl_lnlstm.envs.faults import Fault
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.padding import length_of
from rl_lnlstm.evaluation.record import EpisodeArrays, structured
from rl_lnlstm.spaces import map_arrays, map_leaves


class Demonstration(NamedTuple):
    """An episode of T steps, and one more step for the final observation, whose value may be needed.

    Attributes:
        observations: `[T + 1, *shape]`, structured as the observation space.
        actions: `[T + 1, *shape]`, as `RecurrentPolicy.step` returns them; the last one is repeated.
        rewards: `[T + 1]`, the last one 0.
        action_masks: `[T + 1, size]` bool, or None.
        terminated: whether the final observation is terminal, so that its value is 0.
    """

    observations: Any
    actions: Any
    rewards: np.ndarray
    action_masks: np.ndarray | None
    terminated: bool

    @property
    def length(self) -> int:
        """T, the number of steps."""
        return len(self.rewards) - 1


class Piece(NamedTuple):
    """The steps `start`, `start + 1`, ... of an episode."""

    episode: int
    start: int


class Batch(NamedTuple):
    """Pieces of episodes side by side, `[batch, time, ...]`; pieces that are shorter repeat their last step."""

    observations: Any
    actions: Any
    rewards: np.ndarray
    episode_starts: np.ndarray
    valid: np.ndarray  # float32, 1 where there is a step
    action_masks: np.ndarray | None


def demonstrations(policy: Any, episodes: Iterable[EpisodeArrays]) -> list[Demonstration]:
    """Checks episodes against the spaces of a policy.

    Args:
        policy: the policy that will learn from them.
        episodes: what `record_episodes` or `load_episodes` returned.

    Raises:
        UserError: there are none; an array is missing or has the wrong shape or dtype; an action is not in the action
            space; or an observation or a reward is not finite. The message names the number of the episode.
    """
    found = [_checked(policy, episode, f"episode {number}", number) for number, episode in enumerate(episodes)]
    if not found:
        raise UserError("there are no episodes to learn from")
    masked = [episode.action_masks is not None for episode in found]
    if any(masked) and not all(masked):
        raise UserError(f"episode {masked.index(False)} has no action_masks, but episode {masked.index(True)} has")
    return found


def pieces_of(demonstrations: Sequence[Demonstration], chosen: Iterable[int], length: int) -> list[Piece]:
    """Cuts the chosen episodes into pieces of `length` steps, each episode's last piece being shorter."""
    return [Piece(number, start) for number in chosen for start in range(0, demonstrations[number].length, length)]


def batch_of_pieces(demonstrations: Sequence[Demonstration], pieces: Sequence[Piece | None], length: int) -> Batch:
    """Puts pieces of at most `length` steps side by side.

    After an episode's last step, a piece has the final observation, if there is room. None stands for a piece without a
    step.
    """
    first = next(piece for piece in pieces if piece is not None)
    present = [piece or first for piece in pieces]
    rows = [
        np.minimum(np.arange(piece.start, piece.start + length), demonstrations[piece.episode].length)
        for piece in present
    ]
    episodes = [demonstrations[piece.episode] for piece in present]
    parts = [
        map_arrays(lambda array, own=own: array[own], (one.observations, one.actions, one.rewards, one.action_masks))
        for one, own in zip(episodes, rows, strict=True)
    ]
    lengths = [0 if piece is None else demonstrations[piece.episode].length for piece in pieces]
    steps = np.array([np.arange(piece.start, piece.start + length) for piece in present])
    observations, actions, rewards, masks = map_arrays(lambda *arrays: np.stack(arrays), *parts)
    valid = (steps < np.array(lengths)[:, np.newaxis]).astype(np.float32)
    return Batch(observations, actions, rewards, steps == 0, valid, masks)


def _checked(policy: Any, episode: EpisodeArrays, name: str, number: int) -> Demonstration:
    length = length_of(episode, number)
    space = policy.observation_space
    observations = _part(space, "observations", episode, name, (length,))
    final = _part(space, "final_observation", episode, name, ())
    actions = _part(policy.action_space, "actions", episode, name, (length,))
    rewards = np.asarray(episode["rewards"], np.float32)
    if rewards.shape != (length,) or not np.isfinite(rewards).all():
        raise UserError(f"{name}: rewards must be finite numbers of shape {[length]}")
    map_leaves(lambda leaf, part: _check_bounds(leaf, part, name), policy.action_space, actions)
    masks = episode.get("action_masks")
    if masks is not None:
        masks = checked_masks(masks, policy.action_space, length)
        masks = np.concatenate([masks, masks[-1:]])
    return Demonstration(
        observations=map_arrays(lambda array, last: np.concatenate([array, last[np.newaxis]]), observations, final),
        actions=map_arrays(lambda array: np.concatenate([array, array[-1:]]), policy.scale_actions(actions)),
        rewards=np.append(rewards, np.float32(0)),
        action_masks=masks,
        terminated=bool(episode["terminated"]),
    )


def _part(space: gym.Space, what: str, episode: EpisodeArrays, name: str, batch: tuple[int, ...]) -> Any:
    """The observations or actions of an episode, in the structure and dtypes of the space."""
    try:
        arrays = structured(what, space, episode)
    except KeyError as error:
        raise UserError(
            f"{name} has no {error.args[0]}, which the policy needs: it was made for {space}, and the episode has "
            f"{', '.join(sorted(key for key in episode if key.partition('/')[0] == what)) or 'no ' + what}"
        ) from error
    try:
        arrays = checked_observation(space, arrays, batch, what)
        single = batch == ()
        for step, fault in sorted(wrong_values(list(checked_parts(space)), arrays, single).items()):
            text = str(fault).replace("in observation", f"in {what}" + ("" if single else f" of step {step}"))
            raise Fault(text, lasting=True)
    except Fault as fault:
        raise UserError(f"{name}: {str(fault).replace('returned ', 'got ', 1)}") from fault
    return arrays


def _check_bounds(leaf: gym.Space, actions: np.ndarray, name: str) -> None:
    if isinstance(leaf, gym.spaces.Box):
        outside = (actions < leaf.low) | (actions > leaf.high)
        if outside.any():
            raise UserError(f"{name}: got action {actions[outside][0]}, which is outside of {leaf}")
