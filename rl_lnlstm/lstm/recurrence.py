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
* the forward loop keeps states and gates, so that all local derivatives follow without a loop, and the backward loop
  holds nothing but what is truly sequential; every weight gradient is one matmul over all steps after it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record

EPSILON = 1e-5
SECOND_DERIVATIVE = "the masked LN-LSTM has no second derivative: its first one is derived by hand"

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


class Kept(NamedTuple):
    """What the forward loop keeps for the backward one, `[time, batch, ...]`."""

    states: State  # [time + 1, batch, U], with the initial one
    sigmoids: Tensor  # [time, batch, 3U], the gates i, f and o
    u: Tensor  # [time, batch, U]
    r_scale: Tensor  # [time, batch, 1], the 1 / deviation that scaled h @ recurrent_kernel
    c_scale: Tensor  # [time, batch, 1], the same of c


def reset(state: State, mask: Tensor) -> State:
    """The state that enters a step: kept where `mask` `[batch, 1]` is 1, zeros where it is 0, even for NaN."""
    # multiply_no_nan, because 0 * nan is nan: a broken episode must not reach into the next one.
    return State(tf.math.multiply_no_nan(state.h, mask), tf.math.multiply_no_nan(state.c, mask))


def step(inputs: Tensor, state: State, weights: Weights) -> State:
    """One step without a mask: `inputs` `[batch, D]`, `state` of `[batch, U]`, both of the compute dtype."""
    dtype, wide = inputs.dtype, _wide(inputs.dtype)
    weights = _cast(weights, wide)
    # Centring the product is cheaper here than centring the kernels, which `unroll` does once for many steps.
    x_hat = _normalise(centre(_matmul(inputs, weights.kernel, dtype)))
    r_hat = _normalise(centre(_matmul(state.h, weights.recurrent_kernel, dtype)))
    state, _ = _advance(*_gates(_shifted(x_hat, weights), r_hat, weights), tf.cast(state.c, wide), weights)
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
    # Is there a tape that may want a gradient? What is traced without one computes what it needs for one again.
    keep = record.could_possibly_record()
    if tf.inside_function():
        outputs, h, c = _unroll(keep, inputs, masks, *state, *weights)
    else:
        # Called eagerly, a while_loop is a Python loop; as a function it is one graph, for every length and batch.
        run = _unroll_function(keep, inputs.dtype, masks is not None, tuple((w.shape, w.dtype) for w in weights))
        outputs, h, c = run(inputs, *(() if masks is None else (masks,)), *state, *weights)
    return outputs, State(h, c)


def _unroll(
    keep: bool, inputs: Tensor, masks: Tensor | None, h: Tensor, c: Tensor, *weights: Tensor
) -> tuple[Tensor, ...]:
    dtype, wide = inputs.dtype, _wide(inputs.dtype)
    if masks is not None:
        masks = tf.expand_dims(tf.cast(masks, wide), -1)
    weights = _cast(Weights(*weights), wide)

    @tf.custom_gradient
    def run(inputs: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[tuple[Tensor, ...], Callable]:
        initial, w = State(tf.cast(h, wide), tf.cast(c, wide)), Weights(*weights)
        w = w._replace(kernel=centre(w.kernel), recurrent_kernel=centre(w.recurrent_kernel))
        x_hat, x_scale = _project_inputs(inputs, w)
        outputs, final, kept = _forward(x_hat, masks, initial, w, dtype, keep)

        @tf.custom_gradient
        def grad(d_hs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[tuple[Tensor, ...], Callable]:
            d_final = State(tf.cast(d_h, wide), tf.cast(d_c, wide))
            needed = kept or _forward(x_hat, masks, initial, w, dtype, keep=True)[-1]
            d_inputs, d_initial, d_weights = _backward(
                inputs, masks, w, x_hat, x_scale, needed, tf.cast(d_hs, wide), d_final
            )
            first = d_inputs, tf.cast(d_initial.h, dtype), tf.cast(d_initial.c, dtype), *d_weights
            return first, _refuse_second_derivative

        return (tf.cast(outputs, dtype), tf.cast(final.h, dtype), tf.cast(final.c, dtype)), grad

    return run(inputs, h, c, *weights)


def _refuse_second_derivative(*_: Tensor) -> None:
    # TensorFlow would give one, and it would be wrong: it takes what the forward pass kept for constants.
    raise NotImplementedError(SECOND_DERIVATIVE)


@functools.cache
def _unroll_function(
    keep: bool, dtype: tf.DType, masked: bool, weights: tuple[tuple[tf.TensorShape, tf.DType], ...]
) -> Callable:
    features, units = weights[0][0][0], weights[-1][0][0]
    signature = [
        tf.TensorSpec([None, None, features], dtype),
        *[tf.TensorSpec([None, None], dtype)] * masked,
        *[tf.TensorSpec([None, units], dtype)] * 2,
        *(tf.TensorSpec(shape, weight_dtype) for shape, weight_dtype in weights),
    ]

    def run(inputs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        return _unroll(keep, inputs, *rest) if masked else _unroll(keep, inputs, None, *rest)

    return tf.function(run, input_signature=signature, autograph=False)


def _project_inputs(inputs: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """LN(x @ kernel) of all steps, `[time, batch, 4U]`, and the 1 / deviation `[time * batch, 1]` that scaled it."""
    product = _matmul(_rows(inputs), w.kernel, inputs.dtype)
    scale = _inverse_deviation(product)
    return _time_major(product * scale, *_time_and_batch(inputs)), scale


def _forward(
    x_hat: Tensor, masks: Tensor | None, initial: State, w: Weights, dtype: tf.DType, keep: bool
) -> tuple[Tensor, State, Any]:
    """The loop forward: outputs, the final state and, to `keep` for the backward loop, `Kept`, otherwise None."""
    recurrent_kernel = tf.cast(w.recurrent_kernel, dtype)
    units, (time, batch), shifted = w.cell_gamma.shape[0], _time_and_batch(x_hat), _shifted(x_hat, w)
    kept_states = 2 if keep else 1  # h alone is the output
    widths = (3 * units, units, 1, 1) if keep else ()

    def body(t: Tensor, h: Tensor, c: Tensor, *lists: Tensor) -> tuple[Tensor, ...]:
        state, at = State(h, c), _reader(t)
        if masks is not None:
            state = reset(state, at(masks))
        r = _matmul(state.h, recurrent_kernel, dtype)
        r_scale = _inverse_deviation(r)
        sigmoids, u = _gates(at(shifted), r * r_scale, w)
        state, c_scale = _advance(sigmoids, u, state.c, w)
        state = _same_shape(state, initial)
        states, others = lists[:kept_states], lists[kept_states:]
        made = (sigmoids, u, r_scale, c_scale)[: len(others)]
        others = tuple(_put(steps, t, v) for steps, v in zip(others, made, strict=True))
        t += 1
        states = tuple(_put(steps, t, v) for steps, v in zip(states, state[:kept_states], strict=True))
        return t, *state, *states, *others

    new, stack = _lists(batch, initial.h.dtype)
    states = (_put(new(time + 1, units), 0, part) for part in initial[:kept_states])
    start = 0, *initial, *states, *(new(time, width) for width in widths)
    _, h, c, *lists = tf.while_loop(lambda t, *_: t < time, body, start)
    hs, *others = map(stack, lists, (*[units] * kept_states, *widths))
    return hs[1:], State(h, c), Kept(State(hs, others[0]), *others[1:]) if keep else None


def _backward(
    inputs: Tensor,
    masks: Tensor | None,
    w: Weights,
    x_hat: Tensor,
    x_scale: Tensor,
    kept: Kept,
    d_hs: Tensor,
    d_final: State,
) -> tuple[Tensor, State, Weights]:
    """The loss's gradient of the inputs, the initial state and the weights, derived by hand.

    `d_v` is the loss's gradient of v, `v_hat` a normalised v, `v_scale` the 1 / deviation that scaled it.
    """
    dtype, units, (time, batch) = inputs.dtype, w.cell_gamma.shape[0], _time_and_batch(inputs)

    # What entered each step, after its mask, and what it made of that.
    entering = State(kept.states.h[:-1], kept.states.c[:-1])
    if masks is not None:
        entering = reset(entering, masks)
    i, f, o = tf.split(kept.sigmoids, 3, -1)
    u = kept.u
    c_hat = centre(kept.states.c[1:]) * kept.c_scale
    squashed_c = tf.tanh(c_hat * w.cell_gamma + w.cell_beta)

    # The local derivatives, so that the loop only multiplies them with what arrives from the step after.
    one = tf.constant(1, u.dtype)
    h_by_normed_c = o * (one - squashed_c * squashed_c)
    by_z = tf.concat(  # of c, c, h and c, by the four parts of z
        [u * i * (one - i), entering.c * f * (one - f), squashed_c * o * (one - o), i * (one - u * u)], -1
    )
    # LN(h @ R) does not change along r_hat, and so d_h has no part along h @ R @ transpose(R). Its size is a mean of
    # d_r * h: seen from there, nothing in the loop is 4U wide but by_z.
    d_r_kernel = tf.cast(tf.transpose(w.recurrent_kernel * w.recurrent_gamma), dtype)
    gram = tf.matmul(w.recurrent_kernel, w.recurrent_kernel, transpose_b=True)
    along_scale = kept.r_scale * kept.r_scale * kept.r_scale / 4  # of U products of h and d_r, where r_hat has 4U
    along_r_hat = _time_major(_matmul(_rows(entering.h), gram, dtype), time, batch) * along_scale
    h_by_c_hat = h_by_normed_c * w.cell_gamma

    def body(t: Tensor, d_h: Tensor, d_c: Tensor, *lists: Tensor) -> tuple[Tensor, ...]:
        at = _reader(t)
        d_h += at(d_hs)
        d_c += _normalise_gradient(d_h * at(h_by_c_hat), at(c_hat), at(kept.c_scale))
        d_z = tf.concat([d_c, d_c, d_h, d_c], -1) * at(by_z)
        d_r = _matmul(d_z, d_r_kernel, dtype)
        along = _row_mean(d_r * at(entering.h))
        d_entering = State(d_r * at(kept.r_scale) - along * at(along_r_hat), d_c * at(f))
        if masks is not None:
            d_entering = reset(d_entering, at(masks))
        lists = tuple(_put(steps, t, v) for steps, v in zip(lists, (d_h, d_z, along), strict=True))
        return t - 1, *_same_shape(d_entering, d_final), *lists

    new, stack = _lists(batch, d_hs.dtype)
    widths = units, 4 * units, 1
    start = time - 1, *d_final, *(new(time, width) for width in widths)
    _, d_h, d_c, *lists = tf.while_loop(lambda t, *_: t >= 0, body, start)
    d_hs, d_z, along = map(stack, lists, widths)

    d_normed_c = d_hs * h_by_normed_c
    d_recurrent_kernel, d_recurrent_gamma = _recurrent_weights_gradient(
        entering.h, w.recurrent_kernel, w.recurrent_gamma, kept.r_scale, along_scale * along, d_z, dtype
    )
    d_inputs, d_kernel, d_kernel_gamma = _projection_gradient(
        inputs, w.kernel, w.kernel_gamma, _rows(x_hat), x_scale, _rows(d_z), dtype
    )
    d_weights = Weights(
        kernel=d_kernel,
        recurrent_kernel=d_recurrent_kernel,
        kernel_gamma=d_kernel_gamma,
        recurrent_gamma=d_recurrent_gamma,
        bias=tf.reduce_sum(d_z, [0, 1]),
        cell_gamma=tf.reduce_sum(d_normed_c * c_hat, [0, 1]),
        cell_beta=tf.reduce_sum(d_normed_c, [0, 1]),
    )
    return d_inputs, State(d_h, d_c), d_weights


# The equations' parts, on rows: `[..., n]`.


def _shifted(x_hat: Tensor, w: Weights) -> Tensor:
    """The part of z, `[..., 4U]`, that needs no state."""
    return tf.nn.bias_add(x_hat * w.kernel_gamma, w.bias)


def _gates(shifted: Tensor, r_hat: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """From the part of z that needs no state and the recurrent product, the gates i, f and o, `[..., 3U]`, and u."""
    units = w.cell_gamma.shape[0]
    sigmoids, u = tf.split(r_hat * w.recurrent_gamma + shifted, [3 * units, units], -1)
    return tf.sigmoid(sigmoids), tf.tanh(u)


def _advance(sigmoids: Tensor, u: Tensor, c: Tensor, w: Weights) -> tuple[State, Tensor]:
    """From the gates and the cell that entered, the state that leaves the step, and what scaled its cell."""
    i, f, o = tf.split(sigmoids, 3, -1)
    c = f * c + i * u
    centred = centre(c)
    scale = _inverse_deviation(centred)
    return State(o * tf.tanh(centred * scale * w.cell_gamma + w.cell_beta), c), scale


def centre(v: Tensor) -> Tensor:
    """Rows less their mean."""
    return v - tf.reduce_mean(v, -1, keepdims=True)


def _inverse_deviation(centred: Tensor) -> Tensor:
    return tf.math.rsqrt(_row_mean(tf.square(centred)) + EPSILON)


def _normalise(centred: Tensor) -> Tensor:
    return centred * _inverse_deviation(centred)


def _normalise_gradient(d: Tensor, hat: Tensor, scale: Tensor) -> Tensor:
    """The gradient of v by that of LN(v), Ba, Kiros and Hinton (2016), appendix."""
    return (d - _row_mean(d) - hat * _row_mean(d * hat)) * scale


def _projection_gradient(
    inputs: Tensor, centred_kernel: Tensor, gamma: Tensor, hat: Tensor, scale: Tensor, d_z: Tensor, dtype: tf.DType
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of inputs, kernel and gamma in z = LN(inputs @ kernel) * gamma + ..."""
    d_gain = d_z * hat
    # No mean of d_z * gamma is taken off: along it, a centred kernel is zero.
    d_product = tf.cast((d_z * gamma - hat * _row_mean(d_gain, gamma)) * scale, dtype)
    d_inputs = _time_major(_matmul(d_product, tf.transpose(centred_kernel), dtype), *_time_and_batch(inputs))
    d_kernel = centre(tf.cast(tf.matmul(_rows(inputs), d_product, transpose_a=True), hat.dtype))
    return tf.cast(d_inputs, dtype), d_kernel, tf.reduce_sum(d_gain, 0)


def _recurrent_weights_gradient(
    h: Tensor, centred_kernel: Tensor, gamma: Tensor, scale: Tensor, along: Tensor, d_z: Tensor, dtype: tf.DType
) -> tuple[Tensor, Tensor]:
    """The same of the recurrent kernel and its gamma, with what is along r_hat taken off after the sum over steps."""
    h_transposed = tf.transpose(_rows(h))
    d_gain = _matmul(h_transposed, _rows(d_z * scale), dtype)
    gram = _matmul(h_transposed, _rows(h * along), dtype)
    d_kernel = centre(d_gain * gamma - tf.matmul(gram, centred_kernel))
    return d_kernel, tf.reduce_sum(d_gain * centred_kernel, 0)


def _row_mean(v: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean(v * weights) over the last axis of rows `[n, width]`, as `[n, 1]`."""
    # As a product with a column: half the time of tf.reduce_mean over the last axis, on CPU and under XLA.
    width = v.shape[-1]
    column = (
        tf.constant(np.full([width, 1], 1 / width), v.dtype)
        if weights is None
        else tf.reshape(weights, [-1, 1]) / width
    )
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


def _time_and_batch(sequence: Tensor) -> tuple[Any, Any]:
    """The first two sizes, as numbers where they are known: each operation less is 0.3 ms less to trace."""
    known = sequence.shape[:2]
    return tuple(known) if known.is_fully_defined() else tuple(tf.unstack(tf.shape(sequence)[:2]))


def _time_major(rows: Tensor, time: Any, batch: Any) -> Tensor:
    return tf.reshape(rows, [time, batch, rows.shape[-1]])


def _same_shape(state: State, like: State) -> State:
    """A loop's variables must keep their static shape, which a broadcast with an unknown batch size loses."""
    for tensor, reference in zip(state, like, strict=True):
        tensor.set_shape(reference.shape)
    return state


def _reader(t: Tensor) -> Callable[[Tensor], Tensor]:
    """What gives step `t` of a sequence."""
    # A slice along the first axis is a view: no copy. Differentiated, it would be a whole sequence for each step, and
    # the cost quadratic in time, but these loops never are.
    begin = tf.reshape(t, [1])
    end, strides = begin + 1, tf.constant([1])

    def read(sequence: Tensor) -> Tensor:
        return tf.raw_ops.StridedSlice(input=sequence, begin=begin, end=end, strides=strides, shrink_axis_mask=1)

    return read


def _lists(batch: Any, dtype: tf.DType) -> tuple[Callable, Callable]:
    """What makes an empty list of a length and of steps `[batch, width]`, and what stacks its steps to a sequence."""
    shape = functools.cache(lambda width: tf.convert_to_tensor([batch, width]))

    def new(length: Any, width: int) -> Tensor:
        return tf.raw_ops.TensorListReserve(element_shape=shape(width), num_elements=length, element_dtype=dtype)

    def stack(steps: Tensor, width: int) -> Tensor:
        sequence = tf.raw_ops.TensorListStack(input_handle=steps, element_shape=shape(width), element_dtype=dtype)
        sequence.set_shape([None, None, width])
        return sequence

    return new, stack


def _put(steps: Tensor, t: Tensor, element: Tensor) -> Tensor:
    return tf.raw_ops.TensorListSetItem(input_handle=steps, index=t, item=element)
