"""The columns of `metrics.csv`, and reading it."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from rl_lnlstm.files import read_regular

ITERATION, FRAMES = "time/iterations", "time/total_timesteps"
RETURN, STD = "rollout/ep_rew_mean", "rollout/ep_rew_std"
EVALUATION = "eval/mean_reward"


def read_rows(path: Path, most_bytes: int) -> list[dict[str, str]]:
    """Reads the cells of a `metrics.csv` by the names of their columns, a row for each iteration.

    Raises:
        OSError, ValueError, csv.Error: it cannot be read, or has more than `most_bytes`.
    """
    return list(csv.DictReader(read_regular(path, most_bytes).decode().splitlines()))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """The numbers of a column, `[iterations]`; NaN where a cell is empty.

    Raises:
        KeyError, ValueError, TypeError: there is no such column, or a cell is not a number.
    """
    return np.array([float(row[name] or math.nan) for row in rows])
