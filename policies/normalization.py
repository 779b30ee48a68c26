"""Running mean and variance as Keras weights, so that they are saved with the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.lstm.portable import is_portable
from rl_lnlstm.spaces import map_leaves

PIECE = 2**20  # values processed at once, so that float64 copies of images fit in the processor's cache


def update_each(space: gym.Space, statistics: Any, observations: Any, valid: np.ndarray) -> None:
    """Updates the statistics of each leaf with the observations where `valid`, `[...]` bool, is true."""

    def update(_: gym.Space, own: RunningStatistics | None, values: np.ndarray) -> None:
        if own is not None:
            own.update(values[valid])

    map_leaves(update, space, statistics, observations)


def normalize_each(space: gym.Space, statistics: Any, frames: Any) -> Any:
    """Normalises the observations of each leaf that has statistics. The structure stays the same."""
    return map_leaves(
        lambda _, own, values: values if own is None else own.normalize(values), space, statistics, frames
    )


class RunningStatistics(keras.layers.Layer):
    """Mean and variance of everything seen so far, each of shape `shape`, in float64.

    Batches are merged as in Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
    sample variances". Before the first batch, the mean is 0 and the variance is the square of `unit`.

    Args:
        shape: the shape of a single value.
        clip: normalised values are clipped to +/- `clip`.
        unit: the standard deviation before the first batch.
        epsilon: added to the variance.
    """

    def __init__(
        self, shape: Sequence[int] = (), clip: float = 10.0, unit: float = 1.0, epsilon: float = 1e-8, **kwargs: Any
    ) -> None:
        super().__init__(dtype="float64", **kwargs)
        self.clip, self.epsilon = clip, epsilon
        self.mean = self.add_weight(name="mean", shape=tuple(shape), initializer="zeros", trainable=False)
        self.variance = self.add_weight(
            name="variance",
            shape=tuple(shape),
            initializer=keras.initializers.Constant(unit**2),
            trainable=False,
        )
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def update(self, batch: np.ndarray) -> None:
        """Updates the statistics with `batch`, `[n, *shape]`. Pieces of it whose squares overflow are left out."""
        if not len(batch):
            return
        mean, variance, count = self.mean.numpy(), self.variance.numpy(), float(self.count.numpy())
        rows = max(1, PIECE // max(1, mean.size))
        for first in range(0, len(batch), rows):
            piece = batch[first : first + rows].astype(np.float64)
            added = len(piece)
            total, difference = count + added, piece.mean(0) - mean
            # The variance before the first batch is only a placeholder. Its weight is 0, because count is 0.
            with np.errstate(over="ignore", invalid="ignore"):
                sum_of_squares = variance * count + piece.var(0) * added + difference**2 * (count * added / total)
            if np.isfinite(sum_of_squares).all():
                mean, variance, count = mean + difference * (added / total), sum_of_squares / total, total
        self.mean.assign(mean)
        self.variance.assign(variance)
        self.count.assign(count)

    def normalize(self, values: Any) -> Any:
        """(values - mean) / standard deviation, float32, clipped to +/- `clip`."""
        values = tf.convert_to_tensor(values)
        # Bytes are exact in float32, which takes half the work of float64.
        dtype = tf.float32 if values.dtype == tf.uint8 else tf.float64
        mean = tf.cast(tf.convert_to_tensor(self.mean), dtype)
        std = tf.cast(tf.sqrt(tf.convert_to_tensor(self.variance) + self.epsilon), dtype)
        if is_portable() and values.dtype != tf.float64:
            normalized = self._normalize_in_float32(values)
        else:
            normalized = (tf.cast(values, dtype) - mean) / std
        return tf.cast(tf.clip_by_value(normalized, -self.clip, self.clip), tf.float32)

    def _normalize_in_float32(self, values: Any) -> Any:
        """(values - mean) / standard deviation without float64, which many runtimes cannot compute."""
        # Two float32 numbers together hold the mean precisely enough. The first difference is exact for values near the
        # mean, where rounding would matter.
        with tf.init_scope():
            mean, variance = self.mean.numpy(), self.variance.numpy()
        high = mean.astype(np.float32)
        low = (mean - high).astype(np.float32)
        std = np.sqrt(variance + self.epsilon).astype(np.float32)
        return (tf.cast(values, tf.float32) - high - low) / std

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Values / standard deviation, not centred, clipped to +/- `clip`."""
        return np.clip(values / np.sqrt(self.variance.numpy() + self.epsilon), -self.clip, self.clip)
