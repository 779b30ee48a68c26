"""Entries of a Dict observation that only the critic sees: the option `critic_keys`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym

from rl_lnlstm.errors import UserError

Path = tuple[str, ...]  # the keys of an entry, from the outermost Dict inwards


class ObservationSpaces(NamedTuple):
    """An observation space, divided into what the actor sees and what only the critic sees.

    Both parts keep the structure of the whole: observations of the whole space can be read as those of each part.
    """

    actor: gym.Space
    critic: gym.spaces.Dict | None  # None without `critic_keys`


def split_observation_space(space: gym.Space, critic_keys: Sequence[str]) -> ObservationSpaces:
    """Divides an observation space.

    Args:
        space: the whole space.
        critic_keys: the names of the entries that only the critic sees; `"outer/inner"` is an entry of an inner Dict.

    Raises:
        UserError: the space is no Dict; a name is no entry of it, or is given twice; or nothing is left for the actor.
    """
    if not critic_keys:
        return ObservationSpaces(space, None)
    if not isinstance(space, gym.spaces.Dict):
        raise UserError(
            f"critic_keys={list(critic_keys)}: expected a Dict observation, whose entries they name, got {space}"
        )
    paths = [_path(space, name) for name in critic_keys]
    for number, (path, name) in enumerate(zip(paths, critic_keys, strict=True)):
        if any(path[: len(other)] == other for index, other in enumerate(paths) if index != number):
            raise UserError(f"critic_keys names {name!r} twice, got {list(critic_keys)}")
    actor, critic = _without(space, paths), _only(space, paths)
    if not actor.spaces:
        raise UserError(
            f"critic_keys={list(critic_keys)}: at least one entry must be left for the actor, but these are all "
            "entries of the observation"
        )
    return ObservationSpaces(actor, critic)


def missing_entry(space: gym.Space | None, observations: Any) -> str | None:
    """The name of the first entry of the critic's part of the space that observations lack; None if they have all."""
    for path in _paths(space):
        inner = observations
        for key in path:
            if not isinstance(inner, Mapping) or key not in inner:
                return "/".join(path)
            inner = inner[key]
    return None


def check_complete(space: gym.Space | None, observations: Any) -> None:
    """Raises `UserError` if observations lack an entry of the critic's part of the space."""
    if name := missing_entry(space, observations):
        raise UserError(
            f"observations have no entry {name!r}, which the critic needs: expected all entries, because critic_keys "
            "only hides them from the actor; predict, and step without values, work without them"
        )


def lacks_critic_entries(policy: Any, observations: Any) -> bool:
    """Whether observations lack entries that the critic of the policy needs; false for policies of other packages."""
    return missing_entry(getattr(policy, "critic_observation_space", None), observations) is not None


def matching_space(policy: Any, observations: Any) -> gym.Space:
    """The space of the policy that fits the observations: the actor's if critic entries are missing, or the whole."""
    return policy.actor_observation_space if lacks_critic_entries(policy, observations) else policy.observation_space


def accepts(policy: Any, space: gym.Space) -> bool:
    """Whether a policy can act, but not necessarily learn, on observations of a space.

    Of the entries that only the critic sees, any may be missing.
    """
    whole = policy.observation_space
    if whole == space or getattr(policy, "critic_observation_space", None) is None:
        return bool(whole == space)
    return is_part_of(space, whole) and is_part_of(policy.actor_observation_space, space)


def is_part_of(part: gym.Space, whole: gym.Space) -> bool:
    """Whether a space equals another one, or a Dict lacks only entries of it, at any depth."""
    if not (isinstance(part, gym.spaces.Dict) and isinstance(whole, gym.spaces.Dict)):
        return bool(part == whole)
    return all(key in whole.spaces and is_part_of(inner, whole.spaces[key]) for key, inner in part.spaces.items())


def _path(space: gym.spaces.Dict, name: str) -> Path:
    found = _find(space, name)
    if found is None:
        entries = ", ".join(repr("/".join(path)) for path in _paths(space))
        raise UserError(f"critic_keys: the observation has no entry {name!r}; its entries are {entries}")
    return found


def _find(space: gym.Space, name: str) -> Path | None:
    """The path of an entry. Keys may contain a "/" themselves."""
    if not isinstance(space, gym.spaces.Dict):
        return None
    if name in space.spaces:
        return (name,)
    for key, inner in space.spaces.items():
        below = _find(inner, name.removeprefix(f"{key}/")) if name.startswith(f"{key}/") else None
        if below is not None:
            return key, *below
    return None


def _paths(space: gym.Space | None) -> Iterator[Path]:
    """The paths of all entries that are no Dict."""
    if not isinstance(space, gym.spaces.Dict):
        return
    for key, inner in space.spaces.items():
        if isinstance(inner, gym.spaces.Dict):
            yield from ((key, *below) for below in _paths(inner))
        else:
            yield (key,)


def _without(space: gym.spaces.Dict, paths: Iterable[Path]) -> gym.spaces.Dict:
    """The space without these entries. A Dict of which nothing is left is left out too."""
    entries: list[tuple[str, gym.Space]] = []
    for key, inner in space.spaces.items():
        below = [path[1:] for path in paths if path[0] == key]
        if not below:
            entries.append((key, inner))
        elif isinstance(inner, gym.spaces.Dict) and () not in below:
            kept = _without(inner, below)
            entries += [(key, kept)] if kept.spaces else []
    return gym.spaces.Dict(entries)


def _only(space: gym.spaces.Dict, paths: Iterable[Path]) -> gym.spaces.Dict:
    """The space with only these entries."""
    entries: list[tuple[str, gym.Space]] = []
    for key, inner in space.spaces.items():
        below = [path[1:] for path in paths if path[0] == key]
        if below and isinstance(inner, gym.spaces.Dict) and () not in below:
            entries.append((key, _only(inner, below)))
        elif below:
            entries.append((key, inner))
    return gym.spaces.Dict(entries)
