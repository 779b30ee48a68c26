"""Distributions of actions: NamedTuples of parameters, leading axes free, the last one the action's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

Tensor = Any  # a tf.Tensor; TensorFlow ships no types


class Distribution(Protocol):
    """What a policy needs of the distribution that its action head gives."""

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """What `sample` makes random actions of, float32 `shape`, of the parameters' shape."""

    def sample(self, noise: Any) -> Tensor:
        """Actions; of a noise of zeros, the most probable ones."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability (or log-density) of `actions`, in nats, `[...]`."""

    def entropy(self) -> Tensor:
        """The (differential) entropy in nats, `[...]`."""


class Categorical(NamedTuple):
    """One of n actions, 0 to n - 1, int64 `[...]`; `logits` `[..., n]`, unnormalised."""

    logits: Tensor

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard Gumbel: -log of a standard exponential, which is kept away from 0."""
        return -np.log(np.maximum(generator.standard_exponential(shape, np.float32), np.float32(1e-20)))

    def sample(self, noise: Any) -> Tensor:
        """Gumbel-max: argmax(logits + noise) is distributed as softmax(logits)."""
        return tf.argmax(self.logits + noise, -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability of `actions`, integers `[...]`."""
        return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=actions, logits=self.logits)

    def entropy(self) -> Tensor:
        """-sum p log p."""
        log_p, p = tf.nn.log_softmax(self.logits), tf.nn.softmax(self.logits)
        return -tf.reduce_sum(p * tf.where(p > 0, log_p, 0.0), -1)


class DiagonalGaussian(NamedTuple):
    """Independent normal variables: float actions `[..., d]`; `mean` and `log_std` broadcast to `[..., d]`."""

    mean: Tensor
    log_std: Tensor

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard normal."""
        return generator.standard_normal(shape, np.float32)

    def sample(self, noise: Any) -> Tensor:
        """Mean + std * noise."""
        return self.mean + tf.exp(self.log_std) * noise

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-density of `actions`, summed over the last axis."""
        z = (actions - self.mean) * tf.exp(-self.log_std)
        return -tf.reduce_sum(0.5 * z * z + self.log_std + 0.5 * math.log(2 * math.pi), -1)

    def entropy(self) -> Tensor:
        """The sum of the components' log(std * sqrt(2 pi e))."""
        per_component = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        shape = tf.broadcast_dynamic_shape(tf.shape(self.mean), tf.shape(self.log_std))
        return tf.reduce_sum(tf.broadcast_to(per_component, shape), -1)
