"""`MaskedLNLSTM`: the recurrence as a Keras layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm import equations, kernel, recurrence
from rl_lnlstm.lstm.cell import MaskedLNLSTMCell
from rl_lnlstm.lstm.checks import check_dense, check_dynamic_shapes, check_inputs, check_shapes, is_pair
from rl_lnlstm.lstm.equations import State, Tensor, Weights
from rl_lnlstm.lstm.keras_rnn_methods import KerasRNNMethods
from rl_lnlstm.lstm.recurrence import Gates
from rl_lnlstm.lstm.weights import LNLSTMWeights, Shape

BACKENDS = ("auto", "while_loop", "kernel")


# Longer than most classes, because it is documented like the layers of Keras: arguments, calls, results and examples.
@keras.saving.register_keras_serializable(package="rl_lnlstm")
class MaskedLNLSTM(KerasRNNMethods, LNLSTMWeights):
    """Layer-normalised LSTM with per-step masks that reset its state, for sequences of any length.

    For each step t, with m_t the mask and LN layer normalisation (Ba, Kiros and Hinton, 2016)::

        h, c = m_t * h, m_t * c
        z    = LN(x_t @ kernel) * kernel_gamma + LN(h @ recurrent_kernel) * recurrent_gamma + bias
        i, f, o, g = split(z, 4)
        c    = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h    = sigmoid(o) * tanh(LN(c) * cell_gamma + cell_beta)

    One trace works for every sequence length, and the cost is linear in the length. Under mixed precision, matrix
    products use the compute dtype; statistics, gates and the cell use float32. The gradient is derived by hand. There
    is no gradient of `masks`, and no second derivative.

    In weights, the gates have the order i, f, o, g (input, forget, output, candidate). `keras.layers.LSTM` has the
    order i, f, g, o; `from_keras_lstm` converts it.

    Args:
        units: width of the output and of the state.
        return_sequences: return the outputs of all steps instead of only the last one.
        return_state: also return the final h and c.
        time_major: inputs, masks and outputs have time before batch.
        backend: `"while_loop"` is the portable TensorFlow implementation. `"kernel"` is C++ code for CPUs, compiled on
            first use. It needs float32 and a C++ compiler, and does not support `mask` and `recurrent_dropout`; for
            these the layer uses `"while_loop"`. `"auto"` chooses the fastest one that works. Exported models always get
            `"while_loop"`. If you save a `tf.function` that has already run, choose `"while_loop"` yourself.
        go_backwards: process the sequence from its end, and return the outputs in that order. Not allowed with
            `time_major`.
        stateful: start each batch from the final state of the one before. The batch size must be known. See
            `reset_state`.
        zero_output_for_mask: outputs of padded steps are zero. Otherwise they repeat the output before.
        kernel_initializer: initialises `kernel [features, 4 * units]`.
        recurrent_initializer: initialises `recurrent_kernel [units, 4 * units]`.
        bias_initializer: initialises `bias [4 * units]`.
        gamma_initializer: initialises the gains `kernel_gamma`, `recurrent_gamma [4 * units]`, `cell_gamma [units]`.
        beta_initializer: initialises `cell_beta [units]`.
        unit_forget_bias: start the forget gate's bias at one.
        use_bias: whether there is a bias.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: added to the losses.
        kernel_constraint, recurrent_constraint, bias_constraint: applied by the optimizer.
        dropout: fraction of the input features to drop in training, the same features in each step.
        recurrent_dropout: fraction of h to drop in training in the product with `recurrent_kernel`, the same units in
            each step.
        seed: seed of dropout.
        **kwargs: arguments of `keras.layers.Layer`: `name`, `dtype`, `trainable`, `activity_regularizer`.

    Call arguments:
        inputs: `[batch, time, features]`.
        masks: `[batch, time]`, bool, int or float: 1 carries the state into that step, 0 resets it to zeros before
            that step. None carries it everywhere. With `go_backwards`, "before" is in the order of processing.
        initial_state: `[h, c]`, each `[batch, units]`. Zeros if None.
        mask: `[batch, time]`, bool: Keras' padding mask. Keras passes it on from layers such as `Masking` or
            `Embedding(mask_zero=True)`. False skips a step: the state stays unchanged, and inputs and `masks` of this
            step are ignored.
        training: whether to apply dropout.

    Returns:
        The same as `keras.layers.LSTM`: the last output `[batch, units]` or, with `return_sequences`, all
        `[batch, time, units]`; with `return_state`, h and c follow, each `[batch, units]`.

    Raises:
        UserError: an argument is wrong. The message says what was given and what was expected.

    Example:

    >>> layer = MaskedLNLSTM(4, return_sequences=True, return_state=True)
    >>> ys, h, c = layer(np.ones([32, 10, 8]), masks=np.ones([32, 10], bool))
    >>> ys.shape
    TensorShape([32, 10, 4])
    """

    def __init__(
        self,
        units: int,
        return_sequences: bool = False,
        return_state: bool = False,
        time_major: bool = False,
        backend: str = "auto",
        go_backwards: bool = False,
        stateful: bool = False,
        zero_output_for_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        if backend not in BACKENDS:
            raise UserError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        if go_backwards and time_major:
            # keras.layers.Bidirectional would silently reverse the outputs along the batch axis.
            raise UserError("go_backwards needs time_major=False: reverse time-major inputs before the call instead")
        super().__init__(units, **kwargs)
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.time_major = time_major
        self.backend = backend
        self.go_backwards = go_backwards
        self.stateful = stateful
        self.zero_output_for_mask = zero_output_for_mask
        self.supports_masking = True

    @classmethod
    def from_keras_lstm(cls, lstm: keras.layers.LSTM, **kwargs: Any) -> MaskedLNLSTM:
        """Makes a layer with the weights and options of a `keras.layers.LSTM`. The gates are reordered to i, f, o, g.

        The outputs differ from those of the LSTM, because this layer normalises the two products and the cell. Use the
        result as a starting point for training, not as an equivalent model. An LSTM that is not built yet passes on
        only its options.

        Args:
            lstm: the LSTM, with the activations tanh and sigmoid.
            **kwargs: arguments of `MaskedLNLSTM` that replace those of `lstm`.

        Raises:
            UserError: `lstm` is not an LSTM, or has other activations.

        Example:

        >>> lstm = keras.layers.LSTM(4)
        >>> lstm.build([None, None, 3])
        >>> MaskedLNLSTM.from_keras_lstm(lstm).kernel.shape
        (3, 16)
        """
        if not isinstance(lstm, keras.layers.LSTM):
            raise UserError(f"lstm must be a keras.layers.LSTM, got a {type(lstm).__name__}")
        config = lstm.get_config()
        for name in ("use_cudnn", "unroll", "name"):
            config.pop(name, None)
        layer = cls(**{**config, "dtype": lstm.dtype_policy, **kwargs})
        if lstm.built:
            batch = lstm.states[0].shape[0] if lstm.stateful else None
            steps = (None, batch) if layer.time_major else (batch, None)
            layer.build((*steps, lstm.cell.kernel.shape[0]))
            for name in ("kernel", "recurrent_kernel", "bias"):
                own, given = getattr(layer, name), getattr(lstm.cell, name)
                if own is not None and given is not None:
                    i, f, g, o = keras.ops.split(given, 4, -1)
                    own.assign(keras.ops.concatenate([i, f, o, g], -1))
                elif own is not None:  # an LSTM without a bias
                    own.assign(keras.ops.zeros_like(own))
        return layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the class."""
        check_dense(self.name, (args, kwargs))
        # If there are other tensors, such as `masks`, Keras does not pass on the padding mask of the inputs.
        padding = getattr(args[0] if args else kwargs.get("inputs"), "_keras_mask", None)
        if padding is not None and len(args) < 4 and kwargs.get("mask") is None:  # `mask` is the fourth argument
            kwargs["mask"] = padding
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Shape) -> None:
        """Makes the weights and, if the layer is stateful, its state."""
        check_inputs(self._expected, input_shape)
        super().build(input_shape)
        if self.stateful:
            self._make_state(input_shape)

    def call(
        self,
        inputs: Tensor,
        masks: Tensor | None = None,
        initial_state: Sequence[Tensor] | None = None,
        mask: Tensor | None = None,
        training: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """The whole sequence; see the class."""
        drops_state = bool(training and self.recurrent_dropout)
        inputs, masks, state, padding = self._tensors(inputs, masks, initial_state, mask, not drops_state)
        dropout = None
        if training and self.dropout:
            dropped = self._dropout_factors(inputs, inputs.shape[-1], self.dropout)
            inputs *= tf.expand_dims(dropped, 0 if self.time_major else 1)
        if drops_state:
            dropout = self._dropout_factors(inputs, self.units, self.recurrent_dropout)
        outputs, state = self._unroll(inputs, masks, state, padding, dropout)
        if not tf.executing_eagerly():
            outputs.set_shape([*inputs.shape[:2], self.units])
            for part in state:
                part.set_shape([self._expected.batch(inputs.shape), self.units])
        if self.stateful:
            for variable, part in zip(self.states or (), state, strict=True):
                variable.assign(tf.cast(part, variable.dtype))
        outputs = self._outputs(outputs, state.h, padding)
        return (outputs, *state) if self.return_state else outputs

    def _tensors(
        self, inputs: Any, masks: Any, initial_state: Any, mask: Any, may_compile: bool
    ) -> tuple[Tensor, Tensor | None, State, Tensor | None]:
        """Checks the arguments of a call, and converts their dtypes and their order in time for the computation.

        `may_compile`: whether the kernel may be used, which checks sizes itself when it runs.
        """
        inputs = tf.cast(tf.convert_to_tensor(inputs), self.compute_dtype)
        if initial_state is None and self.stateful:
            initial_state = self.states
        if initial_state is not None and is_pair(initial_state):
            initial_state = [tf.cast(tf.convert_to_tensor(part), inputs.dtype) for part in initial_state]
        steps = {
            name: None if tensor is None else tf.convert_to_tensor(tensor)
            for name, tensor in (("masks", masks), ("mask", mask))
        }
        check_shapes(self._expected, inputs, steps, initial_state)
        if not (may_compile and self._is_compiled(inputs, steps["mask"])):
            check_dynamic_shapes(self._expected, inputs, steps, initial_state)
        masks = None if masks is None else tf.cast(steps["masks"], inputs.dtype)
        mask = None if mask is None else tf.cast(steps["mask"], tf.bool)
        if initial_state is None:
            initial_state = [tf.zeros([self._expected.batch(tf.shape(inputs)), self.units], inputs.dtype)] * 2
        if self.go_backwards:
            inputs, masks, mask = (None if part is None else tf.reverse(part, [1]) for part in (inputs, masks, mask))
        return inputs, masks, State(*initial_state), mask

    def _is_compiled(self, inputs: Tensor, *unknown_to_the_kernel: Tensor | None) -> bool:
        is_plain = all(part is None for part in unknown_to_the_kernel)
        return is_plain and self.backend != "while_loop" and kernel.applies(inputs)

    def _dropout_factors(self, inputs: Tensor, width: int, rate: float) -> Tensor:
        """Dropout factors `[batch, width]`: 0 for dropped units, and 1 / (1 - rate) for the others."""
        ones = tf.ones([self._expected.batch(tf.shape(inputs)), width], inputs.dtype)
        return keras.random.dropout(ones, rate, seed=self.seed_generator)

    def _unroll(
        self, inputs: Tensor, masks: Tensor | None, state: State, padding: Tensor | None, dropout: Tensor | None
    ) -> tuple[Tensor, State]:
        """Computes outputs and the final state, in the layout of the inputs."""
        weights = self._weights
        if self._is_compiled(inputs, padding, dropout):
            return kernel.unroll(inputs, masks, state, weights, self.time_major)
        if not self.time_major:
            inputs = tf.transpose(inputs, [1, 0, 2])
            masks, padding = (None if part is None else tf.transpose(part) for part in (masks, padding))
        if inputs.shape[0] == 1 and padding is None:  # a single step, as in acting, needs no loop
            mask = None if masks is None else tf.stop_gradient(masks[0][:, tf.newaxis])  # as in longer sequences
            state = equations.step(inputs[0], equations.enter(state, mask, dropout), weights)
            outputs = state.h[tf.newaxis]
        else:
            outputs, state = recurrence.unroll(inputs, masks, state, weights, padding, dropout)
        return (outputs if self.time_major else tf.transpose(outputs, [1, 0, 2])), state

    def _outputs(self, outputs: Tensor, last: Tensor, padding: Tensor | None) -> Tensor:
        """The outputs to return. As in Keras, padded steps repeat the output before, or zeros at the start."""
        if padding is None:
            return outputs if self.return_sequences else last
        axis = 0 if self.time_major else 1
        has_output = padding if self.zero_output_for_mask else tf.cumsum(tf.cast(padding, tf.int32), axis) > 0
        if not self.return_sequences:
            # Without steps, nothing has an output.
            outputs, has_output = last, tf.reduce_any(has_output[-1:] if self.time_major else has_output[:, -1:], axis)
        return tf.where(tf.expand_dims(has_output, -1), outputs, tf.zeros([], outputs.dtype))

    def gates(self, inputs: Any, masks: Any = None, initial_state: Sequence[Any] | None = None) -> Gates:
        """The gates and the cell at every step, for inspection. They are computed without a gradient.

        Args:
            inputs, masks, initial_state: as in a call.

        Returns:
            A NamedTuple `i, f, o, g, c` of `[batch, time, units]` (or time-major, as the inputs): the gates after
            sigmoid (i, f, o) and tanh (g), and the cell after the step, `c = f * (m_t * c) + i * g`.

        Example:

        >>> layer = MaskedLNLSTM(4)
        >>> layer.gates(np.ones([32, 10, 8])).f.shape
        TensorShape([32, 10, 4])
        """
        check_dense(self.name, (inputs, masks, initial_state))
        if not self.built:
            self.build(tf.convert_to_tensor(inputs).shape)
        inputs, masks, state, _ = self._tensors(inputs, masks, initial_state, None, may_compile=False)
        if self.time_major:
            return recurrence.gates_of_steps(inputs, masks, state, self._weights)
        masks = None if masks is None else tf.transpose(masks)
        gates = recurrence.gates_of_steps(tf.transpose(inputs, [1, 0, 2]), masks, state, self._weights)
        return Gates(*(tf.transpose(part, [1, 0, 2]) for part in gates))

    @property
    def cell(self) -> MaskedLNLSTMCell:
        """A `MaskedLNLSTMCell` that shares the weights of this layer, so training one also trains the other."""
        if not self.built:
            raise UserError(f"{self.name} has no weights yet: build or call it before you use its cell")
        config = LNLSTMWeights.get_config(self)
        cell = MaskedLNLSTMCell.from_config({**config, "name": f"{self.name}_cell"})
        for name in Weights._fields:
            setattr(cell, name, getattr(self, name))
        cell.built = True
        return cell

    def __dir__(self) -> list[str]:
        # Keras saves the weights of every layer that it finds in dir(), so the cell's weights would be saved twice.
        return [name for name in super().__dir__() if name != "cell"]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = (
            *("return_sequences", "return_state", "time_major", "backend"),
            *("go_backwards", "stateful", "zero_output_for_mask"),
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}
