"""Reads the running statistics of Stable-Baselines 2's `VecNormalize` from its pickle, which need not be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.importing.pickles import read_pickle
from rl_lnlstm.importing.plain_values import Instance, array_of
from rl_lnlstm.policies.normalization import RunningStatistics

CLIP, EPSILON = 10.0, 1e-8  # what `RunningStatistics` does; also the defaults of `VecNormalize`


class Moments(NamedTuple):
    """Running statistics."""

    mean: np.ndarray
    variance: np.ndarray
    frames: float

    def assign_to(self, statistics: RunningStatistics) -> None:
        """Sets the weights of running statistics of the same shape."""
        statistics.set_weights([self.mean, self.variance, np.float64(self.frames)])


class Normalization(NamedTuple):
    """What a `VecNormalize` normalises; None for what it does not."""

    observations: Moments | None
    returns: Moments | None


def read_vecnormalize(path: Path) -> Normalization:
    """Reads a pickled `VecNormalize`, or the `obs_rms.pkl` of its old method `save_running_average`.

    Raises:
        UserError: the file cannot be read, is damaged, contains anything else, or has another clip or epsilon.
    """
    content = read_pickle(path)
    try:
        if _is_a(content, "RunningMeanStd"):
            return Normalization(_moments(content), None)
        if not _is_a(content, "VecNormalize"):
            raise ValueError("it is a pickle of something else")
        state = content.state
        observations = _moments(state["obs_rms"]) if state.get("norm_obs", True) else None
        returns = _moments(state["ret_rms"]) if state.get("norm_reward", True) else None
        _check_settings(state, observations is not None, returns is not None)
        if returns is not None and returns.mean.shape:
            raise ValueError("the statistics of returns must be numbers")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a malicious file can cause any error; blame the file
        raise UserError(
            f"{path} contains no VecNormalize of Stable-Baselines 2, {type(error).__name__}: {printable(error)}"
        ) from None
    return Normalization(observations, returns)


def _is_a(value: Any, name: str) -> bool:
    return isinstance(value, Instance) and value.name.endswith(f".{name}") and isinstance(value.state, dict)


def _moments(value: Any) -> Moments:
    if not _is_a(value, "RunningMeanStd"):
        raise ValueError("its statistics are no RunningMeanStd")
    mean, variance = (array_of(value.state[name]).astype(np.float64) for name in ("mean", "var"))
    count = float(array_of(value.state["count"]))
    if mean.shape != variance.shape:
        raise ValueError(f"mean and variance have different shapes, {list(mean.shape)} and {list(variance.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(variance).all() and (variance >= 0).all()):
        raise ValueError("mean and variance must be finite, and the variance not negative")
    if not (math.isfinite(count) and count >= 0):
        raise ValueError(f"the count must be a number of at least 0, got {count}")
    return Moments(mean, variance, count)


def _check_settings(state: Mapping[str, Any], observations: bool, returns: bool) -> None:
    expected = {"epsilon": EPSILON}
    expected |= {"clip_obs": CLIP} if observations else {}
    expected |= {"clip_reward": CLIP} if returns else {}
    for name, value in expected.items():
        got = float(array_of(state.get(name, value)))
        if not math.isclose(got, value):
            raise UserError(f"its {name} is {got:g}, but only {value:g} can be represented here")
