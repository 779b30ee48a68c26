"""`MaskedLNLSTMCell`: one step of the recurrence as a Keras layer."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf
from keras.src.layers.rnn.dropout_rnn_cell import DropoutRNNCell

from rl_lnlstm.lstm import equations
from rl_lnlstm.lstm.equations import State, Tensor
from rl_lnlstm.lstm.weights import LNLSTMWeights


@keras.saving.register_keras_serializable(package="rl_lnlstm")
class MaskedLNLSTMCell(LNLSTMWeights, DropoutRNNCell):
    """One step of the layer-normalised LSTM, for `keras.layers.RNN` or a loop of your own.

    The cell has no masks, because `keras.layers.RNN` knows only padding. For resets use `MaskedLNLSTM`, or multiply the
    states by the mask before the call.

    Args:
        units: width of the output and of the state.
        **kwargs: the arguments of `MaskedLNLSTM` that concern weights and dropout. As in `keras.layers.LSTMCell`, all
            steps of a sequence share one dropout mask. In a loop of your own, call `reset_dropout_mask()` and
            `reset_recurrent_dropout_mask()` for a new mask.

    Call arguments:
        inputs: `[batch, features]`.
        states: `[h, c]`, each `[batch, units]`.
        training: whether to apply dropout.

    Returns:
        The output `[batch, units]` and the new `[h, c]`, in the compute dtype.

    Example:

    >>> rnn = keras.layers.RNN(MaskedLNLSTMCell(4), return_sequences=True)
    >>> rnn(np.ones([32, 10, 8])).shape
    TensorShape([32, 10, 4])
    """

    @property
    def state_size(self) -> list[int]:
        """The widths of h and c."""
        return [self.units, self.units]

    @property
    def output_size(self) -> int:
        """The width of the output."""
        return self.units

    def call(self, inputs: Tensor, states: Sequence[Tensor], training: bool = False) -> tuple[Tensor, list[Tensor]]:
        """One step; see the class."""
        inputs, state, dropout = tf.convert_to_tensor(inputs), State(*states), None
        if training and self.dropout:
            inputs *= self.get_dropout_mask(inputs)
        if training and self.recurrent_dropout:
            dropout = self.get_recurrent_dropout_mask(state.h)
        state = equations.step(inputs, equations.enter(state, None, dropout), self._weights)
        return state.h, list(state)
