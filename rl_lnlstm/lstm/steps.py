"""Sequences in a TensorFlow loop: reading single steps, and collecting the results of steps.

`tf.TensorArray` cannot stack zero steps if the batch size is unknown until the graph runs. The list operations on which
it is built can.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rl_lnlstm.lstm.equations import State, Tensor


def rows(sequence: Tensor) -> Tensor:
    """`[time, batch, width]` as `[time * batch, width]`."""
    return tf.reshape(sequence, [-1, sequence.shape[-1]])


def time_and_batch(sequence: Tensor) -> tuple[Any, Any]:
    """The first two sizes, as numbers if they are known. Each operation that this saves makes tracing 0.3 ms faster."""
    known = sequence.shape[:2]
    return tuple(known) if known.is_fully_defined() else tuple(tf.unstack(tf.shape(sequence)[:2]))


def time_major(rows: Tensor, time: Any, batch: Any) -> Tensor:
    """`[time * batch, width]` as `[time, batch, width]`."""
    return tf.reshape(rows, [time, batch, rows.shape[-1]])


def same_shape(state: State, like: State) -> State:
    """Restores the static shapes of a loop's variables. Broadcasting with an unknown batch size loses them."""
    for tensor, reference in zip(state, like, strict=True):
        tensor.set_shape(reference.shape)
    return state


def reader(t: Tensor) -> Callable[[Tensor], Tensor]:
    """Makes the function that reads step `t` of a sequence."""
    # A slice along the first axis is a view, not a copy. Its gradient would be a whole sequence for each step, at a
    # cost quadratic in time, but these loops are never differentiated.
    # TFLite crashes if the bounds are reshaped instead of stacked.
    begin, end, strides = tf.stack([t]), tf.stack([t + 1]), tf.constant([1])

    def read(sequence: Tensor) -> Tensor:
        return tf.raw_ops.StridedSlice(input=sequence, begin=begin, end=end, strides=strides, shrink_axis_mask=1)

    return read


def lists(batch: Any, dtype: tf.DType) -> tuple[Callable, Callable]:
    """Makes two functions: one makes an empty list of steps `[batch, width]`, the other stacks a list to a sequence."""
    shape = functools.cache(lambda width: tf.convert_to_tensor([batch, width]))

    def new(length: Any, width: int) -> Tensor:
        return tf.raw_ops.TensorListReserve(element_shape=shape(width), num_elements=length, element_dtype=dtype)

    def stack(steps: Tensor, width: int) -> Tensor:
        sequence = tf.raw_ops.TensorListStack(input_handle=steps, element_shape=shape(width), element_dtype=dtype)
        sequence.set_shape([None, None, width])
        return sequence

    return new, stack


def put(steps: Tensor, t: Tensor, element: Tensor) -> Tensor:
    """The list with `element` as its step `t`."""
    return tf.raw_ops.TensorListSetItem(input_handle=steps, index=t, item=element)
