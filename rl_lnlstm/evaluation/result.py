"""The result of an evaluation."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.statistics import Interval, bootstrap_interval, interquartile_mean, mean
from rl_lnlstm.files import output_file


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`: one entry for each episode, and their statistics.

    Intervals contain the true value with 95% confidence. They come from the percentile bootstrap over episodes (Efron,
    1979; 2000 resamples).

    Attributes:
        returns: the undiscounted return of each episode.
        lengths: the length of each episode, in frames.
        seeds: the seed of each episode; None if the environments could not be seeded one by one.
        cut: for each episode, whether the limit of steps cut it.
        deterministic: whether the policy took its most probable actions; otherwise it sampled.
        seed: the seed that the episodes' seeds were derived from; None if they were given, or if there are none.
    """

    returns: list[float]
    lengths: list[int]
    seeds: list[int | None]
    cut: list[bool]
    deterministic: bool
    seed: int | None = None

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def mean_interval(self) -> Interval:
        """Confidence interval of the mean return."""
        return bootstrap_interval(np.array(self.returns), mean)

    @property
    def std(self) -> float:
        """Standard deviation of the returns."""
        return float(np.std(self.returns))

    @property
    def median(self) -> float:
        """Median return."""
        return float(np.median(self.returns))

    @property
    def iqm(self) -> float:
        """Interquartile mean of the returns: the mean of their middle half."""
        return float(interquartile_mean(np.array(self.returns)))

    @property
    def iqm_interval(self) -> Interval:
        """Confidence interval of the interquartile mean."""
        return bootstrap_interval(np.array(self.returns), interquartile_mean)

    @property
    def mean_length(self) -> float:
        """Mean length of the episodes, in frames."""
        return float(np.mean(self.lengths))

    @property
    def repeatable(self) -> bool:
        """Whether each episode has a seed of its own."""
        return None not in self.seeds

    def to_dict(self) -> dict[str, Any]:
        """The statistics and the episodes as plain data, under the names that `rl-lnlstm evaluate --json` prints."""
        return {
            "mean_reward": self.mean,
            "mean_confidence_interval": list(self.mean_interval),
            "std_reward": self.std,
            "median_reward": self.median,
            "iqm_reward": self.iqm,
            "iqm_confidence_interval": list(self.iqm_interval),
            "n_episodes": len(self.returns),
            "mean_ep_length": self.mean_length,
            "deterministic": self.deterministic,
            "seed": self.seed,
            "cut_episodes": sum(self.cut),
            "episode_rewards": self.returns,
            "episode_lengths": self.lengths,
            "episode_seeds": self.seeds,
        }

    def save_csv(self, path: Path) -> None:
        """Writes a row for each episode.

        Raises:
            UserError: the file cannot be written.
        """
        columns = (range(len(self.returns)), self.seeds, self.returns, self.lengths, self.cut)
        try:
            with output_file(path) as temporary, temporary.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["episode", "seed", "return", "length", "cut"])
                writer.writerows(zip(*columns, strict=True))
        except OSError as error:
            raise UserError(f"the episodes cannot be written to {path}: {error}") from error

    def __str__(self) -> str:
        interval, iqm_interval = self.mean_interval, self.iqm_interval
        digits = decimals(self.returns)

        def shown(value: float) -> str:
            return f"{value:,.{digits}f}"

        lines = [
            f"{self.mean:.{digits}f} +/- {self.std:.{digits}f} over {len(self.returns)} episodes",
            f"mean {shown(self.mean)}, 95% confidence {shown(interval.low)} to {shown(interval.high)}",
            f"interquartile mean {shown(self.iqm)}, 95% confidence {shown(iqm_interval.low)} to "
            f"{shown(iqm_interval.high)}; median {shown(self.median)}",
            f"{self.mean_length:,.0f} frames in an episode, {min(self.lengths):,} to {max(self.lengths):,}; "
            + ("most probable actions" if self.deterministic else "sampled actions"),
        ]
        if any(self.cut):
            lines.append(f"{sum(self.cut)} of the episodes did not end within the limit of steps and were cut")
        if not self.repeatable:
            lines.append("the environments cannot be seeded one by one: other numbers of environments give other lists")
        return "\n".join(lines)


def decimals(values: Iterable[float]) -> int:
    """The number of decimals for values: 1 if the largest is at least 100, 2 if it is at least 0.1, otherwise more."""
    largest = max((abs(value) for value in values if np.isfinite(value)), default=0.0)
    if largest == 0 or largest >= 100:
        return 1
    return min(6, max(2, 1 - math.floor(math.log10(largest))))
