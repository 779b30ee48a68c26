"""Encoders: networks from observations of any space to features, one small network for each leaf of the space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.convolution import Conv2D, Pixels
from rl_lnlstm.policies.normalization import RunningStatistics
from rl_lnlstm.spaces import categories, flatten, is_categorical, leaves, width

HIDDEN_GAIN = 2**0.5  # He et al. (2015): keeps the variance through a ReLU layer
# Only the elementwise functions of keras.activations. A saved policy names one, and must not name anything else.
ACTIVATIONS = (
    *("celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "leaky_relu", "linear", "log_sigmoid", "mish"),
    *("relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign", "swish", "tanh"),
)
VECTOR_LAYERS, IMAGE_LAYERS = (64,), (512,)

# Filters, kernel size and stride, by the smallest side of an image in pixels. The first network is from Mnih et al.
# (2015), "Human-level control through deep reinforcement learning", which Stable-Baselines calls `nature_cnn`. The last
# one is for grids of symbols, such as MiniGrid's 7 x 7.
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
SMALLEST_NATURE = 48
CONVOLUTIONS = {SMALLEST_NATURE: NATURE, 16: ((32, 4, 2), (64, 3, 2), (64, 3, 1)), 5: ((32, 3, 1), (64, 3, 1))}
SMALLEST_IMAGE, SMALLEST_PHOTOGRAPH = 5, 16  # sides, in pixels
IMAGE_CLIP = 5.0  # normalised pixels are clipped to +/- this
SYMBOL_WIDTH = 8


def endless_seeds(seed: int | None) -> Iterator[int]:
    """An infinite sequence of seeds that is derived from one seed."""
    generator = np.random.default_rng(seed)
    while True:
        yield int(generator.integers(2**31))


def check_activation(activation: str) -> None:
    """Raises `UserError` unless the activation is one of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise UserError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")


def dense(units: int, activation: str, seed: int, name: str) -> keras.layers.Dense:
    """A hidden layer with the usual initialisation.

    Raises:
        UserError: a width below 1, or an activation that Keras does not know.
    """
    if units < 1:
        raise UserError(f"a layer's width must be at least 1, got {units}")
    check_activation(activation)
    initializer = keras.initializers.Orthogonal(HIDDEN_GAIN, seed)
    return keras.layers.Dense(units, activation=activation, kernel_initializer=initializer, name=name)


def as_floats(space: gym.Space, values: Any) -> Any:
    """Converts a leaf's values `[n, *shape]` to the input of an encoder: float32, categories one-hot."""
    if is_categorical(space):
        component, value = categories(space)
        flat = tf.reshape(tf.cast(values, tf.int64), [-1, int(component[-1]) + 1])
        return tf.cast(tf.equal(tf.gather(flat, component, axis=1), value), tf.float32)
    return tf.cast(values, tf.float32)


def flattened(space: gym.Space, floats: Any) -> Any:
    """Concatenates the results of `as_floats` for all leaves, each `[n, ...]`, to `[n, features]`."""
    parts = flatten(space, floats)
    return tf.concat([tf.reshape(part, [-1, int(np.prod(part.shape[1:]))]) for part in parts], -1)


def input_shape(space: gym.Space) -> tuple[int, ...]:
    """The shape of the result of `as_floats` for a leaf, without the batch axis."""
    return (width(space),) if is_categorical(space) else space.shape or ()


def is_image(space: gym.Space) -> bool:
    """Whether convolutions suit a leaf: an image of bytes, or a large one of floats from 0 to 1."""
    if not isinstance(space, gym.spaces.Box) or not 2 <= len(space.shape) <= 4:
        return False
    side, low, high = _smaller_side(space.shape), space.low, space.high
    if space.dtype == np.uint8:
        return side >= SMALLEST_IMAGE and bool((low == 0).all() and (high == 255).all())
    floating = np.issubdtype(space.dtype, np.floating)
    return floating and side >= SMALLEST_PHOTOGRAPH and bool((low == 0).all() and (high == 1).all())


def running_statistics(space: gym.Space) -> RunningStatistics | None:
    """The statistics that normalise a leaf; None if its values are no quantities.

    Each pixel of an image has its own statistics, as in Burda et al. (2018), "Exploration by random network
    distillation". Pixels that never change become 0, and moving objects stand out. Without this, a bright background
    dominates the input of the first layer, and many of its units die.
    """
    if not isinstance(space, gym.spaces.Box) or (is_image(space) and _is_symbols(space)):
        return None
    if is_image(space) or _is_bytes(space):
        unit = 255.0 if _is_bytes(space) else 1.0
        # A large epsilon, so that noise of 1/100 in a pixel that hardly ever changes is not amplified.
        return RunningStatistics(space.shape, IMAGE_CLIP, unit, (unit / 100) ** 2)
    return RunningStatistics(space.shape) if np.issubdtype(space.dtype, np.floating) else None


def perceptron(
    space: gym.Space,
    widths: Sequence[int] | None,
    activation: str,
    seeds: Iterator[int],
    normalized: bool,
    prefix: str = "encoder",
) -> list[keras.layers.Layer]:
    """The layers for a flattened leaf. `normalized`: its `running_statistics` are applied before."""
    widths = VECTOR_LAYERS if widths is None else widths
    layers = [dense(units, activation, next(seeds), f"{prefix}_{i}") for i, units in enumerate(widths)]
    return [*_bytes_to_fractions(space, normalized), keras.layers.Flatten(), *layers]


def convolutions(
    space: gym.Space, widths: Sequence[int] | None, seeds: Iterator[int], normalized: bool, prefix: str = "encoder"
) -> list[keras.layers.Layer]:
    """The layers for an image: convolutions, then dense layers, all with ReLU.

    `normalized`: its `running_statistics` are applied before.

    Raises:
        UserError: the image is too small.
    """
    side = _smaller_side(space.shape or ())
    if side < SMALLEST_IMAGE:
        raise UserError(
            f"an image for convolutions must be at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE}, got {space}: "
            "MlpLnLstmPolicy takes observations of any size"
        )
    network = next(layers for smallest, layers in CONVOLUTIONS.items() if side >= smallest)
    layers: list[keras.layers.Layer]
    if _is_symbols(space) and not _has_statistics(space, normalized):
        # So few pixels are symbols, and the distance between two symbols means nothing.
        rows, columns, channels = image_size(space.shape or ())
        initializer = keras.initializers.RandomNormal(stddev=1.0, seed=next(seeds))
        layers = [
            *_channels_last(space.shape or ()),
            keras.layers.Embedding(256, SYMBOL_WIDTH, embeddings_initializer=initializer, name=f"{prefix}_symbols"),
            keras.layers.Reshape((rows, columns, channels * SYMBOL_WIDTH)),
        ]
    else:
        layers = _pixels(space, normalized)
    for i, (filters, size, stride) in enumerate(network):
        initializer = keras.initializers.Orthogonal(HIDDEN_GAIN, next(seeds))
        name = f"{prefix}_convolution_{i}"
        layers.append(Conv2D(filters, size, stride, activation="relu", kernel_initializer=initializer, name=name))
    widths = IMAGE_LAYERS if widths is None else widths
    hidden = [dense(units, "relu", next(seeds), f"{prefix}_{i}") for i, units in enumerate(widths)]
    return [*layers, keras.layers.Flatten(), *hidden]


def stack(space: gym.Space, layers: Sequence[keras.layers.Layer]) -> keras.Model:
    """The encoder for observations that are a single leaf."""
    return keras.Sequential([keras.Input(input_shape(space)), *layers], name="encoder")


def multi_input(
    space: gym.Space, widths: Sequence[int] | None, activation: str, seeds: Iterator[int], normalized: bool
) -> keras.Model:
    """A network for each leaf: convolutions for images, perceptrons for all others. Features are concatenated."""
    inputs = _inputs(space)
    features = []
    for number, (leaf, tensor) in enumerate(zip(leaves(space), flatten(space, inputs), strict=True)):
        prefix = f"encoder_{number}"
        layers = (
            convolutions(leaf, widths, seeds, normalized, prefix)
            if is_image(leaf)
            else perceptron(leaf, widths, activation, seeds, normalized, prefix)
        )
        for layer in layers:
            tensor = layer(tensor)
        features.append(tensor)
    joined = features[0] if len(features) == 1 else keras.layers.Concatenate()(features)
    return keras.Model(inputs, joined, name="encoder")


def _inputs(space: gym.Space, name: str | None = None) -> Any:
    """Symbolic inputs in the structure of the space. Keras expects the inputs of a dict to be named like its keys."""
    if isinstance(space, gym.spaces.Dict):
        return {key: _inputs(inner, None if name or "/" in key else key) for key, inner in space.spaces.items()}
    if isinstance(space, gym.spaces.Tuple):
        return tuple(_inputs(inner) for inner in space.spaces)
    return keras.Input(input_shape(space), name=name)


def _is_bytes(space: gym.Space) -> bool:
    return isinstance(space, gym.spaces.Box) and space.dtype == np.uint8 and bool((space.high == 255).all())


def _is_symbols(image: gym.Space) -> bool:
    """Whether an image has so few pixels, of byte values, that they are treated as symbols."""
    return image.dtype == np.uint8 and _smaller_side(image.shape or ()) < SMALLEST_PHOTOGRAPH


def _scale(space: gym.Space, normalized: bool) -> float:
    """What bytes are multiplied by, unless they are normalised."""
    return 1 / 255 if _is_bytes(space) and not _has_statistics(space, normalized) else 1.0


def _bytes_to_fractions(space: gym.Space, normalized: bool) -> list[keras.layers.Layer]:
    scale = _scale(space, normalized)
    return [] if scale == 1 else [keras.layers.Rescaling(scale)]


def _pixels(space: gym.Space, normalized: bool) -> list[keras.layers.Layer]:
    """Layers that convert an image to `[height, width, channels]`, and its bytes to fractions."""
    shape, scale = space.shape or (), _scale(space, normalized)
    if len(shape) == 4:
        return [*_channels_last(shape), *_bytes_to_fractions(space, normalized)]
    size = image_size(shape)
    return [] if size == shape and scale == 1 else [Pixels(scale, channels_first=len(shape) == 3 and size != shape)]


def _has_statistics(space: gym.Space, normalized: bool) -> bool:
    return normalized and running_statistics(space) is not None


def image_size(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels. The channels of stacked frames are merged."""
    if len(shape) == 2:
        return *shape, 1
    if len(shape) == 4:
        rows, columns, channels = image_size(shape[1:])
        return rows, columns, channels * shape[0]
    channels_first = shape[0] < shape[2] and shape[0] <= shape[1]
    return (*shape[1:], shape[0]) if channels_first else shape  # type: ignore[return-value]


def _smaller_side(shape: tuple[int, ...]) -> int:
    return min(image_size(shape)[:2])


def _channels_last(shape: tuple[int, ...]) -> list[keras.layers.Layer]:
    """Layers that convert to `[height, width, channels]`, which convolutions on a CPU need."""
    size = image_size(shape)
    if len(shape) == 4:
        order = (2, 3, 1, 4) if image_size(shape[1:]) == shape[1:] else (3, 4, 1, 2)
        return [keras.layers.Permute(order), keras.layers.Reshape(size)]
    if len(shape) == 2:
        return [keras.layers.Reshape(size)]
    return [] if size == shape else [keras.layers.Permute((2, 3, 1))]
