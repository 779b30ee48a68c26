"""Running mean and variance, as weights: they are saved with whatever owns them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

EPSILON = 1e-8


class RunningStatistics(keras.layers.Layer):
    """Mean and variance of everything seen so far, each of shape `shape`, in float64.

    Merged batch by batch by Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
    sample variances". Before the first batch they are 0 and 1.
    """

    def __init__(self, shape: Sequence[int] = (), clip: float = 10.0, **kwargs: Any) -> None:
        super().__init__(dtype="float64", **kwargs)
        self.clip = clip
        self.mean = self.add_weight(name="mean", shape=tuple(shape), initializer="zeros", trainable=False)
        self.variance = self.add_weight(name="variance", shape=tuple(shape), initializer="ones", trainable=False)
        self.count = self.add_weight(name="count", shape=(), initializer="zeros", trainable=False)
        self.built = True

    def update(self, batch: np.ndarray) -> None:
        """Take in `batch`, `[n, *shape]`."""
        added = len(batch)
        if not added:
            return
        batch = batch.astype(np.float64)
        mean, variance, count = self.mean.numpy(), self.variance.numpy(), float(self.count.numpy())
        total, difference = count + added, batch.mean(0) - mean
        # The variance of 1 before the first batch is a placeholder: count is 0, so it has no weight.
        sum_of_squares = variance * count + batch.var(0) * added + difference**2 * (count * added / total)
        self.mean.assign(mean + difference * (added / total))
        self.variance.assign(sum_of_squares / total)
        self.count.assign(total)

    def normalize(self, values: Any) -> Any:
        """(values - mean) / deviation, float32, clipped to +/- `clip`."""
        deviation = tf.sqrt(tf.convert_to_tensor(self.variance) + EPSILON)
        normalized = (tf.cast(values, tf.float64) - tf.convert_to_tensor(self.mean)) / deviation
        return tf.cast(tf.clip_by_value(normalized, -self.clip, self.clip), tf.float32)

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Values / deviation, not centred, clipped to +/- `clip`."""
        return np.clip(values / np.sqrt(self.variance.numpy() + EPSILON), -self.clip, self.clip)
