"""The gradient of a whole sequence, derived by hand.

All local derivatives follow from the residuals of the forward pass without a loop. So the backward loop contains only
the sequential part, and afterwards one matmul over all steps gives the gradient of each weight.

Names: `d_v` is the gradient of the loss with respect to v, `v_hat` is v after normalisation, and `v_scale` is the 1 /
std that scaled it.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from rl_lnlstm.lstm.equations import State, Tensor, Weights, centre, enter, matmul, normalise_gradient, row_mean, wide
from rl_lnlstm.lstm.forward import Carry, Residuals
from rl_lnlstm.lstm.steps import lists, put, reader, rows, same_shape, time_and_batch, time_major


class _Local(NamedTuple):
    """The derivatives within each step, `[time, batch, ...]`. The backward loop only multiplies by them."""

    entering: State  # the state that enters each step, after its mask and dropout
    f: Tensor
    c_hat: Tensor  # LN(c)
    h_by_normed_c: Tensor  # dh / d(LN(c) * cell_gamma + cell_beta)
    by_z: Tensor  # dc/dz_i, dc/dz_f, dh/dz_o, dc/dz_g


def _local_derivatives(carry: Carry, w: Weights, residuals: Residuals) -> _Local:
    pairs = zip(residuals.initial, residuals.states, strict=True)
    before = State(*(tf.concat([initial[tf.newaxis], after], 0)[:-1] for initial, after in pairs))
    entering = enter(before, carry.masks, carry.dropout)
    i, f, o = tf.split(residuals.sigmoids, 3, -1)
    g = residuals.g
    c_hat = centre(residuals.states.c) * residuals.c_scale
    squashed_c = tf.tanh(c_hat * w.cell_gamma + w.cell_beta)
    one = tf.constant(1, g.dtype)
    h_by_normed_c = o * (one - squashed_c * squashed_c)
    by_z = tf.concat([g * i * (one - i), entering.c * f * (one - f), squashed_c * o * (one - o), i * (one - g * g)], -1)
    return _Local(entering, f, c_hat, h_by_normed_c, by_z)


class _LoopGradients(NamedTuple):
    """The results of the backward loop: the gradients of the initial state, and of each step."""

    initial: State
    hs: Tensor  # [time, batch, U], of each h, from all later uses
    z: Tensor  # [time, batch, 4U]
    along: Tensor  # [time, batch, 1], row_mean(d_r * h)


def _backward_loop(
    carry: Carry,
    w: Weights,
    local: _Local,
    residuals: Residuals,
    along_scale: Tensor,
    d_hs: Tensor,
    d_final: State,
    dtype: tf.DType,
) -> _LoopGradients:
    """The sequential part of the backward pass."""
    masks, padding, dropout = carry
    units, (time, batch) = w.cell_gamma.shape[0], time_and_batch(d_hs)
    # LN(h @ R) does not change along r_hat, so the part of d_r along h @ R @ transpose(R) must be subtracted from d_h.
    # A mean of d_r * h gives the size of this part. In this form, only by_z is 4U wide in the loop. With s = r_scale,
    # the centred R, r_hat = s * h @ R, d_r_hat = d_z * recurrent_gamma and d_r = d_r_hat @ transpose(R):
    #   d_h                   = s * d_r - s * mean(d_r_hat * r_hat) * r_hat @ transpose(R)
    #   mean(d_r_hat * r_hat) = s / 4 * row_mean(d_r * h)
    #   r_hat @ transpose(R)  = s * h @ gram
    # So d_h = s * d_r - along * along_r_hat, with along = row_mean(d_r * h) and along_scale = s^3 / 4.
    d_r_kernel = tf.cast(tf.transpose(w.recurrent_kernel * w.recurrent_gamma), dtype)
    gram = tf.matmul(w.recurrent_kernel, w.recurrent_kernel, transpose_b=True)
    along_r_hat = time_major(matmul(rows(local.entering.h), gram, dtype), time, batch) * along_scale
    h_by_c_hat = local.h_by_normed_c * w.cell_gamma

    def body(t: Tensor, d_h: Tensor, d_c: Tensor, *stored: Tensor) -> tuple[Tensor, ...]:
        at = reader(t)
        d_h += at(d_hs)
        d_passing = None
        if padding is not None:  # gradients bypass a padded step, as the state does
            is_step, zero = at(padding), tf.zeros([], d_h.dtype)
            d_passing = State(tf.where(is_step, zero, d_h), tf.where(is_step, zero, d_c))
            d_h, d_c = tf.where(is_step, d_h, zero), tf.where(is_step, d_c, zero)
        d_c += normalise_gradient(d_h * at(h_by_c_hat), at(local.c_hat), at(residuals.c_scale))
        d_z = tf.concat([d_c, d_c, d_h, d_c], -1) * at(local.by_z)
        d_r = matmul(d_z, d_r_kernel, dtype)
        along = row_mean(d_r * at(local.entering.h))
        d_entering = State(d_r * at(residuals.r_scale) - along * at(along_r_hat), d_c * at(local.f))
        d_entering = enter(d_entering, None if masks is None else at(masks), dropout)
        if d_passing is not None:
            d_entering = State(d_entering.h + d_passing.h, d_entering.c + d_passing.c)
        stored = tuple(put(steps, t, v) for steps, v in zip(stored, (d_h, d_z, along), strict=True))
        return t - 1, *same_shape(d_entering, d_final), *stored

    new, stack = lists(batch, d_hs.dtype)
    widths = units, 4 * units, 1
    start = time - 1, *d_final, *(new(time, width) for width in widths)
    _, d_h, d_c, *stored = tf.while_loop(lambda t, *_: t >= 0, body, start)
    return _LoopGradients(State(d_h, d_c), *map(stack, stored, widths))


def backward(
    inputs: Tensor,
    carry: Carry,
    w: Weights,
    x_hat: Tensor,
    x_scale: Tensor,
    residuals: Residuals,
    d_hs: Tensor,
    d_final: State,
) -> tuple[Tensor, State, Weights]:
    """The gradients of the loss with respect to the inputs, the initial state and the weights.

    `d_hs` and `d_final` are its gradients with respect to the outputs and the final state.
    """
    # A loss scale times 1 / std can exceed 65504, the largest float16.
    dtype = wide(inputs.dtype) if inputs.dtype == tf.float16 else inputs.dtype
    local = _local_derivatives(carry, w, residuals)
    r_scale = residuals.r_scale
    along_scale = r_scale * r_scale * r_scale / 4  # / 4: the mean is over U products, but r_hat has 4U entries
    loop = _backward_loop(carry, w, local, residuals, along_scale, d_hs, d_final, dtype)

    d_z = loop.z
    d_normed_c = loop.hs * local.h_by_normed_c
    d_recurrent_kernel, d_recurrent_gamma = _recurrent_weights_gradient(
        local.entering.h, w.recurrent_kernel, w.recurrent_gamma, r_scale, along_scale * loop.along, d_z, dtype
    )
    d_inputs, d_kernel, d_kernel_gamma = _projection_gradient(
        inputs, w.kernel, w.kernel_gamma, rows(x_hat), x_scale, rows(d_z), dtype
    )
    d_weights = Weights(
        kernel=d_kernel,
        recurrent_kernel=d_recurrent_kernel,
        kernel_gamma=d_kernel_gamma,
        recurrent_gamma=d_recurrent_gamma,
        bias=tf.reduce_sum(d_z, [0, 1]),
        cell_gamma=tf.reduce_sum(d_normed_c * local.c_hat, [0, 1]),
        cell_beta=tf.reduce_sum(d_normed_c, [0, 1]),
    )
    return d_inputs, loop.initial, d_weights


def _projection_gradient(
    inputs: Tensor, centred_kernel: Tensor, gamma: Tensor, hat: Tensor, scale: Tensor, d_z: Tensor, dtype: tf.DType
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of inputs, kernel and gamma for z = LN(inputs @ kernel) * gamma + ..."""
    d_gain = d_z * hat
    # The mean of d_z * gamma need not be subtracted, because the kernel is centred.
    d_product = tf.cast((d_z * gamma - hat * row_mean(d_gain, gamma)) * scale, dtype)
    d_inputs = time_major(matmul(d_product, tf.transpose(centred_kernel), dtype), *time_and_batch(inputs))
    x = tf.cast(rows(inputs), dtype)
    d_kernel = centre(tf.cast(tf.matmul(x, d_product, transpose_a=True), hat.dtype))
    return tf.cast(d_inputs, inputs.dtype), d_kernel, tf.reduce_sum(d_gain, 0)


def _recurrent_weights_gradient(
    h: Tensor, centred_kernel: Tensor, gamma: Tensor, scale: Tensor, along: Tensor, d_z: Tensor, dtype: tf.DType
) -> tuple[Tensor, Tensor]:
    """The gradients of the recurrent kernel and its gamma. Subtracts the part along r_hat after the sum."""
    h_transposed = tf.transpose(rows(h))
    d_gain = matmul(h_transposed, rows(d_z * scale), dtype)
    gram = matmul(h_transposed, rows(h * along), dtype)
    d_kernel = centre(d_gain * gamma - tf.matmul(gram, centred_kernel))
    return d_kernel, tf.reduce_sum(d_gain * centred_kernel, 0)
