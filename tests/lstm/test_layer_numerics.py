"""What the layer computes equals the float64 reference, whatever the masks, shapes, dtypes and ways to call it."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM
from tests.reference import MASK_PATTERNS, Case, masked_ln_lstm, random_case, set_weights

BACKENDS = ["while_loop", "auto"]
# [batch, time, features, units]; units that fill no vector register evenly, a single unit, a single feature.
SHAPES = [(1, 1, 1, 1), (3, 2, 1, 5), (1, 7, 4, 8), (3, 7, 5, 13), (64, 7, 3, 33), (2, 100, 4, 126)]
TOLERANCE = {"float64": 1e-10, "float32": 1e-5}


def layer_for(case: Case, **kwargs) -> MaskedLNLSTM:
    """Return a layer that holds the case's weights and returns everything it can."""
    kwargs = {"return_sequences": True, "return_state": True, "dtype": "float64", **kwargs}
    return set_weights(MaskedLNLSTM(case.weights.cell_gamma.size, **kwargs), case.weights)


def run(layer: MaskedLNLSTM, case: Case, **kwargs):
    """Call the layer on all of a case; `kwargs` replace parts of it."""
    kwargs = {"masks": case.masks, "initial_state": [case.h0, case.c0], **kwargs}
    return layer(case.xs, **kwargs)


def assert_all_close(got, expected, tolerance, names=("ys", "h", "c")):
    assert len(got) == len(expected)
    for name, one, other in zip(names, got, expected, strict=False):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("masks", MASK_PATTERNS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_and_final_state_equal_the_reference(shape, masks, dtype, backend):
    case = random_case(*shape, masks=masks)
    got = run(layer_for(case, dtype=dtype, backend=backend), case)
    assert all(tensor.dtype == dtype for tensor in got)
    assert_all_close(got, masked_ln_lstm(*case), TOLERANCE[dtype])


@hypothesis.given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 6), st.integers(1, 19)),
    masks=st.sampled_from(MASK_PATTERNS),
    time_major=st.booleans(),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_outputs_equal_the_reference_for_any_shape(shape, masks, time_major, seed):
    case = random_case(*shape, masks=masks, seed=seed)
    ys, h, c = masked_ln_lstm(*case)
    if time_major:
        case = case._replace(xs=case.xs.swapaxes(0, 1), masks=None if case.masks is None else case.masks.swapaxes(0, 1))
        ys = ys.swapaxes(0, 1)
    assert_all_close(run(layer_for(case, time_major=time_major), case), (ys, h, c), 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "masks"), [("float64", "none"), ("float32", "none"), ("float32", "random")])
def test_a_thousand_steps_do_not_drift_from_the_reference(dtype, masks, backend):
    case = random_case(64, 1000, 8, 20, masks=masks)
    layer = layer_for(case, dtype=dtype, backend=backend)
    got = tf.function(lambda xs, h0, c0: layer(xs, masks=case.masks, initial_state=[h0, c0]))(case.xs, case.h0, case.c0)
    # The recurrence amplifies roundings, and this looks at the worst of 1.3 million: 1.2e-5 in float32 on some CPUs.
    assert_all_close(got, masked_ln_lstm(*case), 10 * TOLERANCE[dtype])


@pytest.mark.parametrize("as_tensor", [False, True], ids=["numpy", "tensor"])
@pytest.mark.parametrize("dtype", ["bool", "int8", "int32", "int64", "uint8", "float16", "float32", "float64"])
def test_masks_mean_the_same_in_every_dtype(dtype, as_tensor):
    case = random_case(4, 9, 3, 6, masks="random")
    masks = case.masks.astype(dtype)
    got = run(layer_for(case), case, masks=tf.constant(masks) if as_tensor else masks)
    assert_all_close(got, masked_ln_lstm(*case), 1e-10)


def test_a_fractional_mask_scales_the_state():
    case = random_case(3, 8, 2, 5)
    case = case._replace(masks=np.random.default_rng(1).uniform(0.1, 1.0, (3, 8)))
    assert_all_close(run(layer_for(case), case), masked_ln_lstm(*case), 1e-10)


def test_masks_of_ones_change_nothing():
    case = random_case(3, 8, 2, 5, masks="never")
    layer = layer_for(case)
    assert_all_close(run(layer, case), run(layer, case, masks=None), 1e-12)


def test_the_state_starts_at_zero_unless_given():
    case = random_case(3, 8, 2, 5)
    layer = layer_for(case)
    expected = masked_ln_lstm(case.weights, case.xs, case.masks)
    zeros = np.zeros_like(case.h0)
    assert_all_close(run(layer, case, initial_state=None), expected, 1e-10)
    assert_all_close(run(layer, case, initial_state=[zeros, zeros]), expected, 1e-10)
    assert np.abs(expected[0] - masked_ln_lstm(*case)[0]).max() > 0.1  # else this case would tell nothing


def test_initial_state_may_be_a_tuple():
    case = random_case(3, 4, 2, 5, masks="none")
    assert_all_close(run(layer_for(case), case, initial_state=(case.h0, case.c0)), masked_ln_lstm(*case), 1e-10)


@pytest.mark.parametrize("time_major", [False, True])
@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "function"])
def test_the_flags_choose_what_is_returned(return_sequences, return_state, time_major, graph):
    case = random_case(3, 6, 4, 7)
    ys, h, c = masked_ln_lstm(*case)
    xs, masks = case.xs, case.masks
    if time_major:
        xs, masks, ys = xs.swapaxes(0, 1), masks.swapaxes(0, 1), ys.swapaxes(0, 1)
    layer = layer_for(case, return_sequences=return_sequences, return_state=return_state, time_major=time_major)

    def call(xs, masks, h0, c0):
        return layer(xs, masks=masks, initial_state=[h0, c0])

    got = (tf.function(call) if graph else call)(*map(tf.constant, (xs, masks, case.h0, case.c0)))
    if not return_state:
        assert tf.is_tensor(got)
        got = [got]
    expected = [ys if return_sequences else h, h, c] if return_state else [ys if return_sequences else h]
    assert_all_close(got, expected, 1e-10)


def test_integer_inputs_are_taken_as_keras_lstm_takes_them():
    case = random_case(3, 4, 2, 5)
    case = case._replace(xs=np.random.default_rng(1).integers(0, 256, (3, 4, 2)))
    assert_all_close(run(layer_for(case, dtype="float32"), case), masked_ln_lstm(*case), 1e-5)


def test_a_sequence_cut_in_two_equals_the_whole():
    case = random_case(4, 11, 3, 6)
    layer = layer_for(case)
    ys, h, c = run(layer, case)
    first, *state = layer(case.xs[:, :4], masks=case.masks[:, :4], initial_state=[case.h0, case.c0])
    second, *state = layer(case.xs[:, 4:], masks=case.masks[:, 4:], initial_state=state)
    assert_all_close([tf.concat([first, second], axis=1), *state], [ys, h, c], 1e-12)


def test_an_episode_after_a_reset_equals_the_episode_alone():
    case = random_case(2, 12, 3, 6, masks="never")
    layer = layer_for(case)
    starts = {0: [0, 3, 4], 1: [5]}  # row -> steps at which an episode starts; row 1 continues the given state at first
    masks = case.masks.copy()
    for row, steps in starts.items():
        masks[row, steps] = 0.0
    ys, _, _ = run(layer, case, masks=masks)
    for row, steps in starts.items():
        for start, end in zip(steps, [*steps[1:], 12], strict=True):
            alone, _, _ = layer(case.xs[row : row + 1, start:end])
            np.testing.assert_allclose(ys[row : row + 1, start:end], alone, atol=1e-12)


def test_rows_of_a_batch_do_not_see_each_other():
    case = random_case(4, 6, 3, 5, masks="first")
    layer = layer_for(case)
    poisoned = case.xs.copy()
    poisoned[1, 2] = np.nan
    expected = masked_ln_lstm(*case)
    got = run(layer, case._replace(xs=poisoned))
    assert np.isnan(got[0][1, 2:]).all()
    assert not np.isnan(got[0][1, :2]).any()
    others = [0, 2, 3]
    assert_all_close([tensor.numpy()[others] for tensor in got], [tensor[others] for tensor in expected], 1e-10)


def test_normalisation_removes_a_large_common_offset():
    # A variance taken as E[v^2] - E[v]^2 loses all its digits here in float32.
    case = random_case(4, 20, 3, 16, masks="none")
    weights = case.weights._replace(
        kernel=case.weights.kernel + 30.0, recurrent_kernel=case.weights.recurrent_kernel - 30.0
    )
    case = case._replace(weights=weights, c0=case.c0 + 100.0)
    assert_all_close(run(layer_for(case, dtype="float32"), case), masked_ln_lstm(*case), 3e-4)


def test_inputs_of_zero_and_a_state_of_zero_are_finite():
    case = random_case(2, 5, 3, 4, masks="every")
    case = case._replace(xs=np.zeros_like(case.xs))
    assert_all_close(run(layer_for(case, dtype="float32"), case), masked_ln_lstm(*case), 1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_a_sequence_of_no_steps_returns_the_initial_state(return_sequences, masked):
    case = random_case(3, 0, 4, 5)
    layer = layer_for(case, return_sequences=return_sequences)
    ys, h, c = run(layer, case, masks=np.ones((3, 0)) if masked else None)
    assert ys.shape == ((3, 0, 5) if return_sequences else (3, 5))
    np.testing.assert_array_equal(h, case.h0)
    np.testing.assert_array_equal(c, case.c0)


def test_one_trace_serves_every_batch_size_and_length():
    cases = [random_case(batch, time, 3, 5) for batch, time in [(2, 4), (1, 1), (5, 9), (2, 50), (3, 0)]]
    cases = [case._replace(weights=cases[0].weights) for case in cases]
    layer = layer_for(cases[0])
    tensor = tf.TensorSpec

    @tf.function(
        input_signature=[tensor([None, None, 3], "float64"), tensor([None, None], "float64")]
        + 2 * [tensor([None, 5], "float64")]
    )
    def call(xs, masks, h0, c0):
        return layer(xs, masks=masks, initial_state=[h0, c0])

    for case in cases:
        assert_all_close(call(*case[1:]), masked_ln_lstm(*case), 1e-10)
    assert call.experimental_get_tracing_count() == 1


def test_the_graph_does_not_grow_with_the_sequence():
    def size_of_graph(time):
        case = random_case(2, time, 3, 4)
        layer = layer_for(case)
        return len(tf.function(layer).get_concrete_function(tf.constant(case.xs)).graph.as_graph_def().node)

    assert size_of_graph(3) == size_of_graph(300)


@pytest.mark.parametrize("masks", ["none", "random"])
def test_outputs_are_right_under_xla(masks):
    case = random_case(3, 7, 4, 13, masks=masks)
    layer = layer_for(case, dtype="float32")

    @tf.function(jit_compile=True)
    def call(xs, h0, c0):
        return layer(xs, masks=case.masks, initial_state=[h0, c0])

    assert_all_close(call(case.xs, case.h0, case.c0), masked_ln_lstm(*case), 1e-5)


# Half precision is right to a few of its own roundings, which the steps of a sequence carry on.
HALF_PRECISION = [("float16", 1e-2), ("bfloat16", 8e-2)]


def in_half_precision(case: Case, dtype: str) -> Case:
    """Round everything the layer is fed to the dtype, so that only its own arithmetic is measured."""
    rounded = tf.nest.map_structure(
        lambda array: None if array is None else tf.cast(tf.cast(array, dtype), tf.float64).numpy(), tuple(case)
    )
    return Case(*rounded)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF_PRECISION)
def test_outputs_are_right_in_half_precision_alone(dtype, tolerance):
    case = in_half_precision(random_case(8, 20, 5, 12, masks="random"), dtype)
    # The orthogonal initializer of Keras cannot make bfloat16.
    layer = layer_for(case, dtype=dtype, recurrent_initializer="glorot_uniform")
    got = run(layer, case)
    assert all(tensor.dtype == dtype for tensor in [*got, *layer.weights])
    assert_all_close([tf.cast(tensor, tf.float64) for tensor in got], masked_ln_lstm(*case), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), HALF_PRECISION)
@pytest.mark.parametrize("masks", ["none", "random"])
def test_outputs_are_right_in_mixed_precision(dtype, tolerance, masks):
    case = in_half_precision(random_case(8, 20, 5, 12, masks=masks), dtype)
    layer = layer_for(case, dtype=f"mixed_{dtype}")
    got = run(layer, case)
    assert all(tensor.dtype == dtype for tensor in got)
    assert all(weight.dtype == "float32" for weight in layer.weights)
    assert_all_close([tf.cast(tensor, tf.float64) for tensor in got], masked_ln_lstm(*case), tolerance)


def test_statistics_do_not_overflow_in_mixed_float16():
    # Projections of some thousands: their squares, which a variance needs, are beyond float16's 65504.
    case = random_case(4, 6, 4, 8, masks="random")
    case = in_half_precision(case._replace(xs=2000.0 * case.xs), "float16")
    got = run(layer_for(case, dtype="mixed_float16"), case)
    assert_all_close([tf.cast(tensor, tf.float64) for tensor in got], masked_ln_lstm(*case), 1e-2)
