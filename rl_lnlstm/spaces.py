"""Gymnasium spaces: their leaves, and data in their structure.

A leaf is a space that is neither `Dict` nor `Tuple`. Observations have the form that Gymnasium's vector environments
return: dicts and tuples in the structure of the space, with an array `[..., *leaf.shape]` for each leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError

LEAVES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
UNBOUNDED = 1e30  # larger bounds of a Box, such as the largest float32, mean no bound
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these"


def map_leaves(function: Callable[..., Any], space: gym.Space, *structures: Any) -> Any:
    """Applies `function(leaf, *parts)` to every leaf and the parts of the structures that belong to it."""
    if isinstance(space, gym.spaces.Dict):
        return {
            key: map_leaves(function, inner, *(structure[key] for structure in structures))
            for key, inner in space.spaces.items()
        }
    if isinstance(space, gym.spaces.Tuple):
        return tuple(
            map_leaves(function, inner, *(structure[index] for structure in structures))
            for index, inner in enumerate(space.spaces)
        )
    return function(space, *structures)


def map_arrays(function: Callable[..., Any], *structures: Any) -> Any:
    """Applies `function(*parts)` to all arrays in dicts, tuples and NamedTuples, without a space.

    The result has the structure of the first of `structures`. None, for a missing array, stays None.
    """
    first = structures[0]
    if isinstance(first, dict):
        return {key: map_arrays(function, *(structure[key] for structure in structures)) for key in first}
    if isinstance(first, tuple):
        parts = [map_arrays(function, *parts) for parts in zip(*structures, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return None if first is None else function(*structures)


def flatten(space: gym.Space, structure: Any) -> list[Any]:
    """Lists the parts of a structure, one for each leaf, in the order of the space."""
    parts: list[Any] = []
    map_leaves(lambda _, part: parts.append(part), space, structure)
    return parts


def unflatten(space: gym.Space, parts: Iterable[Any]) -> Any:
    """The inverse of `flatten`."""
    remaining = iter(parts)
    return map_leaves(lambda _: next(remaining), space)


def leaves(space: gym.Space) -> list[gym.Space]:
    """All leaves, in the order of `flatten`."""
    found: list[gym.Space] = []
    map_leaves(found.append, space)
    return found


def has_box(space: gym.Space) -> bool:
    """Whether a leaf is a `Box`."""
    return any(isinstance(leaf, gym.spaces.Box) for leaf in leaves(space))


def centre_and_half_range(space: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """For components with two finite bounds, their centre and half their distance, in float64; for others 0 and 1."""
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    return 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low


def check_observation_space(space: gym.Space) -> None:
    """Raises `UserError` unless the space is `SUPPORTED`. The message names the entry that is not."""

    def check(inner: gym.Space, path: str) -> None:
        if isinstance(inner, gym.spaces.Dict | gym.spaces.Tuple):
            named = inner.spaces.items() if isinstance(inner, gym.spaces.Dict) else enumerate(inner.spaces)
            entries = [(f"{path}[{key!r}]", entry) for key, entry in named]
            if isinstance(inner, gym.spaces.Dict) and not all(isinstance(key, str) for key in inner.spaces):
                raise UserError(f"observation space{path} must have names as keys, got {list(inner.spaces)}")
            if not entries:
                raise UserError(f"observation space{path} must have at least one entry, got {inner}")
            for name, entry in entries:
                check(entry, name)
        elif not isinstance(inner, LEAVES):
            hint = "; a wrapper such as gymnasium.wrappers.FilterObservation can leave it out" if path else ""
            raise UserError(f"observation space must be {SUPPORTED}, got {inner}{path and ' at ' + path}{hint}")
        elif 0 in (inner.shape or ()):
            raise UserError(f"observation space{path} must not be empty, got {inner}")

    check(space, "")


def batch_of(space: gym.Space, observation: Any) -> tuple[Any, int | None]:
    """Converts an observation, or a batch of observations, to a batch.

    Returns:
        A structure of arrays `[batch, *leaf.shape]` in the dtypes of the leaves, and the batch size. For a single
        observation the batch size is None, and the arrays have a batch axis of size 1.

    Raises:
        UserError: the observation does not have the structure or the shapes of the space.
    """
    sizes: list[int | None] = []

    def batch(leaf: gym.Space, part: Any) -> np.ndarray:
        array, shape = observed(leaf, part), leaf.shape or ()
        if array.shape == shape:
            sizes.append(None)
            array = array[np.newaxis]
        elif array.ndim and array.shape[1:] == shape:
            sizes.append(len(array))
        else:
            raise UserError(
                f"observation must have shape {list(shape)} or [{', '.join(map(str, ('batch', *shape)))}], "
                f"got {list(array.shape)}" + ("" if leaf is space else f" for {leaf}")
            )
        return array

    try:
        batched = map_leaves(batch, space, observation)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"observation must be structured as {space}, {type(error).__name__}: {error}") from error
    if len(set(sizes)) > 1:
        raise UserError(f"observation: all parts must have the same batch size, got {sizes} (None: no batch axis)")
    return batched, sizes[0]


def observed(leaf: gym.Space, part: Any) -> np.ndarray:
    """A leaf's part of observations `[..., *leaf.shape]`, as an array in the leaf's dtype.

    Raises:
        UserError: it is no array of numbers, or has values that the space does not hold: fractions, numbers that do not
            fit into its dtype, or unknown categories. The bounds of a `Box` are not checked.
    """
    dtype = np.dtype(leaf.dtype)
    try:
        array = np.asarray(part)
    except ValueError as error:  # its parts have different shapes
        raise UserError(f"observation must be an array of {leaf}, got {part!r:.80}: {error}") from error
    kind = array.dtype.kind
    if array.dtype == dtype and isinstance(leaf, gym.spaces.Box):
        return array
    whole = kind in "biu" or (kind == "f" and (dtype.kind == "f" or bool(np.all(array == np.floor(array)))))
    if not whole:
        if leaf.shape and not array.shape:
            return array  # the caller checks the shape
        got = {"O": "objects", "U": "text", "S": "text"}.get(kind, f"{array.dtype} with fractions")
        raise UserError(f"observation must have dtype {dtype}, got {got} for {leaf}")
    cast = array.astype(dtype, copy=False)
    if dtype.kind == "f":
        return cast
    wrong = cast != array
    if is_categorical(leaf):
        # As int64, because the sum may not fit into the dtype of the space.
        size = np.asarray(leaf.n if isinstance(leaf, gym.spaces.Discrete) else leaf.nvec, np.int64)
        wrong |= (cast < leaf.start) | (cast >= size + leaf.start)
    elif isinstance(leaf, gym.spaces.MultiBinary):
        wrong |= (cast != 0) & (cast != 1)
    if np.any(wrong):
        raise UserError(f"observation must be in {leaf}, got {array[wrong][0]}")
    return cast


def is_categorical(space: gym.Space) -> TypeGuard[gym.spaces.Discrete | gym.spaces.MultiDiscrete]:
    """Whether the values of a leaf are categories rather than quantities."""
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)


def width(space: gym.Space) -> int:
    """The number of features of a leaf: the number of its values or, for categories, of one-hot entries."""
    return len(categories(space)[0]) if is_categorical(space) else math.prod(space.shape or ())


def categories(space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """For one-hot coding with all components side by side: the component of each entry, and its value."""
    if isinstance(space, gym.spaces.Discrete):
        return np.zeros(int(space.n), np.int64), int(space.start) + np.arange(int(space.n))
    sizes, starts = space.nvec.ravel(), space.start.ravel()
    values = [start + np.arange(size) for size, start in zip(sizes, starts, strict=True)]
    return np.repeat(np.arange(len(sizes)), sizes), np.concatenate(values).astype(np.int64)
