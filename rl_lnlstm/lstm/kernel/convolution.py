"""A convolution with the gradient of its filters in the kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from rl_lnlstm.lstm import kernel
from rl_lnlstm.lstm.equations import Tensor

Strides = tuple[int, int]


def applies(images: Any) -> bool:
    """Whether the kernel can compute the gradient: `images` are 4-dimensional, float32, on a CPU, and not under XLA."""
    return tf.is_tensor(images) and images.shape.rank == 4 and kernel.applies(images) and not kernel.under_xla()


def convolution(
    forward: Callable[[Tensor, Tensor], Tensor], images: Tensor, filters: Tensor, strides: Strides
) -> Tensor:
    """A convolution without padding.

    Args:
        forward: computes the convolution from images and filters.
        images: `[batch, rows, columns, channels]`, for which `applies` is true.
        filters: `[rows, columns, channels, filters]`.
        strides: of `forward`.
    """

    @tf.custom_gradient
    def run(images: Tensor, filters: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, Tensor]]]:
        def gradient(d_outputs: Tensor) -> tuple[Tensor, Tensor]:
            size, operation = filters.shape[:2].as_list(), kernel.operations().rl_lnlstm_filter_gradient
            d_filters = operation(images, d_outputs, kernel_size=size, strides=strides)
            return _images_gradient(images, filters, d_outputs, strides), d_filters

        return forward(images, filters), gradient

    return run(images, filters)


def _images_gradient(images: Tensor, filters: Tensor, d_outputs: Tensor, strides: Strides) -> Tensor:
    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(images),
        filter=filters,
        out_backprop=d_outputs,
        strides=[1, *strides, 1],
        padding="VALID",
    )


@tf.RegisterGradient("RlLnlstm>FilterGradient")
def _second_derivative(operation: tf.Operation, d_gradient: Tensor) -> tuple[Tensor, Tensor]:
    images, d_outputs = operation.inputs
    strides = tuple(operation.get_attr("strides"))
    d_images = _images_gradient(images, d_gradient, d_outputs, strides)
    return d_images, tf.nn.conv2d(images, d_gradient, strides, "VALID")
