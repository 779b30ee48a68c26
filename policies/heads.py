"""From features to a distribution of actions, by the kind of action space."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.distributions import (
    Bernoulli,
    Categorical,
    Composite,
    DiagonalGaussian,
    MultiCategorical,
    StateDependentGaussian,
)

# Small, so that the first policy is close to uniform (Andrychowicz et al., 2021, "What matters in on-policy RL?").
POLICY_GAIN = 0.01


class Deviation(NamedTuple):
    """How the standard deviations of `Box` actions come about; see `PolicyOptions.std`."""

    log_std_init: float = 0.0
    std: str = "free"

    @property
    def of_state(self) -> bool:
        """An output of the network."""
        return self.std == "network"

    @property
    def use_sde(self) -> bool:
        """Generalised state-dependent exploration."""
        return self.std == "gsde"


class _ActionHead(keras.layers.Layer):
    """What the heads have in common: features `[..., f]` to a distribution over `[...]`.

    Actions have two forms: the distribution's, and the space's, in which the rest of the world has them.

    Attributes:
        in_kernel: act.cc has it as well.
        noise_size: columns of the noise that the distribution's `sample` takes.
        projection: the layer that gives its parameters, from features.
    """

    distribution: type[Any]
    in_kernel: bool = False
    noise_size: int
    projection: keras.layers.Dense

    def noise(self, generator: np.random.Generator, batch_size: int) -> np.ndarray:
        """What the distribution's `sample` wants for a batch of random actions."""
        return self.distribution.noise(generator, (batch_size, self.noise_size))

    def no_noise(self, batch_size: int) -> np.ndarray:
        """What it wants for the most probable ones."""
        return np.zeros((batch_size, self.noise_size), np.float32)

    def held(self) -> np.ndarray:
        """Which columns of the noise stay as they are until exploration is drawn anew, `[noise_size]` bool."""
        return np.zeros(self.noise_size, bool)

    def legal(self, actions: np.ndarray) -> np.ndarray:
        """What the environment is sent."""
        return actions


class CategoricalHead(_ActionHead):
    """For `Discrete`: actions are numbered as the space does, from its `start`."""

    distribution = Categorical
    in_kernel = True

    def __init__(self, space: gym.spaces.Discrete, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start, self.noise_size = int(space.start), int(space.n)
        self.projection = _projection(self.noise_size, seed, "logits")

    def call(self, features: Any, action_masks: Any = None) -> Categorical:
        """`action_masks`, `[..., n]` bool, are false where an action is illegal."""
        logits = self.projection(features)
        return Categorical(logits if action_masks is None else tf.where(action_masks, logits, -np.inf))

    def to_distribution(self, actions: Any) -> Any:
        """From the space's numbering to the distribution's."""
        return tf.cast(actions, tf.int64) - self.start

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From the distribution's numbering to the space's."""
        return actions + self.start


class MultiCategoricalHead(_ActionHead):
    """For `MultiDiscrete`: a categorical for each component, all as wide as the widest."""

    distribution = MultiCategorical

    def __init__(self, space: gym.spaces.MultiDiscrete, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space = space
        sizes = space.nvec.ravel()
        self.shape = (len(sizes), int(sizes.max()))
        self.noise_size = int(np.prod(self.shape))
        self.projection = _projection(self.noise_size, seed, "logits")
        columns = np.arange(self.shape[1])
        self.exists = columns < sizes[:, np.newaxis]
        # Where masks, which leave out what does not exist, have the mask of each logit.
        self.positions = np.where(self.exists, (np.cumsum(sizes) - sizes)[:, np.newaxis] + columns, 0)

    def call(self, features: Any, action_masks: Any = None) -> MultiCategorical:
        """`action_masks`, `[..., sum(nvec)]` bool, are false where a component's value is illegal."""
        logits = _split_last(self.projection(features), self.shape)
        legal = tf.constant(self.exists)
        if action_masks is not None:
            legal &= tf.gather(action_masks, self.positions, axis=-1)
        return MultiCategorical(tf.where(legal, logits, -np.inf))

    def to_distribution(self, actions: Any) -> Any:
        """From the space's shape and numbering to one flat axis that counts from 0."""
        return _flatten_last(tf.cast(actions, tf.int64) - self.space.start.astype(np.int64), self.space.shape)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From one flat axis that counts from 0 to the space's shape, numbering and dtype."""
        return (actions.reshape(*actions.shape[:-1], *self.space.shape) + self.space.start).astype(self.space.dtype)


class BernoulliHead(_ActionHead):
    """For `MultiBinary`."""

    distribution = Bernoulli

    def __init__(self, space: gym.spaces.MultiBinary, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space = space
        self.noise_size = int(np.prod(space.shape))
        self.projection = _projection(self.noise_size, seed, "logits")

    def call(self, features: Any) -> Bernoulli:
        """See `_ActionHead`."""
        return Bernoulli(self.projection(features))

    def to_distribution(self, actions: Any) -> Any:
        """From the space's shape to one flat axis."""
        return _flatten_last(actions, self.space.shape)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From one flat axis to the space's shape and dtype."""
        return actions.reshape(*actions.shape[:-1], *self.space.shape).astype(self.space.dtype)


class GaussianHead(_ActionHead):
    """For `Box`: a Gaussian with independent components.

    What is sent to the environment is clipped to the bounds; the policy's actions and log-probabilities are
    of what was sampled.
    """

    def __init__(self, space: gym.spaces.Box, seed: int, deviation: Deviation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space, self.deviation = space, deviation
        self.in_kernel = not (deviation.of_state or deviation.use_sde)
        self.distribution = StateDependentGaussian if deviation.use_sde else DiagonalGaussian
        self.size = self.noise_size = int(np.prod(space.shape))
        self.projection = _projection(self.size, seed, "mean")
        if deviation.of_state:
            self.log_std = _projection(self.size, seed + 1, "log_std", bias=deviation.log_std_init)

    def build(self, features_shape: Sequence[int]) -> None:
        """Makes the weights that are no layer's."""
        deviation = self.deviation
        shape = (features_shape[-1], self.size) if deviation.use_sde else (self.size,)
        self.noise_size = int(np.prod(shape))
        if not deviation.of_state:
            initializer = keras.initializers.Constant(deviation.log_std_init)
            self.log_std = self.add_weight(name="log_std", shape=shape, initializer=initializer)

    def call(self, features: Any) -> DiagonalGaussian | StateDependentGaussian:
        """See `_ActionHead`."""
        mean = self.projection(features)
        if self.deviation.of_state:
            return DiagonalGaussian(mean, self.log_std(features))
        log_std = tf.convert_to_tensor(self.log_std)
        if self.deviation.use_sde:
            # The features are for the mean to learn, as in the paper's implementation.
            return StateDependentGaussian(mean, log_std, tf.stop_gradient(features))
        return DiagonalGaussian(mean, log_std)

    def held(self) -> np.ndarray:
        """All or none."""
        return np.full(self.noise_size, self.deviation.use_sde)

    def to_distribution(self, actions: Any) -> Any:
        """From the space's shape to one flat axis."""
        return _flatten_last(tf.cast(actions, tf.float32), self.space.shape)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From one flat axis to the space's shape."""
        return actions.reshape(*actions.shape[:-1], *self.space.shape)

    def legal(self, actions: np.ndarray) -> np.ndarray:
        """What the environment is sent: within bounds, of its dtype."""
        return np.clip(actions, self.space.low, self.space.high).astype(self.space.dtype)


class CompositeHead(_ActionHead):
    """For `Dict` and `Tuple`: a head for each of what they hold, independent of each other given the features."""

    def __init__(
        self, space: gym.spaces.Dict | gym.spaces.Tuple, seeds: Iterator[int], deviation: Deviation, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        items = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        self.keys, spaces = zip(*items, strict=True)
        self.is_dict = isinstance(space, gym.spaces.Dict)
        self.parts = [_head(part, seeds, deviation, f"part_{i}") for i, part in enumerate(spaces)]

    def call(self, features: Any) -> Composite:
        """See `_ActionHead`."""
        parts = tuple(part(features) for part in self.parts)
        return Composite(parts, tuple(part.noise_size for part in self.parts))

    @property
    def noise_size(self) -> int:  # type: ignore[override]
        """Of all parts, whose noises are side by side."""
        return sum(part.noise_size for part in self.parts)

    def noise(self, generator: np.random.Generator, batch_size: int) -> np.ndarray:
        """See `_ActionHead`."""
        return np.concatenate([part.noise(generator, batch_size) for part in self.parts], 1)

    def held(self) -> np.ndarray:
        """See `_ActionHead`."""
        return np.concatenate([part.held() for part in self.parts])

    def to_distribution(self, actions: Any) -> tuple[Any, ...]:
        """From the space's structure to a tuple."""
        return tuple(part.to_distribution(actions[key]) for part, key in zip(self.parts, self.keys, strict=True))

    def to_space(self, actions: tuple[Any, ...]) -> Any:
        """From a tuple to the space's structure."""
        return self._structured([part.to_space(own) for part, own in zip(self.parts, actions, strict=True)])

    def legal(self, actions: Any) -> Any:
        """What the environment is sent."""
        return self._structured([part.legal(actions[key]) for part, key in zip(self.parts, self.keys, strict=True)])

    def _structured(self, values: list[Any]) -> Any:
        return dict(zip(self.keys, values, strict=True)) if self.is_dict else tuple(values)


ActionHead = CategoricalHead | MultiCategoricalHead | BernoulliHead | GaussianHead | CompositeHead


def action_head(space: gym.Space, seed: int, deviation: Deviation) -> ActionHead:
    """The head for an action space.

    Raises:
        UserError: a space that no head is for.
    """
    return _head(space, itertools.count(seed, 2), deviation, "action_head")


def _head(space: gym.Space, seeds: Iterator[int], deviation: Deviation, name: str) -> ActionHead:
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(space, next(seeds), name=name)
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.size:
        return MultiCategoricalHead(space, next(seeds), name=name)
    if isinstance(space, gym.spaces.MultiBinary):
        return BernoulliHead(space, next(seeds), name=name)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating) and np.prod(space.shape):
        return GaussianHead(space, next(seeds), deviation, name=name)
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)) and len(space.spaces):
        return CompositeHead(space, seeds, deviation, name=name)
    raise UserError(
        "action space must be Discrete, MultiDiscrete, MultiBinary, Box of floats, or Dict or Tuple of these, and not "
        f"empty; got {space}"
    )


def _projection(size: int, seed: int, name: str, bias: float = 0.0) -> keras.layers.Dense:
    return keras.layers.Dense(
        size,
        kernel_initializer=keras.initializers.Orthogonal(POLICY_GAIN, seed),
        bias_initializer=keras.initializers.Constant(bias),
        name=name,
    )


def _split_last(values: Any, shape: Sequence[int]) -> Any:
    """`[..., prod(shape)]` to `[..., *shape]`."""
    return tf.reshape(values, tf.concat([tf.shape(values)[:-1], shape], 0))


def _flatten_last(values: Any, shape: Sequence[int]) -> Any:
    """`[..., *shape]` to `[..., prod(shape)]`."""
    leading = tf.shape(values)[: values.shape.rank - len(shape)]
    return tf.reshape(values, tf.concat([leading, [int(np.prod(shape))]], 0))
