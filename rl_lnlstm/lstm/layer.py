"""`MaskedLNLSTM` and `MaskedLNLSTMCell`: the recurrence as Keras layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm import equations, kernel, recurrence
from rl_lnlstm.lstm.equations import State, Tensor, Weights

if keras.backend.backend() != "tensorflow":
    raise UserError(
        f"rl_lnlstm needs Keras on the TensorFlow backend, got {keras.backend.backend()!r}: "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )

BACKENDS = ("auto", "while_loop", "kernel")

Shape = Sequence[int | None]


class _LNLSTMWeights(keras.layers.Layer):
    """The seven weights, the same in the cell and in the layer: constructor, `build` and `get_config`."""

    def __init__(
        self,
        units: int,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_initializer: Any = "zeros",
        unit_forget_bias: bool = True,
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(units, bool) or not hasattr(units, "__index__") or units < 1:
            raise UserError(f"units must be an integer of at least 1, got {units!r}")
        super().__init__(**kwargs)
        self.units = int(units)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.beta_initializer = keras.initializers.get(beta_initializer)
        self.unit_forget_bias = unit_forget_bias
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = keras.regularizers.get(recurrent_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.recurrent_constraint = keras.constraints.get(recurrent_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)

    def build(self, input_shape: Shape) -> None:
        features = input_shape[-1]
        if features is None:
            raise UserError(f"{self.name}: the last dimension of the inputs must be known, got shape {input_shape}")

        def weight(
            name: str, shape: tuple[int, ...], initializer: Any, regularizer: Any = None, constraint: Any = None
        ) -> keras.Variable:
            # The recurrence casts: only matmuls run in the compute dtype, statistics stay in the variables' dtype.
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                regularizer=regularizer,
                constraint=constraint,
                autocast=False,
            )

        units = self.units
        self.kernel = weight(
            "kernel", (features, 4 * units), self.kernel_initializer, self.kernel_regularizer, self.kernel_constraint
        )
        self.recurrent_kernel = weight(
            "recurrent_kernel",
            (units, 4 * units),
            self.recurrent_initializer,
            self.recurrent_regularizer,
            self.recurrent_constraint,
        )
        self.kernel_gamma = weight("kernel_gamma", (4 * units,), self.gamma_initializer)
        self.recurrent_gamma = weight("recurrent_gamma", (4 * units,), self.gamma_initializer)
        self.bias = weight("bias", (4 * units,), self._initial_bias, self.bias_regularizer, self.bias_constraint)
        self.cell_gamma = weight("cell_gamma", (units,), self.gamma_initializer)
        self.cell_beta = weight("cell_beta", (units,), self.beta_initializer)
        self.built = True

    def _initial_bias(self, shape: Shape, dtype: Any = None) -> Tensor:
        bias = self.bias_initializer(shape, dtype=dtype)
        if not self.unit_forget_bias:
            return bias
        i, f, o, g = keras.ops.split(bias, 4)
        return keras.ops.concatenate([i, keras.ops.ones_like(f), o, g])

    @property
    def _weights(self) -> Weights:
        return Weights(*(tf.convert_to_tensor(getattr(self, name)) for name in Weights._fields))

    def get_initial_state(self, batch_size: int | Tensor | None = None) -> list[Tensor]:
        """A state of zeros, `[h, c]`, each `[batch_size, units]`, of the compute dtype."""
        return [keras.ops.zeros((batch_size, self.units), dtype=self.compute_dtype) for _ in State._fields]

    def get_config(self) -> dict[str, Any]:
        serialize = {
            "initializer": keras.initializers.serialize,
            "regularizer": keras.regularizers.serialize,
            "constraint": keras.constraints.serialize,
        }
        objects = {
            f"{name}_{kind}": serialize[kind](getattr(self, f"{name}_{kind}"))
            for kind, names in {
                "initializer": ("kernel", "recurrent", "bias", "gamma", "beta"),
                "regularizer": ("kernel", "recurrent", "bias", "activity"),
                "constraint": ("kernel", "recurrent", "bias"),
            }.items()
            for name in names
        }
        own = {"units": self.units, "unit_forget_bias": self.unit_forget_bias}
        return {**super().get_config(), **own, **objects}


@keras.saving.register_keras_serializable(package="rl_lnlstm")
class MaskedLNLSTMCell(_LNLSTMWeights):
    """One step of the layer-normalised LSTM, for `keras.layers.RNN` or a loop of one's own.

    It takes the arguments of `MaskedLNLSTM` that concern the weights. It has no masks: `keras.layers.RNN` knows only
    padding. For resets, use `MaskedLNLSTM`, or multiply the states by the mask before the call.

    Call arguments:
        inputs: `[batch, features]`.
        states: `[h, c]`, each `[batch, units]`.

    Returns:
        The output `[batch, units]`, and the new `[h, c]`, in the compute dtype.

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

    def call(self, inputs: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One step; see the class."""
        state = equations.step(tf.convert_to_tensor(inputs), State(*states), self._weights)
        return state.h, list(state)


@keras.saving.register_keras_serializable(package="rl_lnlstm")
class MaskedLNLSTM(_LNLSTMWeights):
    """Layer-normalised LSTM with per-step masks that reset its state, for sequences of any length.

    For each step t, with m_t the mask and LN layer normalisation (Ba, Kiros and Hinton, 2016)::

        h, c = m_t * h, m_t * c
        z    = LN(x_t @ kernel) * kernel_gamma + LN(h @ recurrent_kernel) * recurrent_gamma + bias
        i, f, o, g = split(z, 4)
        c    = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h    = sigmoid(o) * tanh(LN(c) * cell_gamma + cell_beta)

    One trace serves every sequence length, and cost is linear in it. Under mixed precision the matrix products are
    taken in the compute dtype, statistics, gates and the cell in float32. The gradient is derived by hand; there is
    none of `masks`, and no second one. To load a saved model, import this class first.

    Args:
        units: width of the output and of the state.
        return_sequences: give the outputs of all steps, not of the last one only.
        return_state: give the final h and c as well.
        time_major: inputs, masks and outputs have time before batch.
        backend: "while_loop" is the portable TensorFlow implementation; "kernel", compiled for CPUs when it is first
            used, takes its place for float32 outside XLA, and where there is a C++ compiler; "auto" is the fastest
            one that applies. A function that is traced while its model is exported gets "while_loop"; to save a
            `tf.function` that has run before, make it with "while_loop".
        kernel_initializer: of `kernel [features, 4 * units]`, gates in the order i, f, o, g.
        recurrent_initializer: of `recurrent_kernel [units, 4 * units]`.
        bias_initializer: of `bias [4 * units]`.
        gamma_initializer: of the gains `kernel_gamma`, `recurrent_gamma [4 * units]` and `cell_gamma [units]`.
        beta_initializer: of `cell_beta [units]`.
        unit_forget_bias: start the forget gate's bias at one.
        kernel_regularizer, recurrent_regularizer, bias_regularizer: added to the losses.
        kernel_constraint, recurrent_constraint, bias_constraint: applied by the optimizer.
        **kwargs: of `keras.layers.Layer`: `name`, `dtype`, `trainable`, `activity_regularizer`.

    Call arguments:
        inputs: `[batch, time, features]`.
        masks: `[batch, time]`, bool, int or float: 1 carries the state into that step, 0 resets it to zeros before
            that step. None carries it everywhere. This is not Keras' padding mask, of which the layer takes none.
        initial_state: `[h, c]`, each `[batch, units]`. Zeros if None.

    Returns:
        As `keras.layers.LSTM`: the last output `[batch, units]` or, with `return_sequences`, all
        `[batch, time, units]`; with `return_state` followed by h and c, `[batch, units]`.

    Raises:
        UserError: an argument whose shape does not fit, named with what was got and what was expected.

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
        **kwargs: Any,
    ) -> None:
        if backend not in BACKENDS:
            raise UserError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        super().__init__(units, **kwargs)
        self.return_sequences = return_sequences
        self.return_state = return_state
        self.time_major = time_major
        self.backend = backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the class."""
        if "mask" in kwargs:
            raise TypeError(
                f"{self.name} has no argument `mask`: Keras' padding masks do not apply to it. "
                "Masks that reset the state go into `masks`, [batch, time]"
            )
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Shape) -> None:
        """Makes the weights."""
        self._check_inputs(input_shape)
        super().build(input_shape)

    def call(
        self, inputs: Tensor, masks: Tensor | None = None, initial_state: Sequence[Tensor] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The whole sequence; see the class."""
        inputs = tf.cast(tf.convert_to_tensor(inputs), self.compute_dtype)
        if masks is not None:
            masks = tf.convert_to_tensor(masks)
        if initial_state is not None and self._is_pair(initial_state):
            initial_state = [tf.cast(tf.convert_to_tensor(part), inputs.dtype) for part in initial_state]
        self._check_shapes(inputs, masks, initial_state)
        compiled = self.backend != "while_loop" and kernel.applies(inputs)
        if not compiled:  # the operation itself checks what is known only when it runs
            self._check_dynamic_shapes(inputs, masks, initial_state)

        if masks is not None:
            masks = tf.cast(masks, inputs.dtype)
        if initial_state is None:
            batch = tf.shape(inputs)[1 if self.time_major else 0]
            initial_state = [tf.zeros([batch, self.units], inputs.dtype)] * 2
        run = kernel.unroll if compiled else self._run
        outputs, state = run(inputs, masks, State(*initial_state), self._weights, self.time_major)
        if not self.return_sequences:
            outputs = state.h
        return (outputs, *state) if self.return_state else outputs

    @staticmethod
    def _run(
        inputs: Tensor, masks: Tensor | None, state: State, weights: Weights, time_major: bool
    ) -> tuple[Tensor, State]:
        if not time_major:
            masks = None if masks is None else tf.transpose(masks)
            outputs, state = MaskedLNLSTM._run(tf.transpose(inputs, [1, 0, 2]), masks, state, weights, True)
            return tf.transpose(outputs, [1, 0, 2]), state
        if inputs.shape[0] == 1:  # acting: no loop
            if masks is not None:
                state = equations.reset(state, masks[0][:, tf.newaxis])
            state = equations.step(inputs[0], state, weights)
            return state.h[tf.newaxis], state
        return recurrence.unroll(inputs, masks, state, weights)

    def compute_output_shape(self, input_shape: Shape) -> Any:
        """The shapes of what a call returns."""
        state = (input_shape[1 if self.time_major else 0], self.units)
        output = (*input_shape[:2], self.units) if self.return_sequences else state
        return (output, state, state) if self.return_state else output

    def compute_output_spec(self, inputs: Any, masks: Any = None, initial_state: Any = None) -> Any:
        """What a call in a symbolic model returns, whose shapes are checked as in any other call."""
        self._check_shapes(inputs, masks, initial_state)
        shapes = self.compute_output_shape(inputs.shape)
        if not self.return_state:
            return keras.KerasTensor(shapes, self.compute_dtype)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = ("return_sequences", "return_state", "time_major", "backend")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}}

    def _check_inputs(self, shape: Shape) -> None:
        features = self.kernel.shape[0] if self.built else "features"
        if len(shape) != 3 or (self.built and shape[-1] != features):
            layout = "time, batch" if self.time_major else "batch, time"
            raise UserError(f"{self.name}: inputs must have shape [{layout}, {features}], got {list(shape)}")

    def _check_shapes(self, inputs: Any, masks: Any, initial_state: Any) -> None:
        """What is known before it runs."""
        self._check_inputs(inputs.shape)
        expected = tf.TensorShape(inputs.shape[:2])
        if masks is not None and not expected.is_compatible_with(masks.shape):
            layout = "[time, batch]" if self.time_major else "[batch, time]"
            raise UserError(
                f"{self.name}: masks must have shape {layout} = {expected.as_list()} for inputs of shape "
                f"{list(inputs.shape)}, got {list(masks.shape)}"
            )
        if initial_state is None:
            return
        expected = tf.TensorShape([inputs.shape[1 if self.time_major else 0], self.units])
        is_pair = self._is_pair(initial_state)
        if not is_pair or not all(expected.is_compatible_with(part.shape) for part in initial_state):
            if is_pair:
                got = f"shapes {[list(getattr(part, 'shape', [])) for part in initial_state]}"
            else:
                got = f"{len(initial_state)} tensors" if isinstance(initial_state, (list, tuple)) else "a single tensor"
            raise UserError(
                f"{self.name}: initial_state must be [h, c], each [batch, units] = {expected.as_list()}, got {got}"
            )

    def _check_dynamic_shapes(self, inputs: Tensor, masks: Tensor | None, initial_state: Any) -> None:
        """What is known only when it runs: in a graph whose batch or time is not."""
        checks = [("masks must have", masks, tf.shape(inputs)[:2], inputs.shape[:2])]
        batch = 1 if self.time_major else 0
        for part in initial_state or ():
            expected = [inputs.shape[batch], self.units]
            checks.append(("initial_state must have", part, [tf.shape(inputs)[batch], self.units], expected))
        for what, tensor, shape, static in checks:
            if tensor is None or (tensor.shape.is_fully_defined() and tf.TensorShape(static).is_fully_defined()):
                continue
            tf.debugging.assert_equal(
                tf.shape(tensor), shape, f"{self.name}: {what} the shape [batch, ...] of the inputs"
            )

    @staticmethod
    def _is_pair(initial_state: Any) -> bool:
        return isinstance(initial_state, (list, tuple)) and len(initial_state) == 2
