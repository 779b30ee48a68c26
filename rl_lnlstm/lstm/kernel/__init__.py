"""The compiled CPU kernel, built on first use, and `recurrence.unroll` with it."""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import attr_value_pb2
from tensorflow.python.ops import control_flow_util
from tensorflow.python.saved_model import save_context

from rl_lnlstm.cache import CacheError
from rl_lnlstm.lstm.equations import State, Tensor, Weights, centre
from rl_lnlstm.lstm.kernel.build import BuildError, library
from rl_lnlstm.lstm.portable import is_portable
from rl_lnlstm.lstm.recurrence import NO_SECOND_DERIVATIVE

LOGGER = logging.getLogger("rl_lnlstm")
PAD = 16  # kPad of core.h
EXPORTERS = ("keras.src.export.", "keras.src.backend.tensorflow.export", "tensorflow.lite.python.", "tf2onnx.")


def operations() -> Any:
    """The module of the operations, or None if they cannot be built. Logs the choice once."""
    return _loaded()[0]


def path() -> Path:
    """The path of the library with the `operations`."""
    return _loaded()[1]


def instruction_set() -> str:
    """The instruction set that the operations use on this processor: AVX-512, AVX2 or portable."""
    function = ctypes.CDLL(str(path())).rl_lnlstm_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


@functools.cache
def _loaded() -> tuple[Any, Any]:
    if os.environ.get("RL_LNLSTM_KERNEL") == "0":
        LOGGER.info("backend: while_loop, because RL_LNLSTM_KERNEL is 0")
        return None, None
    try:
        built = library()
        module = tf.load_op_library(str(built))
        if hasattr(module, "rl_lnlstm_use_threads"):
            # In a thread of its own, because this may be called where a graph is built, which would only add the
            # operation. `tf.init_scope` does not leave a plain `tf.Graph`.
            with concurrent.futures.ThreadPoolExecutor(1) as thread:
                thread.submit(module.rl_lnlstm_use_threads).result()
    except (BuildError, CacheError, tf.errors.NotFoundError) as error:
        LOGGER.warning("backend: while_loop, because the kernel cannot be built: %s", error)
        return None, None
    LOGGER.info("backend: kernel, %s", built)
    return module, built


def applies(inputs: Tensor) -> bool:
    """Whether the operations can compute `inputs`: float32, on a CPU, in a graph that will not be saved.

    Under XLA the library must have been built with XLA's part.
    """
    return (
        inputs.dtype == tf.float32
        and not _exporting()
        and available()
        and (hasattr(operations(), "rl_lnlstm_use_threads") or not under_xla())
    )


def under_xla() -> bool:
    """Whether XLA will compile the graph that is being built."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def available() -> bool:
    """Whether the operations can be built, and there is no GPU or TPU, from which tensors would have to be copied."""
    kinds = {device.device_type for device in tf.config.list_logical_devices()}
    return kinds <= {"CPU", "XLA_CPU"} and operations() is not None


def _exporting() -> bool:
    """Whether the graph being traced will be saved. It must then load on machines without the kernel."""
    if save_context.in_save_context() or is_portable():
        return True
    # Keras and the converters trace before they save. Only the call stack tells.
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith(EXPORTERS):
            return True
    return False


def unroll(
    inputs: Tensor, masks: Tensor | None, state: State, weights: Weights, time_major: bool = True
) -> tuple[Tensor, State]:
    """Like `recurrence.unroll`, if `applies`. Unless `time_major`, inputs, masks and outputs are batch-major."""
    masked = masks is not None
    weights = Weights(*(tf.cast(weight, tf.float32) for weight in weights))
    arguments = inputs, masks if masked else tf.zeros([0, 0]), *state, *weights
    keep = tf.executing_eagerly()  # in a graph, the gradient function sets it if it is called
    outputs, h, c, *_ = operations().rl_lnlstm_forward(*arguments, time_major=time_major, masked=masked, keep=keep)
    return outputs, State(h, c)


@tf.RegisterGradient("RlLnlstm>Forward")
def _gradient(operation: tf.Operation, *d_outputs: Tensor) -> tuple[Any, ...]:
    if not operation.get_attr("keep"):
        # Only now do we know that there is a backward pass. TensorFlow's own while and cond change their nodes in the
        # same way.
        operation.outputs[0].op._set_attr("keep", attr_value_pb2.AttrValue(b=True))
    attributes = {name: operation.get_attr(name) for name in ("time_major", "masked")}
    backward = functools.partial(operations().rl_lnlstm_backward, **attributes)
    return _gradients(operation.inputs, operation.outputs, d_outputs[:3], backward)


def padded(units: int) -> int:
    """The padded width of a gate of `units` in the operations."""
    return -(-units // PAD) * PAD


def _gradients(
    arguments: Sequence[Tensor], results: Sequence[Tensor], d_results: Sequence[Tensor], backward: Callable
) -> tuple[Any, ...]:
    """The gradients of the forward operation's arguments, from the `backward` operation."""
    inputs, masks, h0, c0, *weights = arguments
    outputs, _, _, *kept = results
    w = Weights(*weights)
    d_product, d_h0, d_c0, *d_weights = backward(inputs, masks, h0, c0, *w[1:], outputs, *kept, *d_results)
    # Not in the operation, because it is often not needed. TensorFlow then removes it from the graph.
    kernel, units, width = centre(w.kernel), w.cell_gamma.shape[0], padded(w.cell_gamma.shape[0])
    if units != width:
        gates = tf.reshape(kernel, [-1, 4, units])
        kernel = tf.reshape(tf.pad(gates, [[0, 0], [0, 0], [0, width - units]]), [-1, 4 * width])
    d_inputs = tf.matmul(tf.reshape(d_product, [-1, 4 * width]), kernel, transpose_b=True)
    return tf.reshape(d_inputs, tf.shape(inputs)), None, d_h0, d_c0, *d_weights


@tf.RegisterGradient("RlLnlstm>Backward")
def _second_derivative(*_: Any) -> None:
    raise NotImplementedError(NO_SECOND_DERIVATIVE)
