"""Methods that Keras expects of a recurrent layer besides `call`: for shapes, padding masks and stateful layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src.utils import tracking

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.checks import Expected, check_shapes
from rl_lnlstm.lstm.equations import State, Tensor
from rl_lnlstm.lstm.weights import Shape


class KerasRNNMethods:
    """The part of `MaskedLNLSTM` that `keras.layers.RNN` defines for Keras' own recurrent layers."""

    name: str
    units: int
    built: bool
    kernel: keras.Variable
    compute_dtype: str
    variable_dtype: str
    return_sequences: bool
    return_state: bool
    time_major: bool
    states: list[keras.Variable] | None = None
    get_initial_state: Callable[..., list[Tensor]]

    @property
    def _expected(self) -> Expected:
        return Expected(self.name, self.kernel.shape[0] if self.built else None, self.units, self.time_major)

    def _make_state(self, input_shape: Shape) -> None:
        batch = self._expected.batch(input_shape)
        if batch is None:
            raise UserError(
                f"{self.name} is stateful and needs a known batch size, got inputs of shape {list(input_shape)}: "
                "use keras.Input(batch_shape=[batch, time, features])"
            )
        with tracking.DotNotTrackScope():  # as in Keras' RNN layers, the state is not a weight
            self.states = [
                keras.Variable(zeros, trainable=False, dtype=self.variable_dtype, autocast=False, name=name)
                for name, zeros in zip(State._fields, self.get_initial_state(batch), strict=True)
            ]

    def reset_state(self) -> None:
        """Sets the state of a stateful layer to zeros."""
        for variable in self.states or ():
            variable.assign(keras.ops.zeros_like(variable))

    def reset_states(self) -> None:
        """The name of `reset_state` in Keras 2."""
        self.reset_state()

    def compute_output_shape(self, sequences_shape: Shape, initial_state_shape: Any = None) -> Any:
        """The shapes of the results of a call."""
        state = (self._expected.batch(sequences_shape), self.units)
        output = (*sequences_shape[:2], self.units) if self.return_sequences else state
        return (output, state, state) if self.return_state else output

    def compute_output_spec(
        self, inputs: Any, masks: Any = None, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        """The results of a call in a symbolic model. Shapes are checked as in any other call."""
        check_shapes(self._expected, inputs, {"masks": masks, "mask": mask}, initial_state)
        shapes = self.compute_output_shape(inputs.shape)
        if not self.return_state:
            return keras.KerasTensor(shapes, self.compute_dtype)
        return tuple(keras.KerasTensor(shape, self.compute_dtype) for shape in shapes)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The padding mask of the outputs, with the same rules as in Keras' RNN layers."""
        mask = keras.tree.flatten(previous_mask)[0] if previous_mask is not None else None
        output_mask = mask if self.return_sequences else None
        return [output_mask, None, None] if self.return_state else output_mask
