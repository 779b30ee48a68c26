"""The values that a pickle of plain data may contain, and what the names in it mean, without the code behind them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_AXES = 8
FORTRAN = "F"

# Classes whose instances are admitted as data. Their code is not needed, and not used if it is installed.
CLASSES = re.compile(
    r"stable_baselines\.common\.vec_env(\.vec_normalize)?\.VecNormalize"
    r"|stable_baselines\.common\.running_mean_std\.RunningMeanStd"
    r"|stable_baselines\.common\.policies\.\w+Policy"
    r"|gym(nasium)?\.spaces(\.\w+)?\.(Box|Discrete|MultiBinary|MultiDiscrete)"
    r"|(builtins|__builtin__)\.object"
    # The generator from which a space samples.
    r"|gym(nasium)?\.utils\.seeding\.RandomNumberGenerator"
    r"|numpy\.random\.(mtrand\.|_mt19937\.|_pcg64\.|bit_generator\.)?(RandomState|MT19937|PCG64|SeedSequence)"
    r"|numpy\.random(\._pickle)?\.__(randomstate|generator|bit_generator)_ctor"
    r"|numpy\.random\.bit_generator\.__pyx_unpickle_SeedSequence"
    # Type objects as values, such as the dtype of a space.
    r"|numpy\.(bool_?|u?int(8|16|32|64)|float(16|32|64))"
)
NUMBERS = re.compile(r"[<>|=]?[biuf][1248]")  # the dtypes of arrays; objects and records are not among them


class Reference(NamedTuple):
    """A class or function that the file names."""

    name: str


@dataclasses.dataclass(eq=False)
class Instance:
    """An instance of a class: its name, and what the file gives as its state."""

    name: str
    state: Any = None


@dataclasses.dataclass(eq=False)
class Array:
    """An array. Its data come in a later instruction than the array itself."""

    value: np.ndarray | None = None


@dataclasses.dataclass(eq=False)
class DType:
    """The dtype of an array."""

    value: np.dtype


class NotPlainData(ValueError):
    """The file is not a pickle, is damaged, or contains more than arrays and plain data."""


def array_of(value: Any) -> np.ndarray:
    """The NumPy array of a value that is an `Array` or a number.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, Array) and value.value is not None:
        return value.value
    if isinstance(value, bool | int | float):
        return np.asarray(value)
    raise ValueError(f"expected an array, got {type(value).__name__}")


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise NotPlainData(f"it encodes text as {encoding}")
    return text.encode("latin-1")


def _dtype(name: str, *_: Any) -> DType:
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise NotPlainData(f"its arrays must contain numbers, got dtype {name}")
    return DType(np.dtype(name))


def _scalar(dtype: DType, data: bytes | str) -> Any:
    return _array(data, dtype, ()).item()


def _from_buffer(data: bytes, dtype: DType, shape: tuple[int, ...], order: str) -> Array:
    return Array(_array(data, dtype, shape, order))


def _ordered_dict(items: Sequence[Any] = ()) -> dict[Any, Any]:
    if not all(isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[0], str) for item in items):
        raise NotPlainData("an OrderedDict must have pairs of a string and a value")
    return {item[0]: item[1] for item in items}


def _reconstructed(kind: Any, _base: Any, _state: Any) -> Instance:
    return Instance(kind.name)


def _empty_bytes() -> bytes:  # with an argument, `bytes` could allocate any size
    return b""


def _no_data_yet(*_: Any) -> Array:
    return Array()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytes": _empty_bytes,
    "__builtin__.bytes": _empty_bytes,
    "numpy.dtype": _dtype,
    "collections.OrderedDict": _ordered_dict,
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
    "numpy.core.multiarray._reconstruct": _no_data_yet,
    "numpy._core.multiarray._reconstruct": _no_data_yet,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _from_buffer,
    "numpy._core.numeric._frombuffer": _from_buffer,
}


def reference(name: str) -> Reference:
    """What a name in the file becomes. Raises `NotPlainData` unless it is one of arrays or of the known classes."""
    if name in FUNCTIONS or name == "numpy.ndarray" or CLASSES.fullmatch(name):
        return Reference(name)
    raise NotPlainData(f"it contains {name[:200]!r}, which is neither an array nor plain data, and is not executed")


def complete(target: Any, state: Any) -> None:
    """Gives an instance its state, or an array its data."""
    if isinstance(target, Array) and target.value is None:
        _version, shape, dtype, fortran, data = state
        target.value = _array(data, dtype, shape, FORTRAN if fortran else "C")
    elif isinstance(target, DType):
        _version, order, *description = state
        if order not in ("<", ">", "=", "|") or any(part is not None for part in description[:3]):
            raise NotPlainData("its arrays must contain numbers, got records")
        target.value = target.value.newbyteorder(order)
    elif isinstance(target, Instance) and target.state is None:
        target.state = state
    else:
        raise NotPlainData(f"it gives a state to a {type(target).__name__}")


def _array(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    """An array on the bytes that are in the file, without a copy."""
    if isinstance(data, str):  # as written by Python 2
        data = data.encode("latin-1")
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, DType) or not isinstance(shape, tuple):
        raise NotPlainData("an array must have bytes, a dtype of numbers and a shape")
    if len(shape) > MAX_AXES or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise NotPlainData("an array has an impossible shape")
    # Python integers, because a product that overflows could hide the size of an array.
    if math.prod(shape) * dtype.value.itemsize != len(data):
        raise NotPlainData(f"an array of shape {list(shape)} does not fit its {len(data):,} bytes")
    return np.frombuffer(data, dtype.value).reshape(shape, order="F" if order == FORTRAN else "C")
