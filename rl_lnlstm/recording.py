"""Whole episodes as NumPy arrays, with the recurrent state beside what was seen and done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.files import replacing_file
from rl_lnlstm.stepping import Step

EpisodeArrays = dict[str, np.ndarray]
STATE = "h", "c", "feedback"  # what a policy's state is called, part by part


class Recorder:
    """Gathers the steps of several environments into episodes.

    Args:
        observation_space: of a single environment.
        action_space: of a single environment.
        num_envs: how many there are.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, num_envs: int) -> None:
        self._spaces = {"observations": observation_space, "actions": action_space}
        self._steps: list[list[dict[str, Any]]] = [[] for _ in range(num_envs)]

    def add(self, observations: Any, state: Sequence[np.ndarray] | None, starts: Any, actions: Any, step: Step) -> None:
        """What was acted on, the state before it, and what came of it; all `[num_envs, ...]`."""
        structures = {"observations": observations, "actions": actions}
        columns = [column for name, space in self._spaces.items() for column in _columns(name, space, structures[name])]
        columns.append(("rewards", step.rewards))
        for name, part in zip(STATE, state or (), strict=False):
            columns.append((name, np.where(np.asarray(starts)[:, np.newaxis], 0, part)))
        for index in np.flatnonzero(step.valid):
            self._steps[index].append({name: np.copy(values[index]) for name, values in columns})

    def take(self, index: int, step: Step) -> EpisodeArrays:
        """The episode of that environment, which `step` ended."""
        rows, self._steps[index] = self._steps[index], []
        state = [name for name in STATE if name in rows[-1] and name not in rows[0]]
        for name in state:  # before a policy's first step there is none yet: zeros
            rows[0][name] = np.zeros_like(rows[-1][name])
        arrays = {name: np.stack([row[name] for row in rows]) for name in rows[-1]}
        ends = {"terminated": step.terminations[index], "truncated": step.truncations[index]}
        return {**arrays, **{name: np.asarray(value) for name, value in ends.items()}}

    def drop(self, broken_off: np.ndarray) -> None:
        """Forgets the unfinished episodes of those environments, `[num_envs]` bool."""
        self._steps = [[] if dropped else steps for dropped, steps in zip(broken_off, self._steps, strict=True)]


def save_episodes(episodes: Sequence[EpisodeArrays], folder: Path) -> None:
    """Writes `episode-000.npz` and so on, for `numpy.load`; what is in the folder already stays.

    Raises:
        UserError: it cannot be written.
    """
    try:
        for number, arrays in enumerate(episodes):
            with replacing_file(folder / f"episode-{number:03d}.npz") as path:
                np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"episodes cannot be recorded in {folder}: {error}") from error


def _columns(name: str, space: gym.Space, structure: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(space, gym.spaces.Dict):
        for key, inner in space.spaces.items():
            yield from _columns(f"{name}/{key}", inner, structure[key])
    elif isinstance(space, gym.spaces.Tuple):
        for index, inner in enumerate(space.spaces):
            yield from _columns(f"{name}/{index}", inner, structure[index])
    else:
        yield name, structure
