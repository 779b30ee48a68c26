"""The equations of the masked layer-normalised LSTM and one step of it.

For each step t, with m_t the mask and LN(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over the last axis::

    h, c = m_t * h, m_t * c
    z    = LN(x_t @ kernel) * kernel_gamma + LN(h @ recurrent_kernel) * recurrent_gamma + bias
    i, f, o, g = split(z, 4)
    c    = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h    = sigmoid(o) * tanh(LN(c) * cell_gamma + cell_beta)

Sources: Ba, Kiros and Hinton (2016), equations 20 to 22, for layer normalisation; OpenAI baselines, `lnlstm`, for masks
and the order of the gates.

All functions work on rows, `[..., n]`. Under mixed precision only matrix products use the compute dtype. Everything
else uses the `wide` dtype, float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

EPSILON = 1e-5

Tensor = Any  # a tf.Tensor; TensorFlow ships no types


class State(NamedTuple):
    """The recurrent state: `h` and `c`, each `[batch, units]`."""

    h: Tensor
    c: Tensor


class Weights(NamedTuple):
    """The layer's weights, for D features and U units. The gates are in the order i, f, o, g."""

    kernel: Tensor  # [D, 4U]
    recurrent_kernel: Tensor  # [U, 4U]
    kernel_gamma: Tensor  # [4U]
    recurrent_gamma: Tensor  # [4U]
    bias: Tensor  # [4U]
    cell_gamma: Tensor  # [U]
    cell_beta: Tensor  # [U]


def step(inputs: Tensor, state: State, weights: Weights) -> State:
    """One step without a mask. `inputs` `[batch, D]`, `state` and the result have the compute dtype."""
    dtype = inputs.dtype
    weights = cast(weights, wide(dtype))
    # For a single step it is cheaper to centre the products. `recurrence.unroll` centres the kernels once for all
    # steps.
    x_hat = normalise(centre(matmul(inputs, weights.kernel, dtype)))
    r_hat = normalise(centre(matmul(state.h, weights.recurrent_kernel, dtype)))
    c = tf.cast(state.c, wide(dtype))
    state, _ = advance(*gates(input_part(x_hat, weights), r_hat, weights), c, weights)
    return State(tf.cast(state.h, dtype), tf.cast(state.c, dtype))


def reset(state: State, mask: Tensor) -> State:
    """The state that enters a step: unchanged where `mask` `[batch, 1]` is 1, zeros where it is 0, even for NaN."""
    # 0 * nan is nan, and NaN in one episode must not reach the next one. tf.math.multiply_no_nan would be one operation
    # less, but ONNX has none like it.
    ends, zero = tf.equal(mask, 0), tf.zeros([], mask.dtype)
    return State(*(tf.where(ends, zero, part * mask) for part in state))


def enter(state: State, mask: Tensor | None, dropout: Tensor | None) -> State:
    """The state that enters a step: reset by `mask` `[batch, 1]`, and h multiplied by `dropout` `[batch, units]`.

    The function is linear and diagonal in the state, so applying it to a gradient gives its own gradient.
    """
    if mask is not None:
        state = reset(state, mask)
    return state if dropout is None else State(state.h * dropout, state.c)


def input_part(x_hat: Tensor, w: Weights) -> Tensor:
    """The part of z, `[..., 4U]`, that does not depend on the state."""
    return tf.nn.bias_add(x_hat * w.kernel_gamma, w.bias)


def gates(input_part: Tensor, r_hat: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """The gates i, f and o side by side, `[..., 3U]`, and g, `[..., U]`, from the two parts of z."""
    units = w.cell_gamma.shape[0]
    sigmoids, g = tf.split(r_hat * w.recurrent_gamma + input_part, [3 * units, units], -1)
    return tf.sigmoid(sigmoids), tf.tanh(g)


def advance(sigmoids: Tensor, g: Tensor, c: Tensor, w: Weights) -> tuple[State, Tensor]:
    """The new state from the gates and the old cell, and the inverse standard deviation of the new cell."""
    i, f, o = tf.split(sigmoids, 3, -1)
    c = f * c + i * g
    centred = centre(c)
    scale = inverse_std(centred)
    return State(o * tf.tanh(centred * scale * w.cell_gamma + w.cell_beta), c), scale


def centre(v: Tensor) -> Tensor:
    """Subtracts the mean of each row."""
    return v - tf.reduce_mean(v, -1, keepdims=True)


def inverse_std(centred: Tensor) -> Tensor:
    """1 / sqrt(var + epsilon) of rows whose mean is zero, `[..., 1]`."""
    return tf.math.rsqrt(row_mean(tf.square(centred)) + EPSILON)


def normalise(centred: Tensor) -> Tensor:
    """LN(v) from the centred v."""
    return centred * inverse_std(centred)


def normalise_gradient(d: Tensor, hat: Tensor, scale: Tensor) -> Tensor:
    """The gradient of v from `d`, the gradient of LN(v). (Ba, Kiros and Hinton, 2016, appendix); `scale` is 1 / std."""
    return (d - row_mean(d) - hat * row_mean(d * hat)) * scale


def row_mean(v: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean(v * weights) over the last axis of rows `[n, width]`, as `[n, 1]`."""
    # A product with a column takes half the time of tf.reduce_mean over the last axis, on CPU and under XLA.
    width = v.shape[-1]
    column = (
        tf.constant(np.full([width, 1], 1 / width), v.dtype)
        if weights is None
        else tf.reshape(weights, [-1, 1]) / width
    )
    return tf.matmul(v, column)


def matmul(rows: Tensor, kernel: Tensor, dtype: tf.DType) -> Tensor:
    """A matrix product that is computed in `dtype` and returned in the wide dtype."""
    if dtype == tf.float16:
        return _half_matmul(tf.cast(rows, dtype), tf.cast(kernel, wide(dtype)))
    return tf.cast(tf.matmul(tf.cast(rows, dtype), tf.cast(kernel, dtype)), wide(dtype))


@tf.custom_gradient
def _half_matmul(rows: Tensor, kernel: Tensor) -> tuple[Tensor, Callable]:
    """A product in float16 whose gradient is in float32, because 1 / std times a loss scale can exceed 65504."""

    def gradient(d: Tensor) -> tuple[Tensor, Tensor]:
        d_rows = tf.matmul(d, kernel, transpose_b=True)
        return tf.cast(d_rows, rows.dtype), tf.matmul(tf.cast(rows, d.dtype), d, transpose_a=True)

    return tf.cast(tf.matmul(rows, tf.cast(kernel, rows.dtype)), tf.float32), gradient


def cast(weights: Weights, dtype: tf.DType) -> Weights:
    """Casts the weights to `dtype`."""
    return Weights(*(tf.cast(weight, dtype) for weight in weights))


def wide(dtype: tf.DType) -> tf.DType:
    """The dtype of everything except matrix products: float32 for half precision, otherwise `dtype`."""
    return tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype
