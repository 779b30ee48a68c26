"""Adam on vectors of variables computes the same as Keras' Adam."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm.ppo.adam import Adam

SHAPES = [(3, 2), (), (41, 50), (4,), (3000,)]


class Halves(keras.constraints.Constraint):
    def __call__(self, weight):
        return weight / 2


def variables_of(seed=0, **options):
    rng = np.random.default_rng(seed)
    return [keras.Variable(rng.normal(size=shape).astype(np.float32), **options) for shape in SHAPES]


def gradients_of(rng):
    return [tf.constant(rng.normal(size=shape), tf.float32) for shape in SHAPES]


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_computes_what_keras_does(jit_compile):
    ours, theirs = variables_of(), variables_of()
    adam, reference = Adam(ours, 0.1, 1e-5), keras.optimizers.Adam(0.1, epsilon=1e-5)
    reference.build(theirs)
    step = tf.function(lambda *parts: adam.apply(adam.vectors(parts), True), jit_compile=jit_compile)
    rng = np.random.default_rng(1)
    for rate in (0.1, 0.1, 0.05):
        adam.learning_rate.assign(rate)
        reference.learning_rate.assign(rate)
        gradients = gradients_of(rng)
        step(*gradients)
        reference.apply(gradients, theirs)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(adam.get_state(), reference.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_an_unwanted_step_changes_nothing():
    variables = variables_of()
    variables[0].constraint = Halves()
    adam, rng = Adam(variables, 0.1, 1e-5), np.random.default_rng(1)
    adam.apply(adam.vectors(gradients_of(rng)), True)
    before = [*(variable.numpy() for variable in variables), *adam.get_state()]
    adam.apply(adam.vectors([part * np.nan for part in gradients_of(rng)]), False)
    for one, other in zip(before, [*(variable.numpy() for variable in variables), *adam.get_state()], strict=True):
        np.testing.assert_array_equal(one, other)


def test_constraints_of_weights_hold_after_each_step():
    free, constrained = variables_of(), variables_of()
    constrained[2].constraint = Halves()
    gradients = gradients_of(np.random.default_rng(1))
    for variables in (free, constrained):
        adam = Adam(variables, 0.1, 1e-5)
        adam.apply(adam.vectors(gradients), True)
    for number, (one, other) in enumerate(zip(free, constrained, strict=True)):
        np.testing.assert_allclose(other, one / 2 if number == 2 else one)


def test_it_continues_from_its_state():
    states = []
    for interrupted in (False, True):
        variables, rng = variables_of(), np.random.default_rng(1)
        adam = Adam(variables, 0.1, 1e-5)
        for _ in range(2):
            adam.apply(adam.vectors(gradients_of(rng)), True)
            if interrupted:
                state, adam = adam.get_state(), Adam(variables, 0.1, 1e-5)
                adam.set_state(state)
        states.append([*(variable.numpy() for variable in variables), *adam.get_state()])
    for one, other in zip(*states, strict=True):
        np.testing.assert_array_equal(one, other)


def test_there_may_be_no_small_variable_or_no_large_one():
    for variables in (variables_of()[2:3], variables_of()[:2]):
        adam, before = Adam(variables, 0.1, 1e-5), [variable.numpy() for variable in variables]
        adam.apply(adam.vectors([tf.ones(variable.shape) for variable in variables]), True)
        assert len(adam.names) == 1
        for one, other in zip(before, variables, strict=True):
            np.testing.assert_allclose(other, one - 0.1, atol=1e-4)
