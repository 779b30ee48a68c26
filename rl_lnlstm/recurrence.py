"""The masked layer-normalised LSTM as pure functions: one step, and a sequence with a hand-derived gradient.

For each step t, with m_t the mask and LN(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over the last axis::

    h, c = m_t * h, m_t * c
    z    = LN(x_t @ kernel) * kernel_gamma + LN(h @ recurrent_kernel) * recurrent_gamma + bias
    i, f, o, u = split(z, 4)
    c    = sigmoid(f) * c + sigmoid(i) * tanh(u)
    h    = sigmoid(o) * tanh(LN(c) * cell_gamma + cell_beta)

Layer normalisation: Ba, Kiros and Hinton (2016), equations 20 to 22; gate order and masks: OpenAI baselines, `lnlstm`.

Everything here is time-major. Three facts make the sequence cheap:

* the input projection and its normalisation do not depend on the state: one matmul over all steps, before the loop;
* a kernel whose rows are mean-centred gives mean-free products, so LN(v @ kernel) needs only a variance, and its
  gradient needs no mean;
* given h and c of every step, the gates of all steps follow without a loop. So the forward pass stores h and c only,
  and the backward loop holds nothing but what is truly sequential; every weight gradient is one matmul after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

EPSILON = 1e-5

Tensor = Any  # a tf.Tensor; TensorFlow ships no types


class State(NamedTuple):
    """What the recurrence carries from step to step: `h` and `c`, each `[batch, units]`."""

    h: Tensor
    c: Tensor


class Weights(NamedTuple):
    """The layer's weights, D features and U units, gates in the order i, f, o, u."""

    kernel: Tensor  # [D, 4U]
    recurrent_kernel: Tensor  # [U, 4U]
    kernel_gamma: Tensor  # [4U]
    recurrent_gamma: Tensor  # [4U]
    bias: Tensor  # [4U]
    cell_gamma: Tensor  # [U]
    cell_beta: Tensor  # [U]


def reset(state: State, mask: Tensor) -> State:
    """The state that enters a step: kept where `mask` `[batch, 1]` is 1, zeros where it is 0, even for NaN."""
    # multiply_no_nan, because 0 * nan is nan: a broken episode must not reach into the next one.
    return State(tf.math.multiply_no_nan(state.h, mask), tf.math.multiply_no_nan(state.c, mask))


def step(inputs: Tensor, state: State, weights: Weights) -> State:
    """One step without a mask: `inputs` `[batch, D]`, `state` of `[batch, U]`, both of the compute dtype."""
    dtype, wide = inputs.dtype, _wide(inputs.dtype)
    weights = _cast(weights, wide)
    # Centring the product is cheaper here than centring the kernels, which `unroll` does once for many steps.
    x_hat = _normalise(_centre(_matmul(inputs, weights.kernel, dtype)))
    r_hat = _normalise(_centre(_matmul(state.h, weights.recurrent_kernel, dtype)))
    state = _advance(x_hat, r_hat, tf.cast(state.c, wide), weights)
    return State(tf.cast(state.h, dtype), tf.cast(state.c, dtype))


def unroll(inputs: Tensor, masks: Tensor | None, state: State, weights: Weights) -> tuple[Tensor, State]:
    """The whole sequence, differentiable in the inputs, the initial state and every weight.

    Args:
        inputs: `[time, batch, D]`, of the compute dtype; `time` may be unknown until it runs, and may be 0.
        masks: `[time, batch]`, of the compute dtype, or None, which is a mask of ones.
        state: the initial state, of the compute dtype.
        weights: of any float dtype.

    Returns:
        The outputs `[time, batch, U]` and the final state, of the compute dtype. Masks get no gradient, and second
        derivatives raise NotImplementedError.
    """
    if tf.inside_function():
        outputs, h, c = _unroll(inputs, masks, *state, *weights)
    else:
        # Called eagerly, a while_loop is a Python loop; as a function it is one graph, for every length and batch.
        run = _unroll_function(inputs.dtype, masks is not None, tuple((w.shape, w.dtype) for w in weights))
        outputs, h, c = run(inputs, *(() if masks is None else (masks,)), *state, *weights)
    return outputs, State(h, c)


def _unroll(inputs: Tensor, masks: Tensor | None, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    dtype, wide = inputs.dtype, _wide(inputs.dtype)
    if masks is not None:
        masks = tf.cast(masks, wide)[..., tf.newaxis]
    weights = _cast(Weights(*weights), wide)

    @tf.custom_gradient
    def run(inputs: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[tuple[Tensor, ...], Callable]:
        initial, w = State(tf.cast(h, wide), tf.cast(c, wide)), Weights(*weights)
        x_hat, x_scale = _project_inputs(inputs, w)
        hs, cs, final = _forward(x_hat, masks, initial, w, dtype)

        @tf.custom_gradient
        def grad(d_hs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[tuple[Tensor, ...], Callable]:
            d_final = State(tf.cast(d_h, wide), tf.cast(d_c, wide))
            d_inputs, d_initial, d_weights = _backward(
                inputs, masks, initial, w, x_hat, x_scale, hs, cs, tf.cast(d_hs, wide), d_final
            )
            first = d_inputs, tf.cast(d_initial.h, dtype), tf.cast(d_initial.c, dtype), *d_weights
            return first, _refuse_second_derivative

        return (tf.cast(hs, dtype), tf.cast(final.h, dtype), tf.cast(final.c, dtype)), grad

    return run(inputs, h, c, *weights)


def _refuse_second_derivative(*_: Tensor) -> None:
    # TensorFlow would give one, and it would be wrong: it takes what the forward pass kept for constants.
    raise NotImplementedError("the masked LN-LSTM has no second derivative: its first one is derived by hand")


@functools.cache
def _unroll_function(dtype: tf.DType, masked: bool, weights: tuple[tuple[tf.TensorShape, tf.DType], ...]) -> Callable:
    features, units = weights[0][0][0], weights[-1][0][0]
    signature = [
        tf.TensorSpec([None, None, features], dtype),
        *[tf.TensorSpec([None, None], dtype)] * masked,
        *[tf.TensorSpec([None, units], dtype)] * 2,
        *(tf.TensorSpec(shape, weight_dtype) for shape, weight_dtype in weights),
    ]

    def run(inputs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return _unroll(inputs, *rest) if masked else _unroll(inputs, None, *rest)

    return tf.function(run, input_signature=signature, autograph=False)


def _project_inputs(inputs: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """LN(x @ kernel) of all steps, `[time, batch, 4U]`, and the 1 / deviation `[time * batch, 1]` that scaled it."""
    product = _matmul(_rows(inputs), _centre(w.kernel), inputs.dtype)
    scale = _inverse_deviation(product)
    return _time_major(product * scale, inputs), scale


def _forward(
    x_hat: Tensor, masks: Tensor | None, initial: State, w: Weights, dtype: tf.DType
) -> tuple[Tensor, Tensor, State]:
    """The loop forward: h and c of all steps, each `[time, batch, U]`, and the final state."""
    recurrent_kernel = tf.cast(_centre(w.recurrent_kernel), dtype)
    time = tf.shape(x_hat)[0]
    x_hat_at, mask_at = _reader(x_hat), None if masks is None else _reader(masks)

    def body(t: Tensor, h: Tensor, c: Tensor, hs: Tensor, cs: Tensor) -> tuple[Tensor, ...]:
        state = State(h, c)
        if mask_at is not None:
            state = reset(state, mask_at(t))
        r_hat = _normalise(_matmul(state.h, recurrent_kernel, dtype))
        state = _same_shape(_advance(x_hat_at(t), r_hat, state.c, w), initial)
        return t + 1, *state, _put(hs, t, state.h), _put(cs, t, state.c)

    lists = _empty_list(time, initial.h), _empty_list(time, initial.c)
    _, h, c, hs, cs = tf.while_loop(lambda t, *_: t < time, body, (0, *initial, *lists))
    return _stack(hs, initial.h), _stack(cs, initial.c), State(h, c)


def _backward(
    inputs: Tensor,
    masks: Tensor | None,
    initial: State,
    w: Weights,
    x_hat: Tensor,
    x_scale: Tensor,
    hs: Tensor,
    cs: Tensor,
    d_hs: Tensor,
    d_final: State,
) -> tuple[Tensor, State, Weights]:
    """The loss's gradient of the inputs, the initial state and the weights, derived by hand.

    `d_v` is the loss's gradient of v, `v_hat` a normalised v, `v_scale` the 1 / deviation that scaled it.
    """
    dtype, time = inputs.dtype, tf.shape(inputs)[0]

    # What entered each step, after its mask, and from it the gates of all steps at once, `[time * batch, ...]`.
    entering = State(tf.concat([initial.h[tf.newaxis], hs], 0)[:-1], tf.concat([initial.c[tf.newaxis], cs], 0)[:-1])
    if masks is not None:
        entering = reset(entering, masks)
    entering, x_hat, c = State(_rows(entering.h), _rows(entering.c)), _rows(x_hat), _rows(cs)
    kernel, recurrent_kernel = _centre(w.kernel), _centre(w.recurrent_kernel)
    r = _matmul(entering.h, recurrent_kernel, dtype)
    r_scale = _inverse_deviation(r)
    r_hat = r * r_scale
    i, f, o, u = _gates(x_hat, r_hat, w)
    c = _centre(c)
    c_scale = _inverse_deviation(c)
    c_hat = c * c_scale
    squashed_c = tf.tanh(c_hat * w.cell_gamma + w.cell_beta)

    # The local derivatives, so that the loop only multiplies them with what arrives from the step after.
    h_by_normed_c = o * (1 - squashed_c * squashed_c)
    by_z = tf.concat(  # of c, c, h and c, by the four parts of z
        [u * i * (1 - i), entering.c * f * (1 - f), squashed_c * o * (1 - o), i * (1 - u * u)], -1
    )
    # Of d LN(h @ R) / d h the part along r_hat vanishes; (h @ R) @ transpose(R) is that part, seen from h.
    gram = tf.matmul(recurrent_kernel, recurrent_kernel, transpose_b=True)
    along_r_hat = _matmul(entering.h * (r_scale * r_scale), gram, dtype)
    gained_kernel = tf.cast(tf.transpose(recurrent_kernel * w.recurrent_gamma), dtype)

    steps_of = functools.partial(_time_major, like=inputs)
    d_h_at, h_by_normed_c_at, c_hat_at, c_scale_at, by_z_at, r_hat_at, r_scale_at, along_r_hat_at, f_at = (
        _reader(steps_of(v))
        for v in (d_hs, h_by_normed_c * w.cell_gamma, c_hat, c_scale, by_z, r_hat, r_scale, along_r_hat, f)
    )
    mask_at = None if masks is None else _reader(masks)

    def body(t: Tensor, d_h: Tensor, d_c: Tensor, d_hs: Tensor, d_zs: Tensor) -> tuple[Tensor, ...]:
        d_h += d_h_at(t)
        d_c += _normalise_gradient(d_h * h_by_normed_c_at(t), c_hat_at(t), c_scale_at(t))
        d_z = tf.concat([d_c, d_c, d_h, d_c], -1) * by_z_at(t)
        along = _row_mean(d_z * r_hat_at(t), w.recurrent_gamma)
        d_entering = State(
            _matmul(d_z, gained_kernel, dtype) * r_scale_at(t) - along * along_r_hat_at(t), d_c * f_at(t)
        )
        if mask_at is not None:
            d_entering = reset(d_entering, mask_at(t))
        return t - 1, *_same_shape(d_entering, initial), _put(d_hs, t, d_h), _put(d_zs, t, d_z)

    d_z_like = tf.tile(initial.h, [1, 4])
    lists = _empty_list(time, initial.h), _empty_list(time, d_z_like)
    _, d_h, d_c, d_hs, d_zs = tf.while_loop(lambda t, *_: t >= 0, body, (time - 1, *d_final, *lists))

    d_normed_c = _rows(_stack(d_hs, initial.h)) * h_by_normed_c
    d_z = _rows(_stack(d_zs, d_z_like))
    _, d_recurrent_kernel, d_recurrent_gamma = _projection_gradient(
        entering.h, recurrent_kernel, w.recurrent_gamma, r_hat, r_scale, d_z, dtype
    )
    d_inputs, d_kernel, d_kernel_gamma = _projection_gradient(
        _rows(inputs), kernel, w.kernel_gamma, x_hat, x_scale, d_z, dtype
    )
    d_weights = Weights(
        kernel=d_kernel,
        recurrent_kernel=d_recurrent_kernel,
        kernel_gamma=d_kernel_gamma,
        recurrent_gamma=d_recurrent_gamma,
        bias=tf.reduce_sum(d_z, 0),
        cell_gamma=tf.reduce_sum(d_normed_c * c_hat, 0),
        cell_beta=tf.reduce_sum(d_normed_c, 0),
    )
    return tf.cast(steps_of(d_inputs), dtype), State(d_h, d_c), d_weights


# The equations' parts, on rows: `[..., n]`.


def _advance(x_hat: Tensor, r_hat: Tensor, c: Tensor, w: Weights) -> State:
    """From the two normalised products and the cell that entered, the state that leaves the step."""
    i, f, o, u = _gates(x_hat, r_hat, w)
    c = f * c + i * u
    return State(o * tf.tanh(_normalise(_centre(c)) * w.cell_gamma + w.cell_beta), c)


def _gates(x_hat: Tensor, r_hat: Tensor, w: Weights) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    units = w.cell_gamma.shape[0]
    z = tf.nn.bias_add(r_hat * w.recurrent_gamma, w.bias) + x_hat * w.kernel_gamma
    sigmoids, u = tf.split(z, [3 * units, units], -1)
    i, f, o = tf.split(tf.sigmoid(sigmoids), 3, -1)
    return i, f, o, tf.tanh(u)


def _centre(v: Tensor) -> Tensor:
    return v - tf.reduce_mean(v, -1, keepdims=True)


def _inverse_deviation(centred: Tensor) -> Tensor:
    return tf.math.rsqrt(_row_mean(tf.square(centred)) + EPSILON)


def _normalise(centred: Tensor) -> Tensor:
    return centred * _inverse_deviation(centred)


def _normalise_gradient(d: Tensor, hat: Tensor, scale: Tensor) -> Tensor:
    """The gradient of v by that of LN(v), Ba, Kiros and Hinton (2016), appendix."""
    return (d - _row_mean(d) - hat * _row_mean(d * hat)) * scale


def _projection_gradient(
    rows: Tensor, centred_kernel: Tensor, gamma: Tensor, hat: Tensor, scale: Tensor, d_z: Tensor, dtype: tf.DType
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `rows`, kernel and gamma in z = LN(rows @ kernel) * gamma + ..."""
    d_gain = d_z * hat
    # No mean of d_z * gamma is taken off: along it, a centred kernel is zero.
    d_product = tf.cast((d_z * gamma - hat * _row_mean(d_gain, gamma)) * scale, dtype)
    d_rows = _matmul(d_product, tf.transpose(centred_kernel), dtype)
    d_kernel = _centre(tf.cast(tf.matmul(tf.cast(rows, dtype), d_product, transpose_a=True), hat.dtype))
    return d_rows, d_kernel, tf.reduce_sum(d_gain, 0)


def _row_mean(v: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean(v * weights) over the last axis of rows `[n, width]`, as `[n, 1]`."""
    # As a product with a column: half the time of tf.reduce_mean over the last axis, on CPU and under XLA.
    width = v.shape[-1]
    column = tf.fill([width, 1], tf.constant(1 / width, v.dtype)) if weights is None else weights[:, tf.newaxis] / width
    return tf.matmul(v, column)


def _matmul(rows: Tensor, kernel: Tensor, dtype: tf.DType) -> Tensor:
    """The product in the compute dtype, given in the wide one."""
    return tf.cast(tf.matmul(tf.cast(rows, dtype), tf.cast(kernel, dtype)), _wide(dtype))


def _cast(weights: Weights, dtype: tf.DType) -> Weights:
    return Weights(*(tf.cast(weight, dtype) for weight in weights))


def _wide(dtype: tf.DType) -> tf.DType:
    """What everything but matrix products is computed in."""
    return tf.float32 if dtype in (tf.float16, tf.bfloat16) else dtype


# Shapes, and lists of steps. TensorArray cannot stack zero steps of a batch size known only when it runs; the list
# operations under it can.


def _rows(sequence: Tensor) -> Tensor:
    return tf.reshape(sequence, [-1, sequence.shape[-1]])


def _time_major(rows: Tensor, like: Tensor) -> Tensor:
    time, batch = tf.unstack(tf.shape(like)[:2])
    return tf.reshape(rows, [time, batch, rows.shape[-1]])


def _same_shape(state: State, like: State) -> State:
    """A loop's variables must keep their static shape, which a broadcast with an unknown batch size loses."""
    for tensor, reference in zip(state, like, strict=True):
        tensor.set_shape(reference.shape)
    return state


def _reader(sequence: Tensor) -> Callable[[Tensor], Tensor]:
    shape = tf.shape(sequence)[1:]
    steps = tf.raw_ops.TensorListFromTensor(tensor=sequence, element_shape=shape)

    def read(t: Tensor) -> Tensor:
        element = tf.raw_ops.TensorListGetItem(
            input_handle=steps, index=t, element_shape=shape, element_dtype=sequence.dtype
        )
        element.set_shape(sequence.shape[1:])
        return element

    return read


def _empty_list(length: Tensor, element: Tensor) -> Tensor:
    return tf.raw_ops.TensorListReserve(
        element_shape=tf.shape(element), num_elements=length, element_dtype=element.dtype
    )


def _put(steps: Tensor, t: Tensor, element: Tensor) -> Tensor:
    return tf.raw_ops.TensorListSetItem(input_handle=steps, index=t, item=element)


def _stack(steps: Tensor, element: Tensor) -> Tensor:
    sequence = tf.raw_ops.TensorListStack(
        input_handle=steps, element_shape=tf.shape(element), element_dtype=element.dtype
    )
    sequence.set_shape([None, *element.shape])
    return sequence
