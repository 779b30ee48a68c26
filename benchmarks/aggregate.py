"""Scores over several tasks, as Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical
precipice", recommend: interquartile means with stratified bootstrap intervals, and performance profiles.

Scores are arrays `[tasks, seeds]`, normalised, so that the scores of different tasks can be averaged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rl_lnlstm.evaluation.statistics import Interval, interquartile_mean

Statistic = Callable[[np.ndarray], np.ndarray]  # of scores [..., tasks, seeds] to [...]


def iqm(scores: np.ndarray) -> np.ndarray:
    """The interquartile mean of all runs of all tasks together, `[...]` of `[..., tasks, seeds]`."""
    return interquartile_mean(scores.reshape(*scores.shape[:-2], -1))


def mean(scores: np.ndarray) -> np.ndarray:
    """The mean over all tasks and seeds, `[...]` of `[..., tasks, seeds]`."""
    return scores.mean((-2, -1))


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The fraction of runs whose score is above each threshold, `[thresholds]` of `[tasks, seeds]`."""
    return (scores[..., np.newaxis] > thresholds).mean((0, 1))


def stratified_interval(
    scores: np.ndarray, statistic: Statistic = iqm, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The stratified percentile bootstrap's confidence interval: the seeds of each task are drawn with replacement.

    Args:
        scores: `[tasks, seeds]`.
        statistic: a function from `[..., tasks, seeds]` to `[...]`.
        confidence: the probability that the interval contains the true value.
        resamples: number of draws.
        seed: seed of these draws.
    """
    drawn = np.random.default_rng(seed).integers(scores.shape[1], size=(resamples, *scores.shape))
    values = statistic(np.take_along_axis(scores[np.newaxis], drawn, -1))
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
