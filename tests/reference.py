"""The masked layer-normalised LSTM, written from its equations, as the reference for all implementations.

For each step t, with m_t the mask and LN(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over the last axis:

    h, c = m_t * h, m_t * c
    z    = LN(x_t @ kernel) * kernel_gamma + LN(h @ recurrent_kernel) * recurrent_gamma + bias
    i, f, o, g = split(z, 4)
    c    = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h    = sigmoid(o) * tanh(LN(c) * cell_gamma + cell_beta)

`masked_ln_lstm` is NumPy and computes in float64, whatever it is given. `unrolled` is the same loop in plain
TensorFlow, for automatic differentiation. Both are slow, batch-major, and share no code with the package or each other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

EPSILON = 1e-5
MASK_PATTERNS = ("none", "never", "first", "last", "every", "random")


class Weights(NamedTuple):
    """The weights in the order of `layer.get_weights()`."""

    kernel: Any  # [features, 4 * units]
    recurrent_kernel: Any  # [units, 4 * units]
    kernel_gamma: Any  # [4 * units]
    recurrent_gamma: Any  # [4 * units]
    bias: Any  # [4 * units]
    cell_gamma: Any  # [units]
    cell_beta: Any  # [units]


class Case(NamedTuple):
    """The inputs of a layer. `masks` is `None` or float64 of zeros and ones."""

    weights: Weights
    xs: np.ndarray  # [batch, time, features]
    masks: np.ndarray | None  # [batch, time]
    h0: np.ndarray  # [batch, units]
    c0: np.ndarray  # [batch, units]


def random_case(batch: int, time: int, features: int, units: int, masks: str = "random", seed: int = 0) -> Case:
    """Random weights (gains and offsets too), inputs, nonzero initial state, and a pattern of resets."""
    rng = np.random.default_rng([seed, batch, time, features, units])
    weights = Weights(
        kernel=rng.normal(size=(features, 4 * units)) / np.sqrt(features),
        recurrent_kernel=rng.normal(size=(units, 4 * units)) / np.sqrt(units),
        kernel_gamma=rng.uniform(0.5, 1.5, 4 * units),
        recurrent_gamma=rng.uniform(0.5, 1.5, 4 * units) * rng.choice([-1.0, 1.0], 4 * units),
        bias=rng.normal(size=4 * units),
        cell_gamma=rng.uniform(0.5, 1.5, units),
        cell_beta=rng.normal(size=units),
    )
    return Case(
        weights,
        xs=rng.normal(size=(batch, time, features)),
        masks=reset_masks(rng, batch, time, masks),
        h0=rng.uniform(-0.9, 0.9, (batch, units)),
        c0=rng.normal(size=(batch, units)),
    )


def reset_masks(rng: np.random.Generator, batch: int, time: int, pattern: str) -> np.ndarray | None:
    """Masks `[batch, time]`, zero where the named one of `MASK_PATTERNS` resets the state."""
    if pattern == "none":
        return None
    masks = np.ones((batch, time))
    if pattern == "first":
        masks[:, :1] = 0.0
    elif pattern == "last":
        masks[:, -1:] = 0.0
    elif pattern == "every":
        masks[:] = 0.0
    elif pattern == "random":
        masks[rng.random((batch, time)) < 0.3] = 0.0
    elif pattern != "never":
        raise ValueError(f"pattern: got {pattern!r}, expected one of {MASK_PATTERNS}")
    return masks


def set_weights(layer: Any, weights: Weights) -> Any:
    """Builds a layer with these weights, and returns it."""
    layer.build((None, None, weights.kernel.shape[0]))
    layer.set_weights(list(weights))
    return layer


def masked_ln_lstm(
    weights: Weights,
    xs: np.ndarray,
    masks: np.ndarray | None = None,
    h0: np.ndarray | None = None,
    c0: np.ndarray | None = None,
    padding: np.ndarray | None = None,
    recurrent_dropout: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run the layer over `xs` `[batch, time, features]`: all outputs `[batch, time, units]`, final h and c, float64.

    Where `padding` `[batch, time]` is False, the step is left out, and its output is that of the step before (zero if
    there is none). `recurrent_dropout` `[batch, units]` multiplies h in the product with the recurrent kernel.
    """

    def normalised(v):
        mean = v.mean(axis=-1, keepdims=True)
        var = ((v - mean) ** 2).mean(axis=-1, keepdims=True)
        return (v - mean) / np.sqrt(var + EPSILON)

    def sigmoid(v):
        return 0.5 * (1.0 + np.tanh(0.5 * v))

    w = Weights(*(np.asarray(weight, np.float64) for weight in weights))
    xs = np.asarray(xs, np.float64)
    batch, time, _ = xs.shape
    units = w.cell_gamma.size
    masks = np.ones((batch, time)) if masks is None else np.asarray(masks, np.float64)
    h = np.zeros((batch, units)) if h0 is None else np.asarray(h0, np.float64)
    c = np.zeros((batch, units)) if c0 is None else np.asarray(c0, np.float64)

    ys = np.empty((batch, time, units))
    for t in range(time):
        before = h, c
        m = masks[:, t, np.newaxis]
        h, c = m * h, m * c
        if recurrent_dropout is not None:
            h = h * recurrent_dropout
        from_input = normalised(xs[:, t] @ w.kernel) * w.kernel_gamma
        from_state = normalised(h @ w.recurrent_kernel) * w.recurrent_gamma
        i, f, o, g = np.split(from_input + from_state + w.bias, 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(normalised(c) * w.cell_gamma + w.cell_beta)
        ys[:, t] = h
        if padding is not None:
            is_step = padding[:, t, np.newaxis].astype(bool)
            h, c = np.where(is_step, h, before[0]), np.where(is_step, c, before[1])
            ys[:, t] = np.where(is_step, h, ys[:, t - 1] if t else 0.0)
    return ys, h, c


def unrolled(weights, xs, masks, h, c):
    """Run the same loop in TensorFlow, one step after another, in the dtype of `xs`; needs a static time >= 1."""

    def layer_norm(v):
        mean, variance = tf.nn.moments(v, axes=[-1], keepdims=True)
        return (v - mean) * tf.math.rsqrt(variance + EPSILON)

    kernel, recurrent_kernel, kernel_gamma, recurrent_gamma, bias, cell_gamma, cell_beta = weights
    ys = []
    for t, x in enumerate(tf.unstack(xs, axis=1)):
        if masks is not None:
            h, c = masks[:, t, None] * h, masks[:, t, None] * c
        z = layer_norm(x @ kernel) * kernel_gamma + layer_norm(h @ recurrent_kernel) * recurrent_gamma + bias
        i, f, o, g = tf.split(z, 4, axis=-1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        h = tf.sigmoid(o) * tf.tanh(layer_norm(c) * cell_gamma + cell_beta)
        ys.append(h)
    return tf.stack(ys, axis=1), h, c


def central_differences(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Return the gradient of a scalar function, one element at a time.

    The step must stay far below sqrt(EPSILON): LN bends at that scale where its argument is constant, as at a reset.
    """
    gradient = np.empty(at.shape)
    for index in np.ndindex(at.shape):
        above, below = at.copy(), at.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (above[index] - below[index])
    return gradient
