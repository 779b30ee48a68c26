"""What an environment did instead of answering, told as an entry of infos beside the others' answers."""

import traceback
from collections.abc import Iterator
from math import isfinite
from typing import Any

import gymnasium as gym
import numpy as np

FAULT = "rl_lnlstm.fault"  # infos[FAULT][index] is a Fault; only between the classes here
ABORTED = "rl_lnlstm.aborted"  # see `make_vec`


class Fault(Exception):
    """What an environment did, as it follows its name in a message, and the cause.

    Of the cause the traceback's text is pickled, because not every exception can be.
    """

    def __init__(self, what: str, cause: BaseException | None = None) -> None:
        super().__init__(what)
        self.__cause__ = cause

    def __reduce__(self) -> tuple[Any, ...]:
        cause = self.__cause__
        text = None if cause is None else WorkerTraceback("".join(traceback.format_exception(cause)))
        return Fault, (str(self), text)


class WorkerTraceback(Exception):
    """The text of a traceback, chained as a cause."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


def not_finite(values: np.ndarray, what: str) -> dict[int, Fault]:
    """The environments with NaN or infinity in `values`, `[num_envs, ...]`, and the first component of each."""
    # The product is not finite if any value is not, at less than half the cost of the exact test; but it may overflow.
    if isfinite(np.vdot(values, values)):
        return {}
    faults: dict[int, Fault] = {}
    for index, *component in np.argwhere(~np.isfinite(values)).tolist():
        where = f"[{', '.join(map(str, component))}]" if component else ""
        faults.setdefault(index, Fault(f"returned {values[(index, *component)]} in {what}{where}"))
    return faults


def float_paths(space: gym.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in an observation floating-point boxes are, as the keys to get there."""
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        yield path
    elif isinstance(space, gym.spaces.Dict):
        for key, subspace in space.spaces.items():
            yield from float_paths(subspace, (*path, key))
    elif isinstance(space, gym.spaces.Tuple):
        for index, subspace in enumerate(space.spaces):
            yield from float_paths(subspace, (*path, index))


def forget(infos: dict[str, Any], index: int) -> None:
    """Takes out of a vector environment's `infos` what one environment said."""
    for key, value in infos.items():
        if isinstance(value, dict):
            forget(value, index)
        elif key.startswith("_") and key[1:] in infos:
            value[index] = False
