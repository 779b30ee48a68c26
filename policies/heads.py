"""From features to a distribution of actions, by the kind of action space."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.distributions import Categorical, DiagonalGaussian, Distribution
from rl_lnlstm.errors import UserError

# Small, so that the first policy is close to uniform (Andrychowicz et al., 2021, "What matters in on-policy RL?").
POLICY_GAIN = 0.01


class _ActionHead(keras.layers.Layer):
    """What the heads have in common.

    Attributes:
        size: parameters of the distribution for each action.
        projection: the layer that gives them, from features.
    """

    distribution: type[Distribution]
    size: int
    projection: keras.layers.Dense

    def noise(self, generator: np.random.Generator, batch_size: int) -> np.ndarray:
        """What the distribution's `sample` wants for a batch of random actions."""
        return self.distribution.noise(generator, (batch_size, self.size))

    def no_noise(self, batch_size: int) -> np.ndarray:
        """What it wants for the most probable ones."""
        return np.zeros((batch_size, self.size), np.float32)


class CategoricalHead(_ActionHead):
    """For `Discrete`: actions are numbered as the space does, from its `start`."""

    distribution = Categorical

    def __init__(self, space: gym.spaces.Discrete, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.size = int(space.start), int(space.n)
        self.projection = _projection(self.size, seed, "logits")

    def call(self, features: Any) -> Categorical:
        """Features `[..., f]` to a distribution over `[...]`."""
        return Categorical(self.projection(features))

    def to_distribution(self, actions: Any) -> Any:
        """From the space's numbering to the distribution's."""
        return tf.cast(actions, tf.int64) - self.start

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From the distribution's numbering to the space's."""
        return actions + self.start

    def legal(self, actions: np.ndarray) -> np.ndarray:
        """What the environment is sent."""
        return actions


class GaussianHead(_ActionHead):
    """For `Box`: a diagonal Gaussian whose deviation is a weight, the same in every state.

    What is sent to the environment is clipped to the bounds; the policy's actions and log-probabilities are
    of what was sampled.
    """

    distribution = DiagonalGaussian

    def __init__(self, space: gym.spaces.Box, seed: int, log_std_init: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space = space
        self.size = int(np.prod(space.shape))
        self.projection = _projection(self.size, seed, "mean")
        self.log_std = self.add_weight(
            name="log_std", shape=(self.size,), initializer=keras.initializers.Constant(log_std_init)
        )

    def call(self, features: Any) -> DiagonalGaussian:
        """Features `[..., f]` to a distribution over `[..., size]`."""
        return DiagonalGaussian(self.projection(features), tf.convert_to_tensor(self.log_std))

    def to_distribution(self, actions: Any) -> Any:
        """From the space's shape to one flat axis."""
        actions = tf.cast(actions, tf.float32)
        leading = tf.shape(actions)[: actions.shape.rank - len(self.space.shape)]
        return tf.reshape(actions, tf.concat([leading, [self.log_std.shape[0]]], 0))

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From one flat axis to the space's shape."""
        return actions.reshape(*actions.shape[:-1], *self.space.shape)

    def legal(self, actions: np.ndarray) -> np.ndarray:
        """What the environment is sent: within bounds, of its dtype."""
        return np.clip(actions, self.space.low, self.space.high).astype(self.space.dtype)


def _projection(size: int, seed: int, name: str) -> keras.layers.Dense:
    return keras.layers.Dense(size, kernel_initializer=keras.initializers.Orthogonal(POLICY_GAIN, seed), name=name)


def action_head(space: gym.Space, seed: int, log_std_init: float) -> CategoricalHead | GaussianHead:
    """The head for an action space.

    Raises:
        UserError: a space that no head is for.
    """
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(space, seed, name="action_head")
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return GaussianHead(space, seed, log_std_init, name="action_head")
    raise UserError(f"action space must be Discrete or Box of floats, got {space}")
