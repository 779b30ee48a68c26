"""Running statistics equal NumPy's statistics of all data, for any batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lnlstm.policies.normalization import RunningStatistics


def fed(data, sizes, **kwargs):
    statistics = RunningStatistics(data.shape[1:], **kwargs)
    for batch in np.split(data, np.cumsum(sizes)[:-1]):
        statistics.update(batch)
    return statistics


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), seed=st.integers(0, 1000))
def test_batches_of_any_sizes(sizes, seed):
    rng = np.random.default_rng(seed)
    data = rng.normal(rng.normal(0, 10, 3), rng.uniform(0.1, 10, 3), (sum(sizes), 3))
    statistics = fed(data, sizes)
    np.testing.assert_allclose(statistics.mean.numpy(), data.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), data.var(0), rtol=1e-9, atol=1e-12)
    assert float(statistics.count.numpy()) == len(data)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_any_shape(shape):
    data = np.random.default_rng(0).normal(3, 2, (50, *shape)).astype(np.float32)
    statistics = fed(data, [20, 30])
    np.testing.assert_allclose(statistics.mean.numpy(), data.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), data.astype(np.float64).var(0), rtol=1e-12)
    normalized = np.asarray(statistics.normalize(data))
    assert normalized.shape == data.shape
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized.mean(0), np.zeros(shape), atol=1e-5)
    np.testing.assert_allclose(normalized.std(0), np.ones(shape), atol=1e-5)


def test_a_batch_of_many_values_is_taken_in_piece_by_piece():
    data = np.random.default_rng(0).integers(256, size=(50, 60_000), dtype=np.uint8)
    statistics = fed(data, [20, 30])
    np.testing.assert_allclose(statistics.mean.numpy(), data.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.variance.numpy(), data.var(0), rtol=1e-12)
    assert float(statistics.count.numpy()) == 50


def test_a_large_offset_costs_no_precision():
    """Deviation 1e-2 on an offset of 1e6: E[x^2] - E[x]^2, or float32, would leave nothing of it."""
    data = 1e6 + np.random.default_rng(1).normal(0, 1e-2, (5000, 2))
    statistics = fed(data, [1] * 100 + [100] * 49)
    np.testing.assert_allclose(statistics.mean.numpy(), data.mean(0), rtol=1e-14)
    np.testing.assert_allclose(statistics.variance.numpy(), data.var(0), rtol=1e-5)
    np.testing.assert_allclose(
        statistics.normalize(data), (data - data.mean(0)) / np.sqrt(data.var(0) + 1e-8), atol=1e-2
    )


def test_before_the_first_batch_nothing_changes():
    statistics = RunningStatistics((2,))
    values = np.array([[1.5, -2.0]], np.float32)
    np.testing.assert_allclose(statistics.normalize(values), values, rtol=1e-6)
    np.testing.assert_allclose(statistics.scale(values), values, rtol=1e-6)
    statistics.update(np.empty((0, 2)))
    np.testing.assert_allclose(statistics.normalize(values), values, rtol=1e-6)
    statistics.update(np.array([[7.0, 7.0], [9.0, 9.0]]))  # and the placeholders have no weight afterwards
    np.testing.assert_array_equal(statistics.mean.numpy(), [8, 8])
    np.testing.assert_array_equal(statistics.variance.numpy(), [1, 1])


def test_normalize_centres_and_scale_does_not():
    statistics = fed(np.array([2.0, 6.0]), [2])  # mean 4, deviation 2
    values = np.array([4.0, 8.0, 0.0])
    np.testing.assert_allclose(statistics.normalize(values), [0, 2, -2], atol=1e-6)
    np.testing.assert_allclose(statistics.scale(values), [2, 4, 0], atol=1e-6)


@pytest.mark.parametrize("clip", [10.0, 2.5])
def test_what_is_far_out_is_clipped(clip):
    statistics = fed(np.array([-1.0, 1.0]), [2], clip=clip)
    values = np.array([-1e6, -2.0, 0.0, 2.0, 1e6])
    expected = [-clip, -2.0, 0.0, 2.0, clip]
    np.testing.assert_allclose(statistics.normalize(values), expected, atol=1e-6)
    np.testing.assert_allclose(statistics.scale(values), expected, atol=1e-6)


def test_what_never_varies_stays_finite():
    statistics = fed(np.full((10, 1), 3.0), [10])
    np.testing.assert_array_equal(statistics.normalize(np.array([[3.0]])), [[0.0]])
    assert np.isfinite(statistics.normalize(np.array([[3.1]]))).all()


def test_it_is_all_in_the_weights_and_none_of_it_is_trained():
    data = np.random.default_rng(2).normal(5, 3, (40, 2))
    statistics, restored = fed(data, [40]), RunningStatistics((2,))
    restored.set_weights(statistics.get_weights())
    np.testing.assert_array_equal(restored.normalize(data), statistics.normalize(data))
    restored.update(data + 1)
    np.testing.assert_allclose(restored.mean.numpy(), data.mean(0) + 0.5, rtol=1e-9)
    assert not statistics.trainable_variables
