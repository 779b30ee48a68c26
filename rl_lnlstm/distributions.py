"""Distributions of actions: NamedTuples of parameters, leading axes free, the last one the action's."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

Tensor = Any  # a tf.Tensor; TensorFlow ships no types


class Distribution(Protocol):
    """What a policy needs of the distribution that its action head gives."""

    def sample(self, generator: tf.random.Generator) -> Tensor:
        """Actions drawn with the generator's next numbers."""

    def mode(self) -> Tensor:
        """The most probable actions."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability (or log-density) of `actions`, in nats, `[...]`."""

    def entropy(self) -> Tensor:
        """The (differential) entropy in nats, `[...]`."""


class Categorical(NamedTuple):
    """One of n actions, 0 to n - 1, int64 `[...]`; `logits` `[..., n]`, unnormalised."""

    logits: Tensor

    def sample(self, generator: tf.random.Generator) -> Tensor:
        """Gumbel-max: argmax(logits + g), with g = -log(-log u), is distributed as softmax(logits)."""
        # Away from 0, whose logarithm is infinite: an action of probability 0 would tie with the others.
        u = generator.uniform(tf.shape(self.logits), minval=1e-20, dtype=self.logits.dtype)
        return tf.argmax(self.logits - tf.math.log(-tf.math.log(u)), -1)

    def mode(self) -> Tensor:
        """The most probable action."""
        return tf.argmax(self.logits, -1)

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

    def sample(self, generator: tf.random.Generator) -> Tensor:
        """Mean + std * a standard normal draw."""
        return self.mean + tf.exp(self.log_std) * generator.normal(self._shape(), dtype=self.mean.dtype)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-density of `actions`, summed over the last axis."""
        z = (actions - self.mean) * tf.exp(-self.log_std)
        return -tf.reduce_sum(0.5 * z * z + self.log_std + 0.5 * math.log(2 * math.pi), -1)

    def entropy(self) -> Tensor:
        """The sum of the components' log(std * sqrt(2 pi e))."""
        per_component = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return tf.reduce_sum(tf.broadcast_to(per_component, self._shape()), -1)

    def _shape(self) -> Tensor:
        return tf.broadcast_dynamic_shape(tf.shape(self.mean), tf.shape(self.log_std))
