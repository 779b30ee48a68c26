"""Action heads: layers from features to a distribution of actions, one class for each kind of action space."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.config import PolicyOptions
from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.distributions import (
    Bernoulli,
    Categorical,
    Composite,
    DiagonalGaussian,
    MultiCategorical,
    StateDependentGaussian,
)
from rl_lnlstm.spaces import centre_and_half_range, has_box

# A small gain makes the first policy nearly uniform (Andrychowicz et al., 2021, "What matters in on-policy RL?").
POLICY_GAIN = 0.01
CERTAIN = 1e9  # the logit of a certain action; infinity would make log-probabilities NaN


class _ActionHead(keras.layers.Layer):
    """Base class of the heads: maps features `[..., f]` to a distribution over `[...]`.

    Actions have two forms. The distribution's form is flat and counts from 0. The space's form has the structure, the
    shape and the numbering of the action space; it is what `RecurrentPolicy.step` returns.

    Attributes:
        in_kernel: whether the compiled step implements this head.
        noise_size: number of columns of the noise for the distribution's `sample`.
        features_size: number of columns that `features` returns.
        projection: the layer from the features to the parameters of the distribution.
    """

    distribution: type[Any]
    in_kernel: bool = False
    noise_size: int
    features_size: int
    projection: keras.layers.Dense

    def noise(self, generator: np.random.Generator, batch_size: int) -> np.ndarray:
        """Draws the noise for sampling a batch of actions."""
        return self.distribution.noise(generator, (batch_size, self.noise_size))

    def no_noise(self, batch_size: int) -> np.ndarray:
        """The noise with which `sample` gives the most probable actions."""
        return np.zeros((batch_size, self.noise_size), np.float32)

    def held(self) -> np.ndarray:
        """Which columns of the noise are kept until `reset_noise` is called, `[noise_size]` bool."""
        return np.zeros(self.noise_size, bool)

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Converts sampled actions to elements of the action space."""
        return actions

    def scale(self, actions: Any) -> Any:
        """The inverse of `clip` for actions within the bounds of the action space."""
        return actions


class CategoricalHead(_ActionHead):
    """For `Discrete`."""

    distribution = Categorical
    in_kernel = True

    def __init__(self, space: gym.spaces.Discrete, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space = space
        self.noise_size = self.features_size = int(space.n)
        self.projection = _projection(self.noise_size, seed, "logits")

    def call(self, features: Any, action_masks: Any = None) -> Categorical:
        """`action_masks`, `[..., n]` bool, are false where an action is illegal."""
        logits = self.projection(features)
        return Categorical(logits if action_masks is None else tf.where(action_masks, logits, -np.inf))

    def to_distribution(self, actions: Any) -> Any:
        """Converts the space's numbering to one that counts from 0."""
        return tf.cast(actions, tf.int64) - int(self.space.start)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """Converts a numbering that counts from 0 to the space's, in its dtype."""
        return (actions + int(self.space.start)).astype(self.space.dtype)

    def features(self, actions: Any) -> Any:
        """One-hot, `[..., n]`."""
        return tf.one_hot(actions, self.noise_size)


class MultiCategoricalHead(_ActionHead):
    """For `MultiDiscrete`: a categorical for each component, padded to the largest number of values."""

    distribution = MultiCategorical

    def __init__(self, space: gym.spaces.MultiDiscrete, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space = space
        sizes = space.nvec.ravel()
        self.shape = (len(sizes), int(sizes.max()))
        self.noise_size, self.features_size = int(np.prod(self.shape)), int(sizes.sum())
        self.projection = _projection(self.noise_size, seed, "logits")
        columns = np.arange(self.shape[1])
        self.exists = columns < sizes[:, np.newaxis]
        # The position of each logit in a mask. Masks do not contain the padding.
        self.positions = np.where(self.exists, (np.cumsum(sizes) - sizes)[:, np.newaxis] + columns, 0)

    def call(self, features: Any, action_masks: Any = None) -> MultiCategorical:
        """`action_masks`, `[..., sum(nvec)]` bool, are false where a component's value is illegal."""
        logits = _split_last(self.projection(features), self.shape)
        legal = tf.constant(self.exists)
        if action_masks is not None:
            legal &= tf.gather(action_masks, self.positions, axis=-1)
        return MultiCategorical(tf.where(legal, logits, -np.inf))

    def to_distribution(self, actions: Any) -> Any:
        """Converts the space's shape and numbering to one flat axis that counts from 0."""
        return _flatten_last(tf.cast(actions, tf.int64) - self.space.start.astype(np.int64), self.space.shape)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """Converts one flat axis that counts from 0 to the space's shape, numbering and dtype."""
        return (actions.reshape(*actions.shape[:-1], *self.space.shape) + self.space.start).astype(self.space.dtype)

    def features(self, actions: Any) -> Any:
        """One-hot, `[..., sum(nvec)]`, all components side by side."""
        one_hot = _flatten_last(tf.one_hot(actions, self.shape[1]), self.shape)
        return tf.gather(one_hot, np.flatnonzero(self.exists), axis=-1)


class BernoulliHead(_ActionHead):
    """For `MultiBinary`."""

    distribution = Bernoulli

    def __init__(self, space: gym.spaces.MultiBinary, seed: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space = space
        self.noise_size = self.features_size = int(np.prod(space.shape))
        self.projection = _projection(self.noise_size, seed, "logits")

    def call(self, features: Any, action_masks: Any = None) -> Bernoulli:
        """`action_masks` are `[..., 2 * n]` bool: for each bit, whether 0 is legal and whether 1 is legal."""
        logits = self.projection(features)
        if action_masks is not None:
            legal = _split_last(action_masks, (self.noise_size, 2))
            logits = tf.where(legal[..., 0], tf.where(legal[..., 1], logits, -CERTAIN), CERTAIN)
        return Bernoulli(logits)

    def to_distribution(self, actions: Any) -> Any:
        """From the space's shape to one flat axis."""
        return _flatten_last(actions, self.space.shape)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From one flat axis to the space's shape and dtype."""
        return actions.reshape(*actions.shape[:-1], *self.space.shape).astype(self.space.dtype)

    def features(self, actions: Any) -> Any:
        """The bits as floats, `[..., n]`."""
        return tf.cast(actions, tf.float32)


class GaussianHead(_ActionHead):
    """For `Box`: a Gaussian with independent components.

    With `rescale_actions`, components with two finite bounds are scaled, so that [-1, 1] covers the range between the
    bounds. Sampled actions are neither scaled nor clipped, and log-probabilities refer to them. Only `clip` converts
    actions to the environment's units, centre + half_range * actions, and clips them to its bounds.
    """

    def __init__(self, space: gym.spaces.Box, seed: int, options: PolicyOptions, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.space, self.std, self.log_std_init = space, options.std, options.log_std_init
        self.in_kernel = options.std == "free"
        self.distribution = StateDependentGaussian if options.std == "gsde" else DiagonalGaussian
        self.size = self.noise_size = self.features_size = int(np.prod(space.shape))
        centre, half_range = centre_and_half_range(space)
        self.rescaled = ((centre != 0) | (half_range != 1)) & options.rescale_actions
        self.centre, self.half_range = np.where(self.rescaled, centre, 0.0), np.where(self.rescaled, half_range, 1.0)
        self.projection = _projection(self.size, seed, "mean")
        if self.std == "network":
            self.log_std = _projection(self.size, seed + 1, "log_std", bias=options.log_std_init)

    def build(self, features_shape: Sequence[int]) -> None:
        """Makes the weights: log standard deviations, if they are weights."""
        shape = (features_shape[-1], self.size) if self.std == "gsde" else (self.size,)
        self.noise_size = int(np.prod(shape))
        if self.std != "network":
            initializer = keras.initializers.Constant(self.log_std_init)
            self.log_std = self.add_weight(name="log_std", shape=shape, initializer=initializer)

    def call(self, features: Any) -> DiagonalGaussian | StateDependentGaussian:
        """See `_ActionHead`."""
        mean = self.projection(features)
        if self.std == "network":
            return DiagonalGaussian(mean, self.log_std(features))
        log_std = tf.convert_to_tensor(self.log_std)
        if self.std == "gsde":
            # As in the paper's implementation, no gradient of the standard deviation reaches the features.
            return StateDependentGaussian(mean, log_std, tf.stop_gradient(features))
        return DiagonalGaussian(mean, log_std)

    def held(self) -> np.ndarray:
        """All columns with gSDE, otherwise none."""
        return np.full(self.noise_size, self.std == "gsde")

    def to_distribution(self, actions: Any) -> Any:
        """From the space's shape to one flat axis."""
        return _flatten_last(tf.cast(actions, tf.float32), self.space.shape)

    def to_space(self, actions: np.ndarray) -> np.ndarray:
        """From one flat axis to the space's shape."""
        return actions.reshape(*actions.shape[:-1], *self.space.shape)

    def features(self, actions: Any) -> Any:
        """The actions, clipped to their bounds, `[..., n]`."""
        low = np.where(self.rescaled, -1.0, self.space.low).astype(np.float32)
        high = np.where(self.rescaled, 1.0, self.space.high).astype(np.float32)
        return tf.clip_by_value(actions, low.ravel(), high.ravel())

    def clip(self, actions: np.ndarray) -> np.ndarray:
        """Converts actions to the environment's units and the space's dtype, and clips them to the bounds."""
        if self.rescaled.any():
            unit = np.clip(actions, -1, 1).astype(np.float64)
            actions = np.where(self.rescaled, self.centre + self.half_range * unit, actions)
        return np.clip(actions, self.space.low, self.space.high).astype(self.space.dtype)

    def scale(self, actions: Any) -> np.ndarray:
        """See `_ActionHead`. A component whose bounds are the same becomes 0."""
        size = np.where(self.half_range > 0, self.half_range, 1.0)
        return ((np.asarray(actions, np.float64) - self.centre) / size).astype(np.float32)


class CompositeHead(_ActionHead):
    """For `Dict` and `Tuple`: one head for each entry. Given the features, the entries are independent."""

    def __init__(
        self, space: gym.spaces.Dict | gym.spaces.Tuple, seeds: Iterator[int], options: PolicyOptions, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.space = space
        items = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        self.keys, spaces = zip(*items, strict=True)
        self.is_dict = isinstance(space, gym.spaces.Dict)
        self.parts = [_head(part, seeds, options, f"part_{i}") for i, part in enumerate(spaces)]

    def call(self, features: Any) -> Composite:
        """See `_ActionHead`."""
        return Composite(tuple(part(features) for part in self.parts), tuple(part.noise_size for part in self.parts))

    @property
    def noise_size(self) -> int:  # type: ignore[override]
        """Number of columns of the noise of all parts, side by side."""
        return sum(part.noise_size for part in self.parts)

    @property
    def features_size(self) -> int:  # type: ignore[override]
        """Number of columns of the features of all parts, side by side."""
        return sum(part.features_size for part in self.parts)

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

    def features(self, actions: tuple[Any, ...]) -> Any:
        """The features of all parts, side by side."""
        return tf.concat([part.features(own) for part, own in zip(self.parts, actions, strict=True)], -1)

    def clip(self, actions: Any) -> Any:
        """See `_ActionHead`."""
        return self._structured([part.clip(actions[key]) for part, key in zip(self.parts, self.keys, strict=True)])

    def scale(self, actions: Any) -> Any:
        """See `_ActionHead`."""
        return self._structured([part.scale(actions[key]) for part, key in zip(self.parts, self.keys, strict=True)])

    def _structured(self, values: list[Any]) -> Any:
        return dict(zip(self.keys, values, strict=True)) if self.is_dict else tuple(values)


ActionHead = CategoricalHead | MultiCategoricalHead | BernoulliHead | GaussianHead | CompositeHead


def action_head(space: gym.Space, options: PolicyOptions, seed: int) -> ActionHead:
    """The head for an action space.

    Raises:
        UserError: no head supports the space, or `std="gsde"` was given for a space without a `Box`.
    """
    head = _head(space, itertools.count(seed, 2), options, "action_head")
    if options.std == "gsde" and not has_box(space):  # only a Box has standard deviations
        raise UserError(f"std='gsde' needs Box actions, but the action space is {space}")
    return head


def _head(space: gym.Space, seeds: Iterator[int], options: PolicyOptions, name: str) -> ActionHead:
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(space, next(seeds), name=name)
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.size:
        return MultiCategoricalHead(space, next(seeds), name=name)
    if isinstance(space, gym.spaces.MultiBinary):
        return BernoulliHead(space, next(seeds), name=name)
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating) and np.prod(space.shape):
        return GaussianHead(space, next(seeds), options, name=name)
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)) and len(space.spaces):
        return CompositeHead(space, seeds, options, name=name)
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
    return tf.reshape(values, tf.concat([tf.shape(values)[: values.shape.rank - len(shape)], [int(np.prod(shape))]], 0))
