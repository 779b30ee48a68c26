"""The compiled CPU kernel: `recurrence.unroll` as two TensorFlow operations, which are built when first used."""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from rl_lnlstm.kernel.build import BuildError, library
from rl_lnlstm.recurrence import SECOND_DERIVATIVE, State, Tensor, Weights, centre

LOGGER = logging.getLogger("rl_lnlstm")
PAD = 16  # kPad of core.h


@functools.cache
def operations() -> Any:
    """The module of the two operations, or None where there are none; what was chosen is logged once."""
    if os.environ.get("RL_LNLSTM_KERNEL") == "0":
        LOGGER.info("backend: while_loop, because RL_LNLSTM_KERNEL is 0")
        return None
    try:
        path = library()
        module = tf.load_op_library(str(path))
    except (BuildError, tf.errors.NotFoundError) as error:
        LOGGER.warning("backend: while_loop, because the kernel cannot be built: %s", error)
        return None
    LOGGER.info("backend: kernel, %s", path)
    return module


def applies(inputs: Tensor) -> bool:
    """The operations can stand where `inputs`, `[time, batch, features]`, is: float32, on a CPU, not for XLA."""
    return (
        inputs.dtype == tf.float32
        and not _exporting()
        and not control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())
        and not tf.config.list_logical_devices("GPU")
        and operations() is not None
    )


def _exporting() -> bool:
    """The graph that is traced will be saved, and must load where there is no kernel."""
    if save_context.in_save_context():
        return True
    # Keras traces before it saves, and nothing tells but who called.
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith(("keras.src.export.", "keras.src.backend.tensorflow.export")):
            return True
    return False


def unroll(inputs: Tensor, masks: Tensor | None, state: State, weights: Weights) -> tuple[Tensor, State]:
    """As `recurrence.unroll`, for what `applies`."""
    masked = masks is not None
    keep = tf.executing_eagerly()  # in a graph, the gradient says so, if there is one
    weights = Weights(*(tf.cast(weight, tf.float32) for weight in weights))
    outputs, h, c, *_ = operations().rl_lnlstm_forward(
        inputs, masks if masked else tf.zeros([0, 0]), *state, *weights, masked=masked, keep=keep
    )
    return outputs, State(h, c)


@tf.RegisterGradient("RlLnlstm>Forward")
def _gradient(operation: tf.Operation, d_outputs: Tensor, d_h: Tensor, d_c: Tensor, *_: Any) -> tuple[Any, ...]:
    if not tf.executing_eagerly():
        # Only now is it known that there is a backward pass. TensorFlow's own while and cond change their nodes alike.
        operation.outputs[0].op._set_attr("keep", attr_value_pb2.AttrValue(b=True))
    inputs, masks, h0, c0, *weights = operation.inputs
    outputs, _, _, *kept = operation.outputs
    w = Weights(*weights)
    units, width = w.cell_gamma.shape[0], -(-w.cell_gamma.shape[0] // PAD) * PAD
    kernel, recurrent_kernel = centre(w.kernel), centre(w.recurrent_kernel)
    d_product, d_gain, entering_h, along, d_h0, d_c0, d_bias, d_kernel_gamma, d_cell_gamma, d_cell_beta = (
        operations().rl_lnlstm_backward(
            masks,
            h0,
            c0,
            *w[1:],
            outputs,
            *kept,
            tf.matmul(recurrent_kernel, recurrent_kernel, transpose_b=True),
            d_outputs,
            d_h,
            d_c,
            masked=operation.get_attr("masked"),
        )
    )
    rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
    d_product, d_gain, entering_h = (
        tf.reshape(v, [-1, n]) for v, n in ((d_product, 4 * width), (d_gain, 4 * width), (entering_h, width))
    )

    def units_of(columns: Tensor) -> Tensor:
        """Without the padding of each gate."""
        if units == width:
            return columns
        return tf.reshape(tf.reshape(columns, [-1, 4, width])[..., :units], [-1, 4 * units])

    padded_kernel = kernel
    if units != width:
        padded_kernel = tf.reshape(
            tf.pad(tf.reshape(kernel, [-1, 4, units]), [[0, 0], [0, 0], [0, width - units]]), [-1, 4 * width]
        )
    d_inputs = tf.reshape(tf.matmul(d_product, padded_kernel, transpose_b=True), tf.shape(inputs))
    d_kernel = centre(units_of(tf.matmul(rows, d_product, transpose_a=True)))
    gain = units_of(tf.matmul(entering_h, d_gain, transpose_a=True)[:units])
    gram = tf.matmul(entering_h, entering_h * tf.reshape(along, [-1, 1]), transpose_a=True)[:units, :units]
    d_recurrent_kernel = centre(gain * w.recurrent_gamma - tf.matmul(gram, recurrent_kernel))
    d_recurrent_gamma = tf.reduce_sum(gain * recurrent_kernel, 0)
    d_weights = Weights(
        d_kernel, d_recurrent_kernel, d_kernel_gamma, d_recurrent_gamma, d_bias, d_cell_gamma, d_cell_beta
    )
    return d_inputs, None, d_h0, d_c0, *d_weights


@tf.RegisterGradient("RlLnlstm>Backward")
def _second_derivative(*_: Any) -> None:
    raise NotImplementedError(SECOND_DERIVATIVE)
