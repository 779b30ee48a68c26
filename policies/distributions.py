"""Distributions of actions: NamedTuples of their parameters. Leading axes are free, the last axis is the action's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

Tensor = Any  # a tf.Tensor; TensorFlow ships no types

SDE_EPSILON = 1e-6  # as in Stable-Baselines3; without it, features of zeros would have no variance


class Distribution(Protocol):
    """The methods of a distribution that a policy needs."""

    def sample(self, noise: Any) -> Tensor:
        """Turns noise into random actions; noise of zeros gives the most probable actions."""

    def mode(self) -> Tensor:
        """The most probable actions."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability (or log-density) of `actions`, in nats, `[...]`."""

    def entropy(self) -> Tensor:
        """The (differential) entropy in nats, `[...]`."""

    def kl(self, other: Any) -> Tensor:
        """The Kullback-Leibler divergence KL(self | other) = E log(self / other), `[...]`; same type."""


class Categorical(NamedTuple):
    """One of n actions: int64 `[...]`, 0 to n - 1. `logits` are `[..., n]`, unnormalised; illegal actions have -inf."""

    logits: Tensor

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard Gumbel noise: -log of a standard exponential, which is bounded away from 0."""
        return -np.log(np.maximum(generator.standard_exponential(shape, np.float32), np.float32(1e-20)))

    def sample(self, noise: Any) -> Tensor:
        """Gumbel-max: argmax(logits + noise) is distributed as softmax(logits)."""
        return tf.argmax(self.logits + noise, -1)

    def mode(self) -> Tensor:
        """Argmax(logits); the first one if several are equal."""
        return tf.argmax(self.logits, -1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-probability of `actions`, integers `[...]`."""
        return -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=actions, logits=self.logits)

    def entropy(self) -> Tensor:
        """-sum p log p."""
        log_p, p = tf.nn.log_softmax(self.logits), tf.nn.softmax(self.logits)
        return -tf.reduce_sum(p * tf.where(p > 0, log_p, 0.0), -1)

    def kl(self, other: Categorical) -> Tensor:
        """Sum p (log p - log q)."""
        log_p, log_q = tf.nn.log_softmax(self.logits), tf.nn.log_softmax(other.logits)
        p = tf.exp(log_p)
        return tf.reduce_sum(p * tf.where(p > 0, log_p - log_q, 0.0), -1)


class MultiCategorical(NamedTuple):
    """Independent categoricals: int64 actions `[..., k]`, `logits` `[..., k, n]`; -inf pads those with fewer values."""

    logits: Tensor

    @property
    def each(self) -> Categorical:
        """All components as one categorical over `[..., k]`."""
        return Categorical(self.logits)

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard Gumbel noise; the last two axes may be merged into one."""
        return Categorical.noise(generator, shape)

    def sample(self, noise: Any) -> Tensor:
        """Samples each component."""
        return self.each.sample(tf.reshape(noise, tf.shape(self.logits)))

    def mode(self) -> Tensor:
        """The most probable value of each component."""
        return self.each.mode()

    def log_prob(self, actions: Tensor) -> Tensor:
        """The sum of the components' log-probabilities."""
        return tf.reduce_sum(self.each.log_prob(actions), -1)

    def entropy(self) -> Tensor:
        """The sum of the components' entropies."""
        return tf.reduce_sum(self.each.entropy(), -1)

    def kl(self, other: MultiCategorical) -> Tensor:
        """The sum of the components' divergences."""
        return tf.reduce_sum(self.each.kl(other.each), -1)


class Bernoulli(NamedTuple):
    """Independent bits: int8 actions `[..., k]`, 0 or 1; `logits` `[..., k]`, log p(1) / p(0)."""

    logits: Tensor

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard logistic noise."""
        return generator.logistic(size=shape).astype(np.float32)

    def sample(self, noise: Any) -> Tensor:
        """Logits + noise > 0, whose probability is sigmoid(logits)."""
        return tf.cast(self.logits + noise > 0, tf.int8)

    def mode(self) -> Tensor:
        """Logits > 0."""
        return tf.cast(self.logits > 0, tf.int8)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The sum of log sigmoid(logit) where a bit is 1, and of log sigmoid(-logit) where it is 0."""
        actions = tf.cast(actions, self.logits.dtype)
        return -tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(actions, self.logits), -1)

    def entropy(self) -> Tensor:
        """The sum of the components' log(1 + exp(logit)) - p logit."""
        p = tf.sigmoid(self.logits)
        return tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(p, self.logits), -1)

    def kl(self, other: Bernoulli) -> Tensor:
        """The sum over components of cross entropy minus entropy."""
        p = tf.sigmoid(self.logits)
        cross = tf.reduce_sum(tf.nn.sigmoid_cross_entropy_with_logits(p, other.logits), -1)
        return cross - self.entropy()


class DiagonalGaussian(NamedTuple):
    """Independent normal variables: float actions `[..., d]`; `mean` and `log_std` broadcast to `[..., d]`."""

    mean: Tensor
    log_std: Tensor

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard normal noise."""
        return generator.standard_normal(shape, np.float32)

    def sample(self, noise: Any) -> Tensor:
        """Mean + std * noise."""
        return self.mean + tf.exp(self.log_std) * noise

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean + tf.zeros_like(self.log_std)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-density of `actions`, summed over the last axis."""
        z = (actions - self.mean) * tf.exp(-self.log_std)
        return -tf.reduce_sum(0.5 * z * z + self.log_std + 0.5 * math.log(2 * math.pi), -1)

    def entropy(self) -> Tensor:
        """The sum of the components' log(std * sqrt(2 pi e))."""
        per_component = self.log_std + 0.5 * math.log(2 * math.pi * math.e)
        return tf.reduce_sum(tf.broadcast_to(per_component, self._shape()), -1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """The sum of the components' log(std' / std) + (std^2 + (mean - mean')^2) / (2 std'^2) - 1/2."""
        z = (self.mean - other.mean) * tf.exp(-other.log_std)
        log_ratio = self.log_std - other.log_std
        return tf.reduce_sum(0.5 * (tf.exp(2 * log_ratio) + z * z - 1) - log_ratio, -1)

    def _shape(self) -> Tensor:
        return tf.broadcast_dynamic_shape(tf.shape(self.mean), tf.shape(self.log_std))


class StateDependentGaussian(NamedTuple):
    """Generalised state-dependent exploration, Raffin et al. (2020), "Smooth exploration for robotic RL", section 3.

    Actions are `mean + features @ (exp(log_std) * noise)`. As long as the noise matrix stays the same, the same state
    gives the same action. Over random matrices, actions are independent normal variables with variance `features^2 @
    exp(log_std)^2` (equation 7). Log-probability, entropy and divergence are those of this normal distribution.
    """

    mean: Tensor  # [..., d]
    log_std: Tensor  # [f, d]
    features: Tensor  # [..., f]

    @staticmethod
    def noise(generator: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
        """Standard normal noise."""
        return generator.standard_normal(shape, np.float32)

    @property
    def marginal(self) -> DiagonalGaussian:
        """The distribution of actions over random noise matrices."""
        variance = tf.tensordot(self.features**2, tf.exp(2 * self.log_std), 1)
        return DiagonalGaussian(self.mean, 0.5 * tf.math.log(variance + SDE_EPSILON))

    def sample(self, noise: Any) -> Tensor:
        """Samples with one noise matrix for each leading index, flattened to `[..., f * d]` row by row."""
        matrices = tf.reshape(noise, tf.concat([tf.shape(noise)[:-1], tf.shape(self.log_std)], 0))
        row = tf.expand_dims(self.features, -2)
        return self.mean + tf.squeeze(tf.matmul(row, tf.exp(self.log_std) * matrices), -2)

    def mode(self) -> Tensor:
        """The mean."""
        return tf.identity(self.mean)

    def log_prob(self, actions: Tensor) -> Tensor:
        """The log-density of `actions`, summed over the last axis."""
        return self.marginal.log_prob(actions)

    def entropy(self) -> Tensor:
        """The entropy of the normal variables, `marginal`."""
        return self.marginal.entropy()

    def kl(self, other: StateDependentGaussian) -> Tensor:
        """The divergence of the normal variables, `marginal`."""
        return self.marginal.kl(other.marginal)


class Composite(NamedTuple):
    """Independent distributions side by side; actions are a tuple with those of each part."""

    parts: tuple[Any, ...]
    noise_sizes: tuple[int, ...]  # how many columns of the noise each part takes

    def sample(self, noise: Any) -> tuple[Tensor, ...]:
        """Samples all parts. Their noises stand side by side in the last axis."""
        noises = tf.split(noise, self.noise_sizes, -1)
        return tuple(part.sample(own) for part, own in zip(self.parts, noises, strict=True))

    def mode(self) -> tuple[Tensor, ...]:
        """The most probable actions of each part."""
        return tuple(part.mode() for part in self.parts)

    def log_prob(self, actions: tuple[Tensor, ...]) -> Tensor:
        """The sum of the parts' log-probabilities."""
        return tf.add_n([part.log_prob(own) for part, own in zip(self.parts, actions, strict=True)])

    def entropy(self) -> Tensor:
        """The sum of the parts' entropies."""
        return tf.add_n([part.entropy() for part in self.parts])

    def kl(self, other: Composite) -> Tensor:
        """The sum of the parts' divergences."""
        return tf.add_n([part.kl(theirs) for part, theirs in zip(self.parts, other.parts, strict=True)])
