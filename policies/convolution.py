"""`Conv2D`: Keras' layer, with a faster gradient on CPUs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from rl_lnlstm.lstm.kernel import convolution


@keras.saving.register_keras_serializable("rl_lnlstm")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D`, which trains faster on a CPU.

    Outputs are the same, bit for bit. Only the gradient of the filters is computed differently, by the compiled kernel.
    On a GPU, under XLA, in other dtypes than float32, and with padding, dilation or groups, it is Keras' gradient.

    Example:
        >>> import keras
        >>> from rl_lnlstm.policies import Conv2D
        >>> layer = Conv2D(32, 8, strides=4, activation="relu")
        >>> layer(keras.ops.ones([2, 84, 84, 4])).shape
        TensorShape([2, 20, 20, 32])

    Args:
        filters, kernel_size, ...: those of `keras.layers.Conv2D`.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """The convolution without bias and activation. Keras calls it."""
        plain = super().convolution_op
        if not (self._is_simple and convolution.applies(inputs)):
            return plain(inputs, kernel)
        return convolution.convolution(plain, inputs, tf.convert_to_tensor(kernel), tuple(self.strides))

    @property
    def _is_simple(self) -> bool:
        return (
            self.padding == "valid"
            and self.groups == 1
            and tuple(self.dilation_rate) == (1, 1)
            and self.data_format == "channels_last"
        )
