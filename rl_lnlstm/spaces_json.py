"""Descriptions of Gymnasium spaces in JSON. They can be read from files that need not be trusted."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.spaces import SUPPORTED

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

    def __init__(self) -> None:
        self.left = MAX_BYTES

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
