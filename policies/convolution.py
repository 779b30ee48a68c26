"""`Conv2D`: Keras' layer, with a faster gradient on CPUs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from rl_lnlstm.lstm import kernel


@keras.saving.register_keras_serializable("rl_lnlstm")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, which trains faster on a CPU.

    TensorFlow takes longer for the gradient of a convolution's filters than for everything else together. Here it is an
    operation of the compiled kernel, if the kernel can be built, and the layer has no padding, no dilation and no
    groups. Outputs are the same, bit for bit.
    """

    def convolution_op(self, inputs: Any, filters: Any) -> Any:
        """The convolution without bias and activation. Keras calls it."""
        if not self._applies(inputs):
            return super().convolution_op(inputs, filters)
        return _convolution(inputs, tf.convert_to_tensor(filters), tuple(self.strides))

    def _applies(self, inputs: Any) -> bool:
        return (
            self.padding == "valid"
            and self.groups == 1
            and tuple(self.dilation_rate) == (1, 1)
            and self.data_format == "channels_last"
            and tf.is_tensor(inputs)
            and kernel.applies(inputs)
            and not kernel.under_xla()
        )


def _convolution(images: tf.Tensor, filters: tf.Tensor, strides: tuple[int, int]) -> tf.Tensor:
    @tf.custom_gradient
    def run(images: tf.Tensor, filters: tf.Tensor) -> Any:
        def gradient(d_outputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            d_images = _images_gradient(tf.shape(images), filters, d_outputs, strides)
            operation = kernel.operations().rl_lnlstm_filter_gradient
            return d_images, operation(images, d_outputs, kernel_size=filters.shape[:2].as_list(), strides=strides)

        return tf.nn.conv2d(images, filters, strides, "VALID"), gradient

    return run(images, filters)


def _images_gradient(sizes: tf.Tensor, filters: tf.Tensor, d_outputs: tf.Tensor, strides: tuple[int, int]) -> tf.Tensor:
    return tf.raw_ops.Conv2DBackpropInput(
        input_sizes=sizes, filter=filters, out_backprop=d_outputs, strides=[1, *strides, 1], padding="VALID"
    )


@tf.RegisterGradient("RlLnlstm>FilterGradient")
def _second_derivative(operation: tf.Operation, d_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    images, d_outputs = operation.inputs
    strides = tuple(operation.get_attr("strides"))
    d_images = _images_gradient(tf.shape(images), d_gradient, d_outputs, strides)
    return d_images, tf.nn.conv2d(images, d_gradient, strides, "VALID")
