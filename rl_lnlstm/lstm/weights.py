"""The weights of the layer-normalised LSTM, and the arguments that layer and cell share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import State, Tensor, Weights

if keras.backend.backend() != "tensorflow":
    raise UserError(
        f"rl_lnlstm needs Keras on the TensorFlow backend, got {keras.backend.backend()!r}: "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )

Shape = Sequence[int | None]

# Arguments of keras.layers.LSTM that can have only one value here, which may have several forms.
FIXED: dict[str, tuple[tuple[Any, ...], str]] = {
    "unroll": ((False,), "one loop serves every length"),
    "activation": (("tanh", keras.activations.tanh), "the gradient is derived for it"),
    "recurrent_activation": (("sigmoid", keras.activations.sigmoid), "the gradient is derived for it"),
}


class LNLSTMWeights(keras.layers.Layer):
    """The base of `MaskedLNLSTM` and `MaskedLNLSTMCell`: constructor, `build` and `get_config`."""

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
        use_bias: bool = True,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(units, bool) or not hasattr(units, "__index__") or units < 1:
            raise UserError(f"units must be an integer of at least 1, got {units!r}")
        for name, (forms, reason) in FIXED.items():
            if (got := kwargs.pop(name, forms[0])) not in forms:
                raise UserError(f"{name} must be {forms[0]!r}, because {reason}; got {got!r}")
        for name, rate in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
            if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
                raise UserError(f"{name} must be a number of at least 0 and less than 1, got {rate!r}")
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
        self.use_bias = use_bias
        self.dropout = float(dropout)
        self.recurrent_dropout = float(recurrent_dropout)
        self.seed = seed
        if self.dropout or self.recurrent_dropout:  # otherwise the layer needs no seed generator
            self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Shape) -> None:
        """Makes the weights."""
        features, units = input_shape[-1], self.units
        if features is None:
            raise UserError(
                f"{self.name}: the last dimension of the inputs must be known, got shape {list(input_shape)}"
            )

        def weight(name: str, shape: tuple[int, ...], initializer: Any, group: str | None = None) -> keras.Variable:
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                regularizer=group and getattr(self, f"{group}_regularizer"),
                constraint=group and getattr(self, f"{group}_constraint"),
                # Turn Keras' autocast off. The recurrence casts only for matmuls, and statistics keep the variables'
                # dtype.
                autocast=False,
            )

        self.kernel = weight("kernel", (features, 4 * units), self.kernel_initializer, "kernel")
        self.recurrent_kernel = weight("recurrent_kernel", (units, 4 * units), self.recurrent_initializer, "recurrent")
        self.kernel_gamma = weight("kernel_gamma", (4 * units,), self.gamma_initializer)
        self.recurrent_gamma = weight("recurrent_gamma", (4 * units,), self.gamma_initializer)
        self.bias = weight("bias", (4 * units,), self._initial_bias, "bias") if self.use_bias else None
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
        weights = (getattr(self, name) for name in Weights._fields)
        return Weights(*(self._no_bias() if weight is None else tf.convert_to_tensor(weight) for weight in weights))

    def _no_bias(self) -> Tensor:
        return tf.zeros([4 * self.units], self.variable_dtype)

    def get_initial_state(self, batch_size: int | Tensor | None = None) -> list[Tensor]:
        """A state of zeros, `[h, c]`, each `[batch_size, units]`, in the compute dtype."""
        return [keras.ops.zeros((batch_size, self.units), dtype=self.compute_dtype) for _ in State._fields]

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
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
        own = ("units", "unit_forget_bias", "use_bias", "dropout", "recurrent_dropout", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in own}, **objects}
