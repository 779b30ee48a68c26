"""Checks of the arguments of a call of `MaskedLNLSTM`. Messages name the argument and use the caller's axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import Tensor


class Expected(NamedTuple):
    """The sizes that a layer expects."""

    layer: str  # its name
    features: int | None  # None before the layer is built
    units: int
    time_major: bool

    @property
    def axes(self) -> str:
        """The first two axes in the caller's order."""
        return "time, batch" if self.time_major else "batch, time"

    def batch(self, shape: Any) -> Any:
        """The batch size in the shape of inputs."""
        return shape[1 if self.time_major else 0]


def is_pair(initial_state: Any) -> bool:
    """Whether it is a list or a tuple of two."""
    return isinstance(initial_state, (list, tuple)) and len(initial_state) == 2


def check_dense(layer: str, arguments: Any) -> None:
    """Raises UserError if there is a ragged or sparse tensor among the arguments."""
    for argument in tf.nest.flatten(arguments, expand_composites=False):
        if isinstance(argument, tf.RaggedTensor):
            raise UserError(
                f"{layer} takes dense tensors, got a RaggedTensor: pass `inputs=ragged.to_tensor()` and "
                "`mask=tf.sequence_mask(ragged.row_lengths())`"
            )
        if isinstance(argument, tf.SparseTensor):
            raise UserError(f"{layer} takes dense tensors, got a SparseTensor: pass `tf.sparse.to_dense(sparse)`")


def check_inputs(expected: Expected, shape: Sequence[int | None]) -> None:
    """Raises UserError unless the inputs have three axes, the last one as wide as the kernel."""
    if len(shape) != 3 or (expected.features is not None and shape[-1] != expected.features):
        features = "features" if expected.features is None else expected.features
        raise UserError(f"{expected.layer}: inputs must have shape [{expected.axes}, {features}], got {list(shape)}")


def check_shapes(expected: Expected, inputs: Any, steps: dict[str, Any], initial_state: Any) -> None:
    """Raises UserError for wrong shapes, as far as shapes are known before the graph runs.

    Args:
        expected: the sizes that the layer expects.
        inputs: `[batch, time, features]`.
        steps: `masks` and `mask`, each `[batch, time]` or None.
        initial_state: `[h, c]` or None.
    """
    check_inputs(expected, inputs.shape)
    sizes = tf.TensorShape(inputs.shape[:2])
    for name, tensor in steps.items():
        if tensor is not None and not sizes.is_compatible_with(tensor.shape):
            raise UserError(
                f"{expected.layer}: {name} must have shape [{expected.axes}] = {sizes.as_list()}, "
                f"got {list(tensor.shape)}"
            )
    if initial_state is None:
        return
    size = tf.TensorShape([expected.batch(inputs.shape), expected.units])
    if not is_pair(initial_state):
        got = f"{len(initial_state)} tensors" if isinstance(initial_state, (list, tuple)) else "a single tensor"
    elif not all(size.is_compatible_with(getattr(part, "shape", ())) for part in initial_state):
        got = f"shapes {[list(getattr(part, 'shape', [])) for part in initial_state]}"
    else:
        return
    raise UserError(
        f"{expected.layer}: initial_state must be [h, c], each of shape [batch, units] = {size.as_list()}, got {got}"
    )


def check_dynamic_shapes(expected: Expected, inputs: Tensor, steps: dict[str, Any], initial_state: Any) -> None:
    """Adds assertions to the graph for the sizes that are known only when it runs."""
    checks = [(name, tensor, tf.shape(inputs)[:2], inputs.shape[:2], expected.axes) for name, tensor in steps.items()]
    state_size = [expected.batch(tf.shape(inputs)), expected.units], [expected.batch(inputs.shape), expected.units]
    checks += [("initial_state", part, *state_size, "batch, units") for part in initial_state or ()]
    for name, tensor, shape, static, axes in checks:
        if tensor is None or (tensor.shape.is_fully_defined() and tf.TensorShape(static).is_fully_defined()):
            continue
        message = f"{expected.layer}: {name} must have shape [{axes}], with the sizes of the inputs"
        tf.debugging.assert_equal(tf.shape(tensor), shape, message)
