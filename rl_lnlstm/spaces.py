"""Gymnasium spaces: what is in them, observations structured as they are, and their description in JSON.

A leaf is a space that is no `Dict` and no `Tuple`. Observations come as Gymnasium's vector environments give them: in
the structure of the space, dicts and tuples, with an array `[..., *leaf.shape]` for each leaf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError

LEAVES = (gym.spaces.Box, gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, or Dict or Tuple of these"


def map_leaves(function: Callable[..., Any], space: gym.Space, *structures: Any) -> Any:
    """`function(leaf, *parts)` of every leaf, in the structure of the space; `parts` are the structures' own."""
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
    """`function(*parts)` of all arrays in dicts and tuples, NamedTuples too, whose space is not at hand.

    The result has the structure of the first of `structures`. None, for an array that is absent, stays None.
    """
    first = structures[0]
    if isinstance(first, dict):
        return {key: map_arrays(function, *(structure[key] for structure in structures)) for key in first}
    if isinstance(first, tuple):
        parts = [map_arrays(function, *parts) for parts in zip(*structures, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    return None if first is None else function(*structures)


def flatten(space: gym.Space, structure: Any) -> list[Any]:
    """The parts of a structure, one for each leaf, in the order of the space."""
    parts: list[Any] = []
    map_leaves(lambda _, part: parts.append(part), space, structure)
    return parts


def unflatten(space: gym.Space, parts: Iterable[Any]) -> Any:
    """The structure that `flatten` gave `parts` of."""
    remaining = iter(parts)
    return map_leaves(lambda _: next(remaining), space)


def leaves(space: gym.Space) -> list[gym.Space]:
    """All leaves, in the order of `flatten`."""
    found: list[gym.Space] = []
    map_leaves(found.append, space)
    return found


def check_observation_space(space: gym.Space) -> None:
    """Raises `UserError` unless the space is `SUPPORTED`, naming the entry that is not."""

    def check(inner: gym.Space, path: str) -> None:
        if isinstance(inner, gym.spaces.Dict | gym.spaces.Tuple):
            named = inner.spaces.items() if isinstance(inner, gym.spaces.Dict) else enumerate(inner.spaces)
            entries = [(f"{path}[{key!r}]", entry) for key, entry in named]
            if not entries:
                raise UserError(f"observation space{path} must have at least one entry, got {inner}")
            for name, entry in entries:
                check(entry, name)
        elif not isinstance(inner, LEAVES):
            hint = "; a wrapper can leave it out, such as gymnasium.wrappers.FilterObservation" if path else ""
            raise UserError(f"observation space must be {SUPPORTED}, got {inner}{path and ' at ' + path}{hint}")
        elif 0 in (inner.shape or ()):
            raise UserError(f"observation space{path} must not be empty, got {inner}")

    check(space, "")


def batch_of(space: gym.Space, observation: Any) -> tuple[Any, int | None]:
    """An observation, or a batch of them, as a batch.

    Returns:
        The structure of arrays `[batch, *leaf.shape]`, each of its leaf's dtype, and the batch's size; None for a
        single observation, whose batch has a size of 1.

    Raises:
        UserError: it has not the structure or the shapes of the space.
    """
    sizes: list[int | None] = []

    def batch(leaf: gym.Space, part: Any) -> np.ndarray:
        array, shape = np.asarray(part), leaf.shape or ()
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
        return array.astype(leaf.dtype, copy=False)

    try:
        batched = map_leaves(batch, space, observation)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"observation must be structured as {space}, {type(error).__name__}: {error}") from error
    if len(set(sizes)) > 1:
        raise UserError(f"observation: its parts must be of one batch, got batches of {sizes} (None: of no batch)")
    return batched, sizes[0]


def is_categorical(space: gym.Space) -> TypeGuard[gym.spaces.Discrete | gym.spaces.MultiDiscrete]:
    """A leaf whose values are names rather than amounts."""
    return isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete)


def width(space: gym.Space) -> int:
    """How many numbers a leaf's value is, one-hot where it is categorical."""
    return len(categories(space)[0]) if is_categorical(space) else math.prod(space.shape or ())


def categories(space: gym.spaces.Discrete | gym.spaces.MultiDiscrete) -> tuple[np.ndarray, np.ndarray]:
    """One-hot coding, all components side by side: which component each entry is of, and the value it stands for."""
    if isinstance(space, gym.spaces.Discrete):
        return np.zeros(int(space.n), np.int64), int(space.start) + np.arange(int(space.n))
    sizes, starts = space.nvec.ravel(), space.start.ravel()
    values = [start + np.arange(size) for size, start in zip(sizes, starts, strict=True)]
    return np.repeat(np.arange(len(sizes)), sizes), np.concatenate(values).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------- JSON

MAX_DEPTH = 32
MAX_BYTES = 32 << 20  # of all that the spaces of a file make whoever reads it allocate
NODE_BYTES = 64 << 10  # a space and the layers for it, in time rather than in bytes
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
BOX_DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A description of `space` in JSON's types."""
    if isinstance(space, gym.spaces.Box):
        low, high = _numbers_to_json(space.low), _numbers_to_json(space.high)
        return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), "low": low, "high": high}
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, gym.spaces.MultiDiscrete):
        nvec, start = _numbers_to_json(space.nvec), _numbers_to_json(space.start)
        shape, dtype = list(space.shape), str(space.dtype)
        return {"type": "MultiDiscrete", "shape": shape, "dtype": dtype, "nvec": nvec, "start": start}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"type": "MultiBinary", "shape": list(space.shape), "flat": isinstance(space.n, int | np.integer)}
    if isinstance(space, gym.spaces.Dict):
        for key in space.spaces:
            if not isinstance(key, str):
                raise UserError(f"the keys of a Dict space must be strings to be saved, got {key!r} in {space}")
        # A list of pairs: the order is part of the space, and not of a JSON object.
        return {"type": "Dict", "spaces": [[key, space_to_json(inner)] for key, inner in space.spaces.items()]}
    if isinstance(space, gym.spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(inner) for inner in space.spaces]}
    raise UserError(f"space must be {SUPPORTED}, got {space}")


class Budget:
    """The bytes that descriptions may still claim, all spaces of a file together.

    Raises:
        ValueError: by `take`, when they claim more.
    """

    def __init__(self, size: int = MAX_BYTES) -> None:
        self.left = size

    def take(self, size: int) -> None:
        """Counts `size` more bytes, before anything of them is allocated."""
        self.left -= size
        if self.left < 0:
            raise ValueError(f"the spaces claim more than {MAX_BYTES:,} bytes")


def space_from_json(description: Any, budget: Budget | None = None) -> gym.Space:
    """The space that `space_to_json` described.

    Args:
        description: of a file that anybody may have written.
        budget: what it may allocate; one of its own if None.

    Raises:
        KeyError, TypeError, ValueError: it is no such description, or claims too much.
    """
    return _from_json(description, 0, Budget() if budget is None else budget)


def _from_json(description: Any, depth: int, budget: Budget) -> gym.Space:
    budget.take(NODE_BYTES)
    if depth > MAX_DEPTH:
        raise ValueError(f"spaces nested deeper than {MAX_DEPTH}")
    kind, entries = _entries(description)
    if kind == "Dict":
        pairs = _list(entries["spaces"])
        budget.take(NODE_BYTES * len(pairs))
        keys = [_string(key) for key, _ in pairs]
        if len(set(keys)) != len(keys):
            raise ValueError("a key occurs twice")
        return gym.spaces.Dict([(key, _from_json(inner, depth + 1, budget)) for key, inner in pairs])
    if kind == "Tuple":
        return gym.spaces.Tuple([_from_json(inner, depth + 1, budget) for inner in _list(entries["spaces"])])
    if kind == "Discrete":
        dtype = _dtype(entries.get("dtype", "int64"), INTEGERS)
        n, start = _integer(entries["n"]), _integer(entries["start"])
        budget.take(32 * max(n, 0))  # one-hot coding
        return gym.spaces.Discrete(n, start=start, dtype=dtype)
    shape = _shape(entries["shape"])
    size = math.prod(shape)
    if kind == "MultiBinary":
        budget.take(16 * size)
        if not isinstance(entries["flat"], bool) or (entries["flat"] and len(shape) != 1):
            raise ValueError(f"flat must be true of one axis, or false, got {entries['flat']!r}")
        return gym.spaces.MultiBinary(shape[0] if entries["flat"] else shape)
    if kind == "MultiDiscrete":
        dtype = _dtype(entries["dtype"], INTEGERS)
        budget.take(64 * size)
        sizes, starts = (_numbers(entries[name], shape, dtype) for name in ("nvec", "start"))
        if int(sizes.min(initial=1)) < 1:
            raise ValueError("nvec is out of range")
        # One-hot coding, and a row as wide as the widest for each component.
        budget.take(32 * int(sizes.sum(dtype=object)) + 16 * size * int(sizes.max(initial=1)))
        return gym.spaces.MultiDiscrete(sizes, dtype=str(dtype), start=starts)
    dtype = _dtype(entries["dtype"], BOX_DTYPES)
    budget.take((2 * dtype.itemsize + 2) * size)  # the bounds, and whether there are any
    low, high = (_numbers(entries[name], shape, dtype) for name in ("low", "high"))
    return gym.spaces.Box(low, high, shape, dtype.type)


_ENTRIES = {
    "Box": {"shape", "dtype", "low", "high"},
    "Discrete": {"n", "start"},
    "MultiDiscrete": {"shape", "dtype", "nvec", "start"},
    "MultiBinary": {"shape", "flat"},
    "Dict": {"spaces"},
    "Tuple": {"spaces"},
}


def _entries(description: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(description, dict) or not isinstance(description["type"], str):
        raise TypeError(f"no description of a space: {str(description)[:80]}")
    kind = description["type"]
    if kind not in _ENTRIES:
        raise ValueError(f"no known space: {kind!r}")
    unknown = set(description) - _ENTRIES[kind] - {"type", "dtype"}
    if unknown:
        raise ValueError(f"unknown entries of a {kind}: {', '.join(sorted(map(str, unknown)))}")
    return kind, description


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r}")
    return value


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    shape = tuple(_integer(size) for size in _list(value))
    if len(shape) > MAX_DEPTH or min(shape, default=0) < 0:
        raise ValueError(f"no shape of a space: {shape[:MAX_DEPTH]}")
    return shape


def _dtype(name: Any, allowed: tuple[str, ...]) -> np.dtype:
    if name not in allowed:
        raise ValueError(f"dtype must be one of {', '.join(allowed)}, got {name!r}")
    return np.dtype(name)


def _numbers(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    # By way of objects: int64 and uint64 have integers that no float64 is equal to.
    array = np.asarray(value, object)
    if array.shape not in ((), shape):
        raise ValueError(f"expected one number or an array of shape {shape}, got one of shape {array.shape}")
    if not all(isinstance(number, int | float) for number in array.flat):
        raise TypeError("expected numbers")
    return np.broadcast_to(array.astype(dtype), shape)


def _numbers_to_json(numbers: np.ndarray) -> Any:
    """A single one where all are the same: the bounds of an image are not worth a megabyte."""
    first = numbers.flat[0] if numbers.size else 0
    return numbers.tolist() if np.any(numbers != first) else np.asarray(first).item()
