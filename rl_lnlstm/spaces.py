"""Gymnasium spaces: their leaves, data in their structure, and their description in JSON.

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


def check_observation_space(space: gym.Space) -> None:
    """Raises `UserError` unless the space is `SUPPORTED`. The message names the entry that is not."""

    def check(inner: gym.Space, path: str) -> None:
        if isinstance(inner, gym.spaces.Dict | gym.spaces.Tuple):
            named = inner.spaces.items() if isinstance(inner, gym.spaces.Dict) else enumerate(inner.spaces)
            entries = [(f"{path}[{key!r}]", entry) for key, entry in named]
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
        size = leaf.n if isinstance(leaf, gym.spaces.Discrete) else leaf.nvec
        wrong |= (cast < leaf.start) | (cast >= leaf.start + size)
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


# ------------------------------------------------------------------------------------------------------------- JSON

MAX_DEPTH = 32
MAX_BYTES = 32 << 20  # limit of the memory that the spaces in a file make the reader allocate
NODE_BYTES = 64 << 10  # charged for each space, because building layers for it takes time
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
BOX_DTYPES = ("bool", *INTEGERS, "float16", "float32", "float64")


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """Describes `space` in JSON types."""
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
        # A list of pairs, because a JSON object would not keep the order, which is part of the space.
        return {"type": "Dict", "spaces": [[key, space_to_json(inner)] for key, inner in space.spaces.items()]}
    if isinstance(space, gym.spaces.Tuple):
        return {"type": "Tuple", "spaces": [space_to_json(inner) for inner in space.spaces]}
    raise UserError(f"space must be {SUPPORTED}, got {space}")


class Budget:
    """The bytes that the descriptions of all spaces in a file may still claim.

    Raises:
        ValueError: in `take`, if they claim more.
    """

    def __init__(self, size: int = MAX_BYTES) -> None:
        self.left = size

    def take(self, size: int) -> None:
        """Subtracts `size` bytes. Call it before you allocate them."""
        self.left -= size
        if self.left < 0:
            raise ValueError(f"the spaces claim more than {MAX_BYTES:,} bytes")


def space_from_json(description: Any, budget: Budget | None = None) -> gym.Space:
    """The inverse of `space_to_json`.

    Args:
        description: the description, from a file that need not be trusted.
        budget: the bytes that it may allocate; None for a new budget.

    Raises:
        KeyError, TypeError, ValueError: the description is not valid, or claims too much memory.
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
        # for one-hot coding, and for each component a row with the largest number of values
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
    # Convert through objects, because float64 cannot represent all int64 and uint64.
    array = np.asarray(value, object)
    if array.shape not in ((), shape):
        raise ValueError(f"expected one number or an array of shape {shape}, got one of shape {array.shape}")
    if not all(isinstance(number, int | float) for number in array.flat):
        raise TypeError("expected numbers")
    return np.broadcast_to(array.astype(dtype), shape)


def _numbers_to_json(numbers: np.ndarray) -> Any:
    """A single number if all are equal, because the bounds of an image would take a megabyte."""
    first = numbers.flat[0] if numbers.size else 0
    return numbers.tolist() if np.any(numbers != first) else np.asarray(first).item()
