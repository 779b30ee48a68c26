"""A whole sequence of the masked layer-normalised LSTM, in portable TensorFlow, with a gradient derived by hand.

`equations.py` has the formulas, `forward.py` and `backward.py` have the two loops. Everything is time-major. Three
facts make a sequence cheap:

* The input projection and its normalisation do not depend on the state. One matmul before the loop computes them for
  all steps.
* If the rows of a kernel have mean zero, so have its products. Then LN(v @ kernel) needs only a variance, and its
  gradient needs no mean.
* The forward loop stores states and gates (the residuals). All local derivatives follow from them without a loop. So
  the backward loop contains only the sequential part. One matmul over all steps then gives the gradient of each weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.eager import record

from rl_lnlstm.lstm.backward import backward
from rl_lnlstm.lstm.equations import State, Tensor, Weights, cast, centre, wide
from rl_lnlstm.lstm.forward import Carry, forward, project_inputs

NO_SECOND_DERIVATIVE = (
    "the masked LN-LSTM has no second derivative, because its first one is derived by hand: Hessians, gradient "
    "penalties and forward-mode differentiation (tf.autodiff.ForwardAccumulator) are not supported"
)


class Gates(NamedTuple):
    """The gates after their activations and the new cell, one entry for each step, `[time, batch, units]`."""

    i: Tensor
    f: Tensor
    o: Tensor
    g: Tensor
    c: Tensor


def unroll(
    inputs: Tensor,
    masks: Tensor | None,
    state: State,
    weights: Weights,
    padding: Tensor | None = None,
    dropout: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The whole sequence, differentiable in the inputs, the initial state and every weight.

    Args:
        inputs: `[time, batch, D]`, in the compute dtype. `time` may be unknown until the graph runs, and may be 0.
        masks: `[time, batch]`, in the compute dtype. None means a mask of ones.
        state: the initial state, in the compute dtype.
        weights: the weights, in any float dtype.
        padding: `[time, batch]`, bool. False skips a step, and the state stays unchanged.
        dropout: `[batch, units]`, in the compute dtype: factors for h in the product with the recurrent kernel.

    Returns:
        The outputs `[time, batch, U]` and the final state, in the compute dtype. Masks get no gradient, and second
        derivatives raise NotImplementedError.
    """
    carry = Carry(masks, padding, dropout)
    if padding is not None:  # inputs of padded steps must not matter, not even NaN
        inputs = tf.where(tf.expand_dims(padding, -1), inputs, tf.zeros([], inputs.dtype))
    # Keep residuals if a tape needs a gradient. A function that was traced without a tape computes them again if
    # needed.
    keep = record.could_possibly_record()
    if tf.inside_function():
        outputs, h, c = _unroll(keep, inputs, carry, *state, *weights)
    else:
        # In eager mode a while_loop would be a Python loop. As a function it is one graph for every length and batch
        # size.
        given = tuple(part is not None for part in carry)
        run = _unroll_function(keep, inputs.dtype, given, tuple((w.shape, w.dtype) for w in weights))
        outputs, h, c = run(inputs, *(part for part in carry if part is not None), *state, *weights)
    return outputs, State(h, c)


def gates_of_steps(inputs: Tensor, masks: Tensor | None, state: State, weights: Weights) -> Gates:
    """The gates and the cell at every step, for the arguments of `unroll`, in the wide dtype, without a gradient."""
    dtype = inputs.dtype
    w, carry, initial = _prepare(dtype, weights, Carry(masks), state)
    x_hat, _ = project_inputs(inputs, w)
    residuals = forward(x_hat, carry, initial, w, dtype, keep=True)[-1]
    i, f, o = tf.split(residuals.sigmoids, 3, -1)
    return Gates(i, f, o, residuals.g, residuals.states.c)


def _prepare(dtype: tf.DType, weights: Weights, carry: Carry, initial: State) -> tuple[Weights, Carry, State]:
    """Converts the arguments to the wide dtype, centres the kernels, and gives masks the shape `[time, batch, 1]`."""
    masks, padding, dropout = carry
    masks = None if masks is None else tf.expand_dims(tf.cast(masks, wide(dtype)), -1)
    padding = None if padding is None else tf.expand_dims(padding, -1)
    dropout = None if dropout is None else tf.cast(dropout, wide(dtype))
    w = cast(weights, wide(dtype))
    w = w._replace(kernel=centre(w.kernel), recurrent_kernel=centre(w.recurrent_kernel))
    return w, Carry(masks, padding, dropout), State(*(tf.cast(part, wide(dtype)) for part in initial))


def _unroll(keep: bool, inputs: Tensor, carry: Carry, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    dtype = inputs.dtype
    weights = cast(Weights(*weights), wide(dtype))

    @tf.custom_gradient
    def run(inputs: Tensor, h: Tensor, c: Tensor, *weights: Tensor) -> tuple[tuple[Tensor, ...], Callable]:
        w, wide_carry, initial = _prepare(dtype, Weights(*weights), carry, State(h, c))
        x_hat, x_scale = project_inputs(inputs, w)
        outputs, final, residuals = forward(x_hat, wide_carry, initial, w, dtype, keep)

        @tf.custom_gradient
        def grad(d_hs: Tensor, d_h: Tensor, d_c: Tensor) -> tuple[tuple[Tensor, ...], Callable]:
            d_final = State(tf.cast(d_h, wide(dtype)), tf.cast(d_c, wide(dtype)))
            needed = residuals or forward(x_hat, wide_carry, initial, w, dtype, keep=True)[-1]
            d_inputs, d_initial, d_weights = backward(
                inputs, wide_carry, w, x_hat, x_scale, needed, tf.cast(d_hs, wide(dtype)), d_final
            )
            first = d_inputs, tf.cast(d_initial.h, dtype), tf.cast(d_initial.c, dtype), *d_weights
            return first, _refuse_second_derivative

        return (tf.cast(outputs, dtype), tf.cast(final.h, dtype), tf.cast(final.c, dtype)), grad

    return run(inputs, h, c, *weights)


def _refuse_second_derivative(*_: Tensor) -> None:
    # TensorFlow would return a wrong second derivative, because it treats the residuals as constants.
    raise NotImplementedError(NO_SECOND_DERIVATIVE)


@functools.cache
def _unroll_function(
    keep: bool,
    dtype: tf.DType,
    given: tuple[bool, ...],
    weights: tuple[tuple[tf.TensorShape, tf.DType], ...],
) -> Callable:
    """`_unroll` as a `tf.function` for every length and batch size. `given`: which parts of `Carry` are not None."""
    features, units = weights[0][0][0], weights[-1][0][0]
    parts = (
        tf.TensorSpec([None, None], dtype),
        tf.TensorSpec([None, None], tf.bool),
        tf.TensorSpec([None, units], dtype),
    )
    signature = [
        tf.TensorSpec([None, None, features], dtype),
        *(spec for spec, is_given in zip(parts, given, strict=True) if is_given),
        *[tf.TensorSpec([None, units], dtype)] * 2,
        *(tf.TensorSpec(shape, weight_dtype) for shape, weight_dtype in weights),
    ]

    def run(inputs: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(rest)
        carry = Carry(*(next(remaining) if is_given else None for is_given in given))
        return _unroll(keep, inputs, carry, *remaining)

    return tf.function(run, input_signature=signature, autograph=False)
