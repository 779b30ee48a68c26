"""Adam, with the small variables of a policy in one vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

BETA_1, BETA_2 = 0.9, 0.999
SMALL = 2048  # elements of a variable


class _Group(NamedTuple):
    """Variables that are trained as one vector, and their moments as such vectors."""

    variables: list[keras.Variable]
    sizes: list[int]
    m: tf.Variable
    v: tf.Variable

    @classmethod
    def of(cls, variables: Sequence[keras.Variable]) -> _Group:
        sizes = [int(np.prod(variable.shape)) for variable in variables]
        return cls(list(variables), sizes, *(tf.Variable(tf.zeros([sum(sizes)])) for _ in range(2)))

    @property
    def name(self) -> str:
        return self.variables[0].path if len(self.variables) == 1 else "a small weight, such as a bias"

    def moments(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Both moments of each variable."""
        parts = (np.split(moment.numpy(), np.cumsum(self.sizes)[:-1]) for moment in (self.m, self.v))
        return [
            (m.reshape(variable.shape), v.reshape(variable.shape))
            for variable, m, v in zip(self.variables, *parts, strict=True)
        ]


class Adam:
    """Adam, Kingma and Ba (2015), algorithm 1 with the more efficient order of its section 2.

    It computes the same as `keras.optimizers.Adam`. But all small variables, the biases and gains, are one vector,
    which TensorFlow traces and XLA compiles in a fraction of the time. Large ones stay apart, because XLA joins vectors
    slowly when it runs.

    Args:
        variables: what to train, in any float dtype.
        learning_rate: the first learning rate.
        epsilon: added to the root of the second moment.

    Attributes:
        learning_rate: a variable.
        names: a name for each vector of `vectors`.
    """

    def __init__(self, variables: Sequence[keras.Variable], learning_rate: float, epsilon: float) -> None:
        self._variables, self._epsilon = list(variables), epsilon
        small = [variable for variable in variables if np.prod(variable.shape) <= SMALL]
        large = [[variable] for variable in variables if np.prod(variable.shape) > SMALL]
        self._groups = [_Group.of(group) for group in large + ([small] if small else [])]
        self.names = [group.name for group in self._groups]
        self.learning_rate = tf.Variable(learning_rate, dtype=tf.float32)
        self._steps = tf.Variable(0, dtype=tf.int64)

    def vectors(self, gradients: Sequence[Any]) -> list[Any]:
        """The gradients of the variables as float32 vectors for `apply`."""
        of_variable = {id(variable): part for variable, part in zip(self._variables, gradients, strict=True)}
        return [
            tf.concat(
                [tf.reshape(tf.cast(of_variable[id(variable)], tf.float32), [-1]) for variable in group.variables], 0
            )
            for group in self._groups
        ]

    def apply(self, vectors: Sequence[Any], wanted: Any) -> None:
        """Takes a step along gradients. Unless `wanted`, a bool scalar, every variable stays as it is."""
        step = tf.cast(self._steps + 1, tf.float32)
        bias_1, bias_2 = (1.0 - tf.pow(beta, step) for beta in (BETA_1, BETA_2))
        rate = self.learning_rate * tf.sqrt(bias_2) / bias_1
        self._steps.assign(tf.where(wanted, self._steps + 1, self._steps))
        for group, gradient in zip(self._groups, vectors, strict=True):
            m = group.m + (gradient - group.m) * (1.0 - BETA_1)
            v = group.v + (tf.square(gradient) - group.v) * (1.0 - BETA_2)
            change = tf.where(wanted, m * rate / (tf.sqrt(v) + self._epsilon), 0.0)
            group.m.assign(tf.where(wanted, m, group.m))
            group.v.assign(tf.where(wanted, v, group.v))
            for variable, part in zip(group.variables, tf.split(change, group.sizes), strict=True):
                weight = variable.value
                new = weight - tf.cast(tf.reshape(part, weight.shape), weight.dtype)
                if variable.constraint is not None:
                    new = tf.where(wanted, variable.constraint(new), weight)
                weight.assign(new)

    def get_state(self) -> list[np.ndarray]:
        """The number of steps, the learning rate, and both moments of each variable in turn, as Keras lists them."""
        moments = {
            id(variable): parts
            for group in self._groups
            for variable, parts in zip(group.variables, group.moments(), strict=True)
        }
        of_variables = [part for variable in self._variables for part in moments[id(variable)]]
        return [self._steps.numpy(), self.learning_rate.numpy(), *of_variables]

    def set_state(self, state: Sequence[np.ndarray]) -> None:
        """Continues from what `get_state` returned."""
        steps, learning_rate, *moments = state
        self._steps.assign(steps)
        self.learning_rate.assign(learning_rate)
        of_groups = zip(self._groups, self.vectors(moments[::2]), self.vectors(moments[1::2]), strict=True)
        for group, m, v in of_groups:
            group.m.assign(m)
            group.v.assign(v)
