"""Whole episodes as NumPy arrays: observations, actions, rewards and the recurrent state."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.files import replacing_file
from rl_lnlstm.spaces import flatten, map_leaves

EpisodeArrays = dict[str, np.ndarray]
STATE = "h", "c", "last_action_reward"  # names of the parts of a policy's state


class Outcome(NamedTuple):
    """How an episode ended."""

    terminated: bool
    truncated: bool


class Recorder:
    """Collects the steps of several environments into episodes.

    Args:
        observation_space, action_space: of a single environment.
        num_envs: number of environments.
    """

    def __init__(self, observation_space: gym.Space, action_space: gym.Space, num_envs: int) -> None:
        self._spaces = {
            "observations": observation_space,
            "final_observation": observation_space,
            "actions": action_space,
        }
        self._steps: list[list[EpisodeArrays]] = [[] for _ in range(num_envs)]

    def add(self, rows: np.ndarray, parts: Mapping[str, Any]) -> None:
        """Adds a step of the environments where `rows` `[num_envs]` is true; each part is `[num_envs, ...]`."""
        columns = self._columns(parts)
        for index in np.flatnonzero(rows):
            self._steps[index].append({name: np.copy(values[index]) for name, values in columns.items()})

    def take(self, index: int, final_observations: Any, outcome: Outcome) -> EpisodeArrays:
        """Returns the episode of an environment after its end.

        Args:
            index: index of the environment.
            final_observations: the final observations of all environments.
            outcome: how the episode ended.
        """
        steps, self._steps[index] = self._steps[index], []
        final = self._columns({"final_observation": final_observations})
        return {
            **{name: np.stack([row[name] for row in steps]) for name in steps[0]},
            **{name: np.copy(values[index]) for name, values in final.items()},
            "terminated": np.asarray(outcome.terminated),
            "truncated": np.asarray(outcome.truncated),
        }

    def drop(self, aborted: np.ndarray) -> None:
        """Drops the unfinished episodes where `aborted` `[num_envs]` is true."""
        self._steps = [[] if dropped else steps for dropped, steps in zip(aborted, self._steps, strict=True)]

    def _columns(self, parts: Mapping[str, Any]) -> EpisodeArrays:
        columns: EpisodeArrays = {}
        for name, part in parts.items():
            space = self._spaces.get(name)
            if space is None:
                columns[name] = part
            else:
                columns.update(zip(flatten(space, _names(name, space)), flatten(space, part), strict=True))
        return columns


def structured(name: str, space: gym.Space, arrays: Mapping[str, np.ndarray]) -> Any:
    """The arrays of a recorded part, such as "observations", in the structure of its space.

    Raises:
        KeyError: an array is missing; the error's argument is its name.
    """
    return map_leaves(lambda _, path: arrays[path], space, _names(name, space))


def _names(name: str, space: gym.Space) -> Any:
    """The name of each array of a part, in the structure of its space."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _names(f"{name}/{key}", inner) for key, inner in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_names(f"{name}/{index}", inner) for index, inner in enumerate(space.spaces))
    return name


def save_episode(arrays: EpisodeArrays, path: Path) -> None:
    """Writes an `.npz` file, which `numpy.load` reads without pickle.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with replacing_file(path) as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"an episode cannot be recorded in {path}: {error}") from error


def load_episodes(folder: str | os.PathLike) -> list[EpisodeArrays]:
    """Loads the episodes that `rl-lnlstm evaluate --record FOLDER` wrote, in the order of their numbers.

    Loading executes nothing that is in the files.

    Args:
        folder: the folder, with an `.npz` file for each episode.

    Returns:
        What `record_episodes` returned. `pad_episodes` makes a batch of it.

    Raises:
        UserError: there are no episodes in the folder, or a file is damaged.
    """
    # A file whose name begins with a dot was being written when its process was killed; see `replacing_file`.
    paths = sorted(path for path in Path(folder).glob("*.npz") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder} holds no episodes: expected a folder with .npz files")
    episodes = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as arrays:
                episodes.append(dict(arrays))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} is not a recorded episode: {error}") from error
    return episodes
