"""Reading finished runs from their directories, in groups to compare."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_lnlstm.errors import UserError, printable, warn
from rl_lnlstm.evaluation.statistics import Interval, bootstrap_interval, interquartile_mean, mean
from rl_lnlstm.files import read_json
from rl_lnlstm.runs.layout import CONFIG, METRICS, RESULTS
from rl_lnlstm.runs.metrics_file import FRAMES, RETURN, column, read_rows

MAX_METRICS_BYTES = 1 << 30  # largest size of a metrics.csv
GRID = 200  # number of points of a group's curve


class Run(NamedTuple):
    """A finished run.

    Attributes:
        path: its directory.
        config: its options.
        frames: the number of frames after each iteration, `[iterations]`.
        returns: the mean return of the last 100 episodes after each iteration, `[iterations]`.
        result: the mean return of the evaluation at the end, None if there was none.
    """

    path: Path
    config: dict[str, Any]
    frames: np.ndarray
    returns: np.ndarray
    result: float | None


class Group(NamedTuple):
    """Runs that differ only in their seeds."""

    name: str
    runs: list[Run]


class Curve(NamedTuple):
    """Statistics over the runs of a group, each `[points]`."""

    frames: np.ndarray
    mean: np.ndarray
    iqm: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Score(NamedTuple):
    """The scores of a group's runs and their statistics, with 95% confidence intervals over runs."""

    values: np.ndarray
    mean: float
    mean_interval: Interval | None  # None for a single run
    iqm: float
    iqm_interval: Interval | None


def read_group(path: Path) -> Group:
    """Reads the run in a directory, or all runs in its subdirectories.

    Raises:
        UserError: there is no run, one cannot be read, or they are runs in different environments.
    """
    try:
        found = [path] if (path / CONFIG).is_file() else sorted(inner.parent for inner in path.glob(f"*/{CONFIG}"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"{path} is not a run directory, and contains none")
    runs = [read_run(run) for run in found]
    if len(environments := sorted({printable(run.config.get("env_id")) for run in runs})) > 1:
        raise UserError(
            f"{path} contains runs in different environments, {', '.join(environments)}: name folders whose runs "
            "differ only in their seeds"
        )
    names = {name for run in runs for name in run.config} - {"seed"}
    if differing := sorted(name for name in names if len(_values(runs, name)) > 1):
        warn(f"the runs in {path} are compared as one group, although they differ in {', '.join(differing)}")
    return Group(path.name or str(path), runs)


def read_run(path: Path) -> Run:
    """Reads the run in a directory.

    Raises:
        UserError: it cannot be read.
    """
    try:
        config = read_json(path / CONFIG)
        rows = read_rows(path / METRICS, MAX_METRICS_BYTES)
        frames, returns = column(rows, FRAMES), column(rows, RETURN)
        result = float(read_json(path / RESULTS)["mean_reward"]) if (path / RESULTS).is_file() else None
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} is not a JSON object")
        if np.isnan(frames).any():
            raise ValueError(f"a row has no {FRAMES}")
        if not np.isfinite(returns).any():
            raise ValueError("no episode has ended in it")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, csv.Error) as error:
        raise UserError(f"{path}: the run cannot be read: {printable(error)}") from error
    return Run(path, config, frames, returns, result)


def curve(group: Group) -> Curve:
    """The returns of a group's runs on a common grid of frames. The grid ends where the shortest run ends.

    Runs are interpolated linearly. The interval is the confidence interval of the mean over runs.
    """
    ended = [np.isfinite(run.returns) for run in group.runs]
    first = max(run.frames[valid][0] for run, valid in zip(group.runs, ended, strict=True))
    last = min(run.frames[-1] for run in group.runs)
    grid = np.linspace(min(first, last), last, GRID)
    values = np.stack(
        [np.interp(grid, run.frames[valid], run.returns[valid]) for run, valid in zip(group.runs, ended, strict=True)]
    )
    drawn = np.random.default_rng(0).integers(len(values), size=(1000, len(values)))
    low, high = np.quantile(values[drawn].mean(1), [0.025, 0.975], axis=0)
    return Curve(grid, values.mean(0), interquartile_mean(values.T), low, high)


def score_name(groups: list[Group]) -> str:
    """The kind of score to compare: the final evaluation, if all runs have one."""
    evaluated = all(run.result is not None for group in groups for run in group.runs)
    return "final evaluation" if evaluated else "mean return of the last 100 episodes of training"


def score(group: Group, by: str) -> Score:
    """The scores of a group's runs.

    Args:
        group: the runs.
        by: the result of `score_name` for all groups.
    """
    values = np.array(
        [run.result if by == "final evaluation" else run.returns[np.isfinite(run.returns)][-1] for run in group.runs],
        float,
    )
    return Score(
        values,
        float(np.mean(values)),
        bootstrap_interval(values, mean) if len(values) > 1 else None,
        float(interquartile_mean(values)),
        bootstrap_interval(values, interquartile_mean) if len(values) > 1 else None,
    )


def differing_options(one: Group, other: Group) -> dict[str, tuple[list[Any], list[Any]]]:
    """The options that differ between two groups, apart from seeds, with the values in each group."""
    names = sorted({name for group in (one, other) for run in group.runs for name in run.config} - {"seed"})
    values = {name: (_values(one.runs, name), _values(other.runs, name)) for name in names}
    return {name: (first, second) for name, (first, second) in values.items() if first != second}


def _values(runs: Sequence[Run], name: str) -> list[Any]:
    """The different values of an option."""
    found: list[Any] = []
    for run in runs:
        if run.config.get(name) not in found:
            found.append(run.config.get(name))
    return found
