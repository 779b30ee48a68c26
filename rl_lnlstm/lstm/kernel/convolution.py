"""Images in the kernel: their conversion to floats, a convolution without padding, and their gradients."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from rl_lnlstm.lstm import kernel
from rl_lnlstm.lstm.equations import Tensor

# Each takes the gradient of an activation's outputs, and these outputs, and returns the gradient of its inputs.
_BEFORE = {
    "linear": lambda d, outputs: d,
    "relu": lambda d, outputs: tf.raw_ops.ReluGrad(gradients=d, features=outputs),
    "sigmoid": lambda d, outputs: tf.raw_ops.SigmoidGrad(y=outputs, dy=d),
    "tanh": lambda d, outputs: tf.raw_ops.TanhGrad(y=outputs, dy=d),
}
ACTIVATIONS = tuple(_BEFORE)


def applies(images: Any) -> bool:
    """Whether the kernel can compute with `images`: they are float32 on a CPU, and not under XLA."""
    return tf.is_tensor(images) and kernel.applies(images) and not kernel.under_xla()


def pixels(images: Tensor, channels_first: bool, scale: float) -> Tensor:
    """Converts images to floats with the channels last, and multiplies them by `scale`, in one pass over the memory.

    If a graph has converted bytes to `images`, it reads these bytes.

    Args:
        images: `[batch, rows, columns, channels]` or `[batch, rows, columns]`, for which `applies` is true.
        channels_first: images are `[batch, channels, rows, columns]`.
        scale: multiplies all values.
    """
    images = tf.convert_to_tensor(images)
    if (cast := _made_by("Cast", images)) is not None:
        images = cast.inputs[0]
    if images.shape.rank == 3:
        images = images[..., tf.newaxis]
    return kernel.operations().rl_lnlstm_pixels(images, channels_first=channels_first, scale=scale)


def _made_by(kind: str, images: Tensor) -> tf.Operation | None:
    """The operation in a graph that made `images` from bytes.

    None if there is no such operation of this kind, or if a gradient tape watches `images`.
    """
    if tf.executing_eagerly() or images.op.type != kind or images.op.inputs[0].dtype != tf.uint8:
        return None
    return None if record.should_record_backprop([images]) else images.op


@tf.RegisterGradient("RlLnlstm>Pixels")
def _gradient_of_pixels(operation: tf.Operation, d_pixels: Tensor) -> Tensor | None:
    if operation.inputs[0].dtype == tf.uint8:
        return None
    d = d_pixels * operation.get_attr("scale")
    return tf.transpose(d, (0, 3, 1, 2)) if operation.get_attr("channels_first") else d


def convolution(
    images: Tensor, filters: Tensor, bias: Tensor, strides: tuple[int, int], activation: str = "linear"
) -> Tensor:
    """A convolution without padding, `[batch, rows, columns, filters]`.

    If a graph has made `images` from bytes with `pixels`, it reads these bytes.

    Args:
        images: `[batch, rows, columns, channels]`, for which `applies` is true.
        filters: `[rows, columns, channels, filters]`.
        bias: `[filters]`.
        strides: down and across.
        activation: one of `ACTIVATIONS`.
    """
    images, conversion = tf.convert_to_tensor(images), {}
    if (operation := _made_by("RlLnlstm>Pixels", images)) is not None:
        images, conversion = operation.inputs[0], _conversion(operation)
    return _convolution(images, filters, bias, strides=strides, activation=activation, **conversion)


def _conversion(operation: tf.Operation) -> dict[str, Any]:
    """How an operation converts its images."""
    return {name: operation.get_attr(name) for name in ("channels_first", "scale")}


def _convolution(images: Tensor, filters: Tensor, bias: Tensor, **attributes: Any) -> Tensor:
    return kernel.operations().rl_lnlstm_convolution(images, filters, bias, **attributes)


def _filter_gradient(images: Tensor, d_outputs: Tensor, **attributes: Any) -> tuple[Tensor, Tensor]:
    return tuple(kernel.operations().rl_lnlstm_filter_gradient(images, d_outputs, **attributes))


def _image_gradient(images: Tensor, filters: Tensor, d_outputs: Tensor, strides: Any) -> Tensor | None:
    if images.dtype == tf.uint8:
        return None
    return kernel.operations().rl_lnlstm_image_gradient(tf.shape(images), filters, d_outputs, strides=strides)


@tf.RegisterGradient("RlLnlstm>Convolution")
def _gradient(operation: tf.Operation, d_outputs: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    images, filters, _ = operation.inputs
    strides, size = operation.get_attr("strides"), filters.shape[:2].as_list()
    d = _BEFORE[operation.get_attr("activation").decode()](d_outputs, operation.outputs[0])
    d_filters, d_bias = _filter_gradient(images, d, kernel_size=size, strides=strides, **_conversion(operation))
    return _image_gradient(images, filters, d, strides), d_filters, d_bias


# Both gradients are linear in both of their arguments, so their own gradients are of the same kind.
@tf.RegisterGradient("RlLnlstm>FilterGradient")
def _gradient_of_filter_gradient(
    operation: tf.Operation, filters: Tensor, bias: Tensor
) -> tuple[Tensor | None, Tensor]:
    images, d_outputs = operation.inputs
    attributes = {"strides": operation.get_attr("strides"), "activation": "linear", **_conversion(operation)}
    d_images = _image_gradient(images, filters, d_outputs, attributes["strides"])
    return d_images, _convolution(images, filters, bias, **attributes)


@tf.RegisterGradient("RlLnlstm>ImageGradient")
def _gradient_of_image_gradient(operation: tf.Operation, images: Tensor) -> tuple[None, Tensor, Tensor]:
    _, filters, d_outputs = operation.inputs
    strides, no_bias = operation.get_attr("strides"), tf.zeros(filters.shape[-1:])
    d_filters, _ = _filter_gradient(images, d_outputs, kernel_size=filters.shape[:2].as_list(), strides=strides)
    return None, d_filters, _convolution(images, filters, no_bias, strides=strides, activation="linear")
