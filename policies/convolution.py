"""Layers for images, which are faster on a CPU than Keras' own."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from rl_lnlstm.lstm.kernel import convolution


def activation_in_kernel(activation: Any) -> str | None:
    """The kernel's name for an activation of Keras; None if the kernel does not have it.

    The function itself is compared, because a user's activation may have the same name, and may have no hash.
    """
    return next((name for name in convolution.ACTIVATIONS if getattr(keras.activations, name) is activation), None)


@keras.saving.register_keras_serializable("rl_lnlstm")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, but faster on a CPU.

    The compiled kernel computes it and its gradients. It is Keras' layer without the kernel, on a GPU, under XLA, in
    exported models, in other dtypes than float32, with padding, dilation, groups or channels first, without a bias,
    with a `convolution_op` of its own, and with other activations than linear, ReLU, sigmoid and tanh.

    Which of the two is used is decided when the layer is traced. So XLA refuses a `tf.function` with this layer that
    was traced without XLA before.

    Example:
        >>> import keras
        >>> from rl_lnlstm.policies import Conv2D
        >>> layer = Conv2D(32, 8, strides=4, activation="relu")
        >>> layer(keras.ops.ones([2, 84, 84, 4])).shape
        TensorShape([2, 20, 20, 32])

    Args:
        filters, kernel_size, ...: those of `keras.layers.Conv2D`.
    """

    def call(self, inputs: Any) -> Any:
        """The layer's outputs, `[batch, rows, columns, filters]`."""
        activation = activation_in_kernel(self.activation)
        if activation is None or not (is_simple(self) and convolution.applies(inputs)):
            return super().call(inputs)
        filters, bias = (tf.convert_to_tensor(weight) for weight in (self.kernel, self.bias))
        return convolution.convolution(inputs, filters, bias, tuple(self.strides), activation)


def is_simple(layer: keras.layers.Conv2D) -> bool:
    """Whether the kernel knows such a convolution.

    It has a bias and the channels last, and neither padding, dilation, groups nor a `convolution_op` of its own.
    """
    return (
        layer.use_bias
        and layer.padding == "valid"
        and layer.groups == 1
        and tuple(layer.dilation_rate) == (1, 1)
        and layer.data_format == "channels_last"
        and type(layer).convolution_op is keras.layers.Conv2D.convolution_op
        and "convolution_op" not in vars(layer)
    )


@keras.saving.register_keras_serializable("rl_lnlstm")
class Pixels(keras.layers.Rescaling):
    """Converts images to floats with the channels last, and multiplies them by `scale`; faster than Keras on a CPU.

    Where the compiled kernel cannot be used (see `Conv2D`), Keras computes it: it moves the channels if necessary, and
    scales. If a graph converts bytes to floats directly before this layer, the kernel reads the bytes. These floats
    then have a gradient only for a `tf.GradientTape` that watches them.

    Example:
        >>> import keras
        >>> from rl_lnlstm.policies import Pixels
        >>> layer = Pixels(1 / 255, channels_first=True)
        >>> layer(keras.ops.ones([2, 4, 84, 84])).shape
        TensorShape([2, 84, 84, 4])

    Args:
        scale: multiplies all values.
        channels_first: images have shape `[batch, channels, rows, columns]`, otherwise `[batch, rows, columns,
            channels]` or `[batch, rows, columns]`.
        name, ...: those of `keras.layers.Layer`.

    Raises:
        ValueError: an `offset`, which only `Rescaling` has, or images of another number of axes.
    """

    def __init__(self, scale: float = 1.0, *, channels_first: bool = False, **kwargs: Any) -> None:
        if "offset" in kwargs:
            raise ValueError(f"Pixels has no offset, got {kwargs['offset']}: use keras.layers.Rescaling")
        super().__init__(float(scale), **kwargs)
        self.channels_first = channels_first

    @property
    def offset(self) -> float:
        """0. `Rescaling` adds it to all values, but the kernel does not."""
        return 0.0

    @offset.setter
    def offset(self, offset: float) -> None:
        if offset != 0:
            raise ValueError(f"Pixels has no offset, got {offset}: use keras.layers.Rescaling")

    def call(self, inputs: Any) -> Any:
        """The pixels, `[batch, rows, columns, channels]`, in the layer's compute dtype."""
        if len(inputs.shape) not in ((4,) if self.channels_first else (3, 4)):
            raise ValueError(self._wrong_axes(inputs.shape))
        if convolution.applies(inputs):
            return convolution.pixels(inputs, self.channels_first, self.scale)
        if len(inputs.shape) == 3:
            inputs = keras.ops.expand_dims(inputs, -1)
        return super().call(keras.ops.transpose(inputs, (0, 2, 3, 1)) if self.channels_first else inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The shape of the pixels."""
        batch, *size = input_shape
        if len(size) == 2 and not self.channels_first:
            return (batch, *size, 1)
        if len(size) != 3:
            raise ValueError(self._wrong_axes(input_shape))
        return (batch, *size[1:], size[0]) if self.channels_first else (batch, *size)

    def _wrong_axes(self, shape: Any) -> str:
        last = "[batch, rows, columns, channels] or [batch, rows, columns]"
        expected = "[batch, channels, rows, columns]" if self.channels_first else last
        return f"{self.name}: images must have shape {expected}, got {list(shape)}"

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        config = super().get_config()
        del config["offset"]
        return {**config, "channels_first": self.channels_first}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Pixels:
        """The layer with these arguments. That of `Rescaling` expects an offset."""
        return cls(**config)
