"""The compiled kernel equals "while_loop" on every instruction set, and "while_loop" runs where it does not apply."""

import copy
import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm.lstm import kernel, recurrence
from rl_lnlstm.lstm.equations import State, Weights
from rl_lnlstm.lstm.kernel import build
from tests.lstm.fresh_process import run_fresh

pytestmark = pytest.mark.skipif(build._compiler() is None, reason="no C++ compiler")
# Of a single feature or of few units, normalisation leaves differences of nearly equal numbers, and steps magnify them.
SIZES = st.tuples(st.integers(0, 12), st.integers(0, 9), st.integers(2, 20), st.integers(8, 40))


class Case:
    """Random inputs, weights and the gradient that arrives from what follows."""

    def __init__(self, time: int, batch: int, features: int, units: int, masked: bool = True, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)

        def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> tf.Tensor:
            return tf.constant(mean + scale * rng.standard_normal(shape), tf.float32)

        self.inputs = normal(time, batch, features)
        self.masks = tf.constant(rng.random((time, batch)) > 0.2, tf.float32) if masked else None
        self.state = State(normal(batch, units), normal(batch, units))
        self.weights = Weights(
            kernel=normal(features, 4 * units),
            recurrent_kernel=normal(units, 4 * units, scale=units**-0.5),
            kernel_gamma=normal(4 * units, scale=0.1, mean=1),
            recurrent_gamma=normal(4 * units, scale=0.1, mean=1),
            bias=normal(4 * units, scale=0.1),
            cell_gamma=normal(units, scale=0.1, mean=1),
            cell_beta=normal(units, scale=0.1),
        )
        self.d = normal(time, batch, units), normal(batch, units), normal(batch, units)

    def run_in_float64(self) -> list[tf.Tensor]:
        """What `run` of "while_loop" gives when nothing is rounded."""
        wide = copy.copy(self)
        for name, value in vars(self).items():
            if value is not None:
                setattr(wide, name, tf.nest.map_structure(lambda part: tf.cast(part, tf.float64), value))
        return wide.run(recurrence.unroll)

    def run(self, unroll) -> list[tf.Tensor]:
        """Outputs, final state, and the gradients of inputs, initial state and weights."""
        sources = [self.inputs, *self.state, *self.weights]
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs, final = unroll(self.inputs, self.masks, self.state, self.weights)
            loss = sum(tf.reduce_sum(v * d) for v, d in zip((outputs, *final), self.d, strict=True))
        return [outputs, *final, *tape.gradient(loss, sources)]


def batch_major(inputs, masks, state, weights):
    """The kernel on arrays that have batch before time."""
    masks = None if masks is None else tf.transpose(masks)
    outputs, final = kernel.unroll(tf.transpose(inputs, [1, 0, 2]), masks, state, weights, time_major=False)
    return tf.transpose(outputs, [1, 0, 2]), final


UNROLLS = st.sampled_from([kernel.unroll, batch_major])


NAMES = ("outputs", "h", "c", "inputs", "h0", "c0", *Weights._fields)  # of what `Case.run` returns


def assert_equal(got, expected, tolerance=1e-5):
    """To `tolerance` of a tensor's largest element, or of 0.1: a gradient that vanishes is a difference."""
    for name, one, other in zip(NAMES, got, expected, strict=True):
        assert one.shape == other.shape, name
        scale = max(np.abs(other).max(initial=0), 0.1)
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.slow
@hypothesis.given(unroll=UNROLLS, sizes=SIZES, masked=st.booleans(), seed=st.integers(0, 1000), graph=st.booleans())
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_equals_while_loop_for_any_shape(unroll, sizes, masked, seed, graph):
    case = Case(*sizes, masked=masked, seed=seed)
    got = (tf.function(case.run, autograph=False) if graph else case.run)(unroll)
    # In float32 "while_loop" itself is up to twice as far from it as the kernel is, so the two are farther apart.
    assert_equal(got, case.run_in_float64(), 1e-5)
    assert_equal(got, case.run(recurrence.unroll), 5e-5)


@pytest.mark.slow
@hypothesis.given(unroll=UNROLLS, sizes=SIZES, masked=st.booleans(), seed=st.integers(0, 1000))
@hypothesis.settings(max_examples=10, deadline=None, derandomize=True)
def test_equals_while_loop_for_any_shape_under_xla(unroll, sizes, masked, seed):
    case = Case(*sizes, masked=masked, seed=seed)
    run = tf.function(case.run, autograph=False, jit_compile=True)
    # XLA rounds differently from TensorFlow in the products outside of the kernel, in TensorFlow 2.18 a little more.
    assert_equal(run(unroll), case.run_in_float64(), 2e-5)


def test_under_xla_a_tape_may_be_outside():
    """The forward pass has kept nothing then, and is run again."""
    case = Case(6, 3, 4, 20)
    compiled = tf.function(
        lambda inputs, h, c, *weights: kernel.unroll(inputs, case.masks, State(h, c), Weights(*weights)),
        autograph=False,
        jit_compile=True,
    )
    outside = case.run(lambda inputs, _, state, weights: compiled(inputs, *state, *weights))
    assert_equal(outside, case.run(recurrence.unroll))


def test_several_compiled_calls_at_once():
    """More than there are threads, each of which wants several: none may wait for a thread that another one holds."""
    case = Case(60, 64, 16, 64)

    @tf.function(jit_compile=True, autograph=False)
    def many(inputs):
        return [kernel.unroll(inputs + i, case.masks, case.state, case.weights)[0] for i in range(8)]

    for i, outputs in enumerate(many(case.inputs)):
        expected, _ = kernel.unroll(case.inputs + i, case.masks, case.state, case.weights)
        np.testing.assert_allclose(outputs, expected, atol=2e-5)


@pytest.mark.parametrize("sizes", [(100, 64, 8, 126), (128, 2, 65, 128), (50, 16, 64, 128)], ids=str)
def test_equals_while_loop_at_the_sizes_of_use(sizes):
    case = Case(*sizes)
    # Over many steps either is some 2e-5 away from float64, and a few elements of a million are further away.
    assert_equal(case.run(kernel.unroll), case.run(recurrence.unroll), 1e-4)


@pytest.mark.parametrize("batch", [23, 47, 100, 191])
def test_blocks_of_different_sizes(batch):
    """Threads divide such a batch into blocks, and the last one has fewer rows, but more of them at once."""
    case = Case(5, batch, 65, 128)
    assert_equal(case.run(kernel.unroll), case.run(recurrence.unroll), 1e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_what_is_too_large_to_be_kept_is_computed_again(masked):
    """Half of the batch is small enough to be kept. Each row has the same gradient with either, bit for bit."""
    case = Case(1100, 64, 3, 17, masked)
    whole, halves = case.run(kernel.unroll), []
    for rows in (slice(0, 32), slice(32, 64)):
        half = copy.copy(case)
        half.inputs, half.masks = case.inputs[:, rows], None if case.masks is None else case.masks[:, rows]
        half.state = State(*(part[rows] for part in case.state))
        half.d = case.d[0][:, rows], case.d[1][rows], case.d[2][rows]
        halves.append(half.run(kernel.unroll))
    for name, got, one, other in zip(NAMES, whole, *halves, strict=True):
        if name in ("h0", "c0"):
            np.testing.assert_array_equal(got, np.concatenate([one, other]), name)
        if name in Weights._fields:
            np.testing.assert_allclose(got, one + other, rtol=1e-4, atol=1e-4 * np.abs(got).max(), err_msg=name)


@pytest.mark.many_cases
@pytest.mark.parametrize(("isa", "used"), [("avx2", ("AVX2", "portable")), ("portable", ("portable",))])
def test_every_instruction_set_equals_while_loop(isa, used):
    program = """
        from rl_lnlstm.lstm import kernel
        from tests.lstm.test_kernel import Case, assert_equal
        for sizes in [(9, 5, 4, 16), (7, 1, 3, 33), (6, 13, 20, 126), (3, 2, 2, 3)]:
            case = Case(*sizes)
            assert_equal(case.run(kernel.unroll), case.run_in_float64(), 1e-5)
        print(kernel.instruction_set())
    """
    assert run_fresh(program, RL_LNLSTM_ISA=isa).strip() in used


def test_nothing_is_kept_without_a_gradient():
    case = Case(5, 3, 4, 8)

    @tf.function
    def forward():
        return kernel.unroll(case.inputs, case.masks, case.state, case.weights)[0]

    nodes = forward.get_concrete_function().graph.as_graph_def().node
    assert [node.attr["keep"].b for node in nodes if node.op == "RlLnlstm>Forward"] == [False]


def test_a_function_without_a_tape_has_a_gradient_for_one_outside():
    case = Case(5, 3, 4, 8)
    compiled = tf.function(
        lambda inputs, weights: kernel.unroll(inputs, case.masks, case.state, Weights(*weights))[0], autograph=False
    )
    compiled(case.inputs, tuple(case.weights))  # traced before any tape

    def gradient(function):
        with tf.GradientTape() as tape:
            tape.watch(case.inputs)
            loss = tf.reduce_sum(function(case.inputs, tuple(case.weights)) * case.d[0])
        return tape.gradient(loss, case.inputs)

    expected = gradient(lambda inputs, weights: recurrence.unroll(inputs, case.masks, case.state, Weights(*weights))[0])
    np.testing.assert_allclose(gradient(compiled), expected, atol=1e-4)


def test_a_gradient_inside_a_while_loop():
    case = Case(5, 3, 4, 8)

    @tf.function
    def twice():
        def body(i, total):
            with tf.GradientTape() as tape:
                tape.watch(case.inputs)
                outputs, _ = kernel.unroll(case.inputs, case.masks, case.state, case.weights)
                loss = tf.reduce_sum(outputs * case.d[0])
            return i + 1, total + tape.gradient(loss, case.inputs)

        return tf.while_loop(lambda i, _: i < 2, body, (0, tf.zeros_like(case.inputs)))[1]

    with tf.GradientTape() as tape:
        tape.watch(case.inputs)
        loss = tf.reduce_sum(recurrence.unroll(case.inputs, case.masks, case.state, case.weights)[0] * case.d[0])
    np.testing.assert_allclose(twice(), 2 * tape.gradient(loss, case.inputs), atol=1e-4)


def test_nan_stays_in_its_sequence_and_ends_at_a_reset():
    case = Case(6, 3, 4, 8)
    broken = tf.tensor_scatter_nd_update(case.inputs, [[1, 0, 0]], [np.nan])
    masks = tf.tensor_scatter_nd_update(tf.ones([6, 3]), [[4, 0]], [0.0])
    outputs, _ = kernel.unroll(broken, masks, case.state, case.weights)
    expected, _ = recurrence.unroll(broken, masks, case.state, case.weights)
    np.testing.assert_array_equal(np.isnan(outputs), np.isnan(expected))
    assert np.isnan(outputs[1:4, 0]).all()
    assert np.isnan(outputs).sum() == 3 * 8


def test_the_same_call_gives_the_same_bits():
    case = Case(30, 7, 5, 20)
    for one, other in zip(case.run(kernel.unroll), case.run(kernel.unroll), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("argument", "shape"),
    [("inputs", [5, 3]), ("masks", [3, 5]), ("h0", [3, 9]), ("c0", [3, 0]), ("kernel", [5, 32]), ("bias", [8])],
)
def test_wrong_shapes_are_errors_of_the_operation(argument, shape):
    case = Case(5, 3, 4, 8)
    names = ("inputs", "masks", "h0", "c0", *Weights._fields)
    arguments = dict(zip(names, (case.inputs, case.masks, *case.state, *case.weights), strict=True))
    arguments[argument] = tf.zeros(shape)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have shape"):
        kernel.operations().rl_lnlstm_forward(**arguments, time_major=True, masked=True, keep=True)


ANY_SHAPE = st.integers(0, 4).flatmap(lambda rank: st.lists(st.integers(0, 4), min_size=rank, max_size=rank))


@hypothesis.given(data=st.data(), time=st.integers(0, 3), batch=st.integers(0, 3), graph=st.booleans())
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
def test_any_shape_of_any_argument_is_an_error_of_the_operation_or_right(data, time, batch, graph):
    """Forward, and its gradient's operation: nothing is read that is not there."""
    features, units = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3))
    masked, time_major = data.draw(st.booleans()), data.draw(st.booleans())
    outer, inner = (time, batch) if time_major else (batch, time)
    state, gates, gain = [batch, units], [outer, inner, 4 * kernel.padded(units)], [4 * units]
    masks = [outer, inner] if masked else [0, 0]
    weights = Weights([features, 4 * units], [units, 4 * units], gain, gain, gain, [units], [units])._asdict()
    shapes = {"inputs": [outer, inner, features], "masks": masks, "h0": state, "c0": state, **weights}
    attributes = {"time_major": time_major, "masked": masked}
    operation = functools.partial(kernel.operations().rl_lnlstm_forward, keep=data.draw(st.booleans()))
    if data.draw(st.booleans()):
        number, cells, sequence = [outer, inner], [outer, inner, kernel.padded(units)], [outer, inner, units]
        scales = dict.fromkeys(("x_scale", "r_scale", "c_scale"), number)
        ends = {"d_outputs": sequence, "d_h": state, "d_c": state}
        del shapes["kernel"]
        shapes |= {"outputs": sequence, "x_hat": gates, "r_hat": gates, "cells": cells, **scales, **ends}
        operation = kernel.operations().rl_lnlstm_backward
    right = dict(shapes)
    for name in data.draw(st.lists(st.sampled_from(list(shapes)), max_size=2)):
        shapes[name] = data.draw(ANY_SHAPE)
    arguments = {name: tf.zeros(shape) for name, shape in shapes.items()}
    run = functools.partial(operation, **attributes)
    error = None
    try:
        (tf.function(run, autograph=False) if graph else run)(**arguments)
    except (tf.errors.InvalidArgumentError, ValueError) as raised:  # the latter while a graph is made
        error = raised
    assert (error is None) == (shapes == right), error


@pytest.mark.parametrize("jit_compile", [False, True])
def test_there_is_no_second_derivative(jit_compile):
    case = Case(3, 2, 4, 8)

    @tf.function(jit_compile=jit_compile)
    def second():
        with tf.GradientTape() as outer:
            outer.watch(case.inputs)
            with tf.GradientTape() as inner:
                inner.watch(case.inputs)
                outputs, _ = kernel.unroll(case.inputs, case.masks, case.state, case.weights)
            first = inner.gradient(outputs, case.inputs)
        return outer.gradient(first, case.inputs)

    with pytest.raises(NotImplementedError, match="no second derivative"):
        second()
