"""Statistics of episodes' returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def mean(returns: np.ndarray) -> np.ndarray:
    """The mean over the last axis, `[...]` of `[..., n]`."""
    return np.mean(returns, -1)


def interquartile_mean(returns: np.ndarray) -> np.ndarray:
    """The mean of the middle half of `[..., n]`, as `[...]`. It ignores outliers, and varies less than a median.

    See Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice".
    """
    ordered = np.sort(returns, -1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    returns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
) -> Interval:
    """The percentile bootstrap's confidence interval of a statistic (Efron, 1979).

    With several columns, the bootstrap is stratified as in rliable (Agarwal et al., 2021): a column holds the scores of
    the runs in one environment, runs are drawn for each column separately, and the statistic is of all scores together.

    Args:
        returns: returns of episodes or scores of runs, `[n]` or `[n, columns]`.
        statistic: a function from `[..., n]` to `[...]`.
        confidence: the probability that the interval contains the true value.
        resamples: number of times that n values are drawn with replacement, always with the same seed.
    """
    columns = np.asarray(returns).reshape(len(returns), -1)
    drawn = np.random.default_rng(0).integers(len(columns), size=(resamples, *columns.shape))
    values = np.take_along_axis(columns[np.newaxis], drawn, axis=1).reshape(resamples, -1)
    low, high = np.quantile(statistic(values), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def difference_interval(first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """The percentile bootstrap's 95% confidence interval of the difference of two means, first minus second.

    Args:
        first, second: independent samples, `[n]` and `[m]`.
        resamples: as for `bootstrap_interval`.
    """
    return _two_samples(first, second, lambda a, b: a.mean(-1) - b.mean(-1), resamples)


def probability_of_improvement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The probability that a value of the first sample is larger than one of the second. Ties count half.

    See Agarwal et al. (2021). Maps `[..., n]` and `[..., m]` to `[...]`.
    """
    pairs = np.sign(first[..., :, np.newaxis] - second[..., np.newaxis, :])
    return (pairs.mean((-1, -2)) + 1) / 2


def improvement_interval(first: np.ndarray, second: np.ndarray) -> Interval:
    """The percentile bootstrap's 95% confidence interval of `probability_of_improvement`, of `[n]` and `[m]`."""
    return _two_samples(first, second, probability_of_improvement, RESAMPLES)


def _two_samples(
    first: np.ndarray,
    second: np.ndarray,
    statistic: Callable[[np.ndarray, np.ndarray], np.ndarray],
    resamples: int,
) -> Interval:
    generator = np.random.default_rng(0)
    drawn = [
        sample[generator.integers(len(sample), size=(resamples, len(sample)))]
        for sample in (np.asarray(first), np.asarray(second))
    ]
    low, high = np.quantile(statistic(*drawn), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
