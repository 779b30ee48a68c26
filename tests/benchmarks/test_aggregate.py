"""Scores over several tasks, against SciPy and plain loops."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import aggregate

SCORES = np.random.default_rng(0).normal(0.5, 0.3, (6, 5))


def test_interquartile_mean_of_all_runs():
    assert aggregate.iqm(SCORES) == pytest.approx(stats.trim_mean(SCORES.ravel(), 0.25))
    np.testing.assert_allclose(aggregate.iqm(np.stack([SCORES, SCORES + 1])), aggregate.iqm(SCORES) + np.arange(2))


def test_profile_is_the_fraction_of_runs_above_each_threshold():
    thresholds = [-1.0, 0.2, 0.5, 3.0]
    expected = [sum(score > threshold for score in SCORES.ravel()) / SCORES.size for threshold in thresholds]
    np.testing.assert_allclose(aggregate.profile(SCORES, np.array(thresholds)), expected)


def test_the_bootstrap_draws_seeds_within_each_task():
    """Tasks differ, seeds do not: if tasks were drawn as well, the interval would be wide."""
    same = np.repeat(SCORES[:, :1], 5, 1)
    assert aggregate.stratified_interval(same) == pytest.approx((aggregate.iqm(same),) * 2)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    many = np.random.default_rng(1).normal(0.0, 1.0, (4, 100))
    error = np.sqrt((many.var(1) / 100).sum()) / 4  # of the mean of the tasks' means
    low, high = aggregate.stratified_interval(many, aggregate.mean)
    assert low == pytest.approx(many.mean() - 1.96 * error, abs=0.01)
    assert high == pytest.approx(many.mean() + 1.96 * error, abs=0.01)
