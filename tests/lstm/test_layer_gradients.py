"""The hand-derived gradients equal central differences of the reference, and autodiff of the unrolled loop."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM
from tests.reference import (
    MASK_PATTERNS,
    Case,
    Weights,
    central_differences,
    masked_ln_lstm,
    random_case,
    set_weights,
    unrolled,
)

NAMES = (*Weights._fields, "xs", "h0", "c0")


def layer_for(case: Case, **kwargs) -> MaskedLNLSTM:
    kwargs = {"return_sequences": True, "return_state": True, "dtype": "float64", **kwargs}
    return set_weights(MaskedLNLSTM(case.weights.cell_gamma.size, **kwargs), case.weights)


def loss_weights(case: Case, last_only: bool = False):
    """Return what every element of ys, h and c counts in the loss: all three, or nothing but the last output."""
    rng = np.random.default_rng(7)
    batch, time, _ = case.xs.shape
    units = case.h0.shape[1]
    of_ys = rng.normal(size=(batch, time, units))
    of_h, of_c = rng.normal(size=(2, batch, units))
    return (0.0 * of_ys, of_h, 0.0 * of_c) if last_only else (of_ys, of_h, of_c)


def loss_of(outputs, weights):
    """Return sum(ys * w + h * w + c * w); nonlinear in ys, so that its gradient is not the same at every step."""
    ys, h, c = outputs
    of_ys, of_h, of_c = weights
    return (of_ys * ys * (1.0 + ys)).sum() + (of_h * h).sum() + (of_c * c).sum()


def loss_of_tensors(outputs, weights):
    ys, h, c = outputs
    of_ys, of_h, of_c = weights
    return tf.reduce_sum(of_ys * ys * (1.0 + ys)) + tf.reduce_sum(of_h * h) + tf.reduce_sum(of_c * c)


def gradients_by_differences(case: Case, last_only: bool) -> dict[str, np.ndarray]:
    counts = loss_weights(case, last_only)
    at = {**case.weights._asdict(), "xs": case.xs, "h0": case.h0, "c0": case.c0}

    def loss(value, name):
        given = {**at, name: value}
        weights = Weights(*(given[field] for field in Weights._fields))
        return loss_of(masked_ln_lstm(weights, given["xs"], case.masks, given["h0"], given["c0"]), counts)

    return {name: central_differences(functools.partial(loss, name=name), at[name]) for name in NAMES}


def gradients_by_autodiff(case: Case, last_only: bool = False) -> dict[str, np.ndarray]:
    counts = loss_weights(case, last_only)
    weights = [tf.constant(weight) for weight in case.weights]
    xs, h0, c0 = tf.constant(case.xs), tf.constant(case.h0), tf.constant(case.c0)
    masks = None if case.masks is None else tf.constant(case.masks)
    sources = [*weights, xs, h0, c0]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        loss = loss_of_tensors(unrolled(weights, xs, masks, h0, c0), counts)
    gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
    return {name: gradient.numpy() for name, gradient in zip(NAMES, gradients, strict=True)}


def layer_gradients(layer: MaskedLNLSTM, xs, masks, h0, c0, counts) -> dict[str, tf.Tensor]:
    """Differentiate the loss by everything, through a layer that returns what `counts` weighs."""
    with tf.GradientTape() as tape:
        tape.watch([xs, h0, c0])
        outputs = layer(xs, masks=masks, initial_state=[h0, c0])
        if not layer.return_state:
            loss = tf.reduce_sum(counts[1] * outputs)
        elif layer.return_sequences:
            loss = loss_of_tensors(outputs, counts)
        else:
            last, _, c = outputs
            loss = tf.reduce_sum(counts[1] * last) + tf.reduce_sum(counts[2] * c)
    sources = [*layer.trainable_variables, xs, h0, c0]
    gradients = tape.gradient(loss, sources, unconnected_gradients="zero")
    return dict(zip(NAMES, gradients, strict=True))


def gradients_of_layer(case: Case, layer: MaskedLNLSTM, last_only: bool = False, wrap=lambda function: function):
    masks = None if case.masks is None else tf.cast(case.masks, layer.compute_dtype)
    counts = [tf.cast(count, layer.compute_dtype) for count in loss_weights(case, last_only)]
    xs, h0, c0 = (tf.cast(array, layer.compute_dtype) for array in (case.xs, case.h0, case.c0))
    gradients = wrap(lambda *arrays: layer_gradients(layer, *arrays[:1], masks, *arrays[1:], counts))(xs, h0, c0)
    return {name: gradient.numpy() for name, gradient in gradients.items()}


def assert_gradients_close(got, expected, relative):
    """Compare each gradient relative to its own largest element; what is exactly zero has to be (almost) that."""
    assert got.keys() == expected.keys()
    for name in expected:
        scale = max(np.abs(expected[name]).max(initial=0.0), 1e-3)
        assert got[name].shape == expected[name].shape, name
        np.testing.assert_allclose(got[name], expected[name], rtol=0.0, atol=relative * scale, err_msg=name)


@pytest.mark.parametrize("last_only", [False, True], ids=["ys-h-c", "last-output"])
@pytest.mark.parametrize("masks", MASK_PATTERNS)
def test_gradients_equal_central_differences(masks, last_only):
    case = random_case(2, 4, 3, 5, masks=masks)
    layer = layer_for(case, return_sequences=not last_only, return_state=not last_only)
    assert_gradients_close(gradients_of_layer(case, layer, last_only), gradients_by_differences(case, last_only), 1e-6)


@pytest.mark.parametrize(
    ("shape", "masks"),
    [
        ((1, 1, 1, 1), "none"),
        ((3, 6, 1, 1), "random"),
        ((1, 2, 5, 3), "last"),
        ((4, 7, 3, 13), "none"),
        ((4, 7, 3, 13), "first"),
        ((4, 7, 3, 13), "every"),
        ((64, 5, 2, 9), "random"),
        ((3, 60, 6, 8), "random"),
        ((3, 60, 6, 8), "none"),
    ],
    ids=str,
)
def test_gradients_equal_autodiff_of_the_unrolled_loop(shape, masks):
    case = random_case(*shape, masks=masks)
    assert_gradients_close(gradients_of_layer(case, layer_for(case)), gradients_by_autodiff(case), 1e-9)


@pytest.mark.parametrize("backend", ["while_loop", "auto"])
def test_gradients_in_float32_equal_autodiff_in_float64(backend):
    case = random_case(5, 40, 6, 13, masks="random")
    layer = layer_for(case, dtype="float32", backend=backend)
    assert_gradients_close(gradients_of_layer(case, layer), gradients_by_autodiff(case), 1e-4)


def test_the_last_output_and_the_cell_state_are_differentiated_without_sequences():
    case = random_case(3, 5, 2, 4, masks="random")
    _, of_h, of_c = loss_weights(case)
    weights = [tf.constant(weight) for weight in case.weights]
    sources = [*weights, tf.constant(case.xs), tf.constant(case.h0), tf.constant(case.c0)]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        _, h, c = unrolled(sources[:7], sources[7], case.masks, *sources[8:])
        loss = tf.reduce_sum(of_h * h) + tf.reduce_sum(of_c * c)
    expected = dict(zip(NAMES, [gradient.numpy() for gradient in tape.gradient(loss, sources)], strict=True))
    layer = layer_for(case, return_sequences=False)
    assert_gradients_close(gradients_of_layer(case, layer), expected, 1e-9)


def test_gradients_flow_through_time_major_sequences():
    case = random_case(3, 5, 2, 4, masks="random")
    expected = gradients_by_autodiff(case)
    layer = layer_for(case, time_major=True)
    xs, h0, c0 = tf.constant(case.xs.swapaxes(0, 1)), tf.constant(case.h0), tf.constant(case.c0)
    of_ys, of_h, of_c = loss_weights(case)
    got = layer_gradients(layer, xs, case.masks.T, h0, c0, [of_ys.swapaxes(0, 1), of_h, of_c])
    got = {name: gradient.numpy() for name, gradient in got.items()}
    got["xs"] = got["xs"].swapaxes(0, 1)
    assert_gradients_close(got, expected, 1e-9)


@pytest.mark.parametrize("masks", ["none", "random"])
def test_gradients_are_right_inside_a_function(masks):
    case = random_case(3, 6, 2, 5, masks=masks)
    assert_gradients_close(
        gradients_of_layer(case, layer_for(case), wrap=tf.function), gradients_by_autodiff(case), 1e-9
    )


@pytest.mark.parametrize("masks", ["none", "random"])
def test_gradients_are_right_under_xla(masks):
    case = random_case(3, 6, 2, 5, masks=masks)
    got = gradients_of_layer(
        case, layer_for(case, dtype="float32"), wrap=functools.partial(tf.function, jit_compile=True)
    )
    assert_gradients_close(got, gradients_by_autodiff(case), 1e-4)


def test_one_trace_differentiates_every_batch_size_and_length():
    cases = [random_case(batch, time, 3, 4) for batch, time in [(2, 5), (1, 1), (3, 17)]]
    cases = [case._replace(weights=cases[0].weights) for case in cases]
    layer = layer_for(cases[0])
    shapes = [[None, None, 3], [None, None], [None, 4], [None, 4], [None, None, 4], [None, 4], [None, 4]]

    @tf.function(input_signature=[tf.TensorSpec(shape, "float64") for shape in shapes])
    def gradients(xs, masks, h0, c0, *counts):
        return layer_gradients(layer, xs, masks, h0, c0, counts)

    for case in cases:
        got = gradients(case.xs, case.masks, case.h0, case.c0, *loss_weights(case))
        assert_gradients_close({name: got[name].numpy() for name in NAMES}, gradients_by_autodiff(case), 1e-9)
    assert gradients.experimental_get_tracing_count() == 1

    empty = random_case(2, 0, 3, 4)
    of_ys, of_h, of_c = loss_weights(empty)
    got = gradients(empty.xs, empty.masks, empty.h0, empty.c0, of_ys, of_h, of_c)
    np.testing.assert_array_equal(got["h0"], of_h)  # no step: the final state is the initial one
    np.testing.assert_array_equal(got["c0"], of_c)
    assert all(np.all(got[name].numpy() == 0.0) for name in Weights._fields)


@pytest.mark.parametrize("time", [1, 2])
def test_masks_have_no_gradient(time):
    layer, masks = MaskedLNLSTM(4, backend="while_loop"), tf.ones([2, time])
    with tf.GradientTape() as tape:
        tape.watch(masks)
        outputs = layer(tf.ones([2, time, 3]), masks=masks, initial_state=[tf.ones([2, 4])] * 2)
    assert tape.gradient(outputs, masks) is None


def test_inputs_can_be_differentiated_alone():
    case = random_case(3, 6, 2, 5, masks="random")
    layer = layer_for(case)
    counts = loss_weights(case)
    xs = tf.constant(case.xs)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(xs)
        loss = loss_of_tensors(layer(xs, masks=case.masks, initial_state=[case.h0, case.c0]), counts)
    np.testing.assert_allclose(tape.gradient(loss, xs), gradients_by_autodiff(case)["xs"], atol=1e-9)


def test_a_frozen_layer_still_passes_gradients_to_its_inputs():
    case = random_case(3, 6, 2, 5, masks="random")
    layer = layer_for(case)
    layer.trainable = False
    xs = tf.constant(case.xs)
    with tf.GradientTape() as tape:
        tape.watch(xs)
        loss = loss_of_tensors(layer(xs, masks=case.masks, initial_state=[case.h0, case.c0]), loss_weights(case))
    assert layer.trainable_variables == []
    np.testing.assert_allclose(tape.gradient(loss, xs), gradients_by_autodiff(case)["xs"], atol=1e-9)


def test_a_persistent_tape_gives_every_gradient_in_turn():
    case = random_case(3, 6, 2, 5, masks="random")
    layer = layer_for(case)
    xs = tf.constant(case.xs)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(xs)
        outputs = layer(xs, masks=case.masks, initial_state=[case.h0, case.c0])
        loss = loss_of_tensors(outputs, loss_weights(case))
        of_c = tf.reduce_sum(outputs[2])
    expected = gradients_by_autodiff(case)
    for _ in range(2):
        np.testing.assert_allclose(tape.gradient(loss, xs), expected["xs"], atol=1e-9)
        np.testing.assert_allclose(tape.gradient(loss, layer.kernel), expected["kernel"], atol=1e-9)
    assert np.abs(tape.gradient(of_c, xs) - expected["xs"]).max() > 1e-3


def test_the_state_before_a_reset_gets_a_gradient_of_exactly_zero():
    case = random_case(3, 6, 2, 5, masks="never")
    masks = case.masks.copy()
    masks[0, 0] = masks[1, 3] = 0.0
    got = gradients_of_layer(case._replace(masks=masks), layer_for(case), last_only=True)
    for name in ("h0", "c0"):
        assert np.all(got[name][:2] == 0.0), name
        assert np.all(got[name][2] != 0.0), name
    # With a loss on the last output only, what came before the reset does not matter either.
    assert np.all(got["xs"][1, :3] == 0.0)
    assert np.all(got["xs"][1, 3:] != 0.0)


def test_through_resets_at_every_step_each_step_is_on_its_own():
    case = random_case(3, 6, 2, 5, masks="every")
    got = gradients_of_layer(case, layer_for(case), last_only=True)
    assert np.all(got["h0"] == 0.0)
    assert np.all(got["c0"] == 0.0)
    assert np.all(got["recurrent_kernel"] == 0.0)
    assert np.all(got["recurrent_gamma"] == 0.0)
    assert np.all(got["xs"][:, :-1] == 0.0)
    assert np.all(got["xs"][:, -1] != 0.0)


def test_second_derivatives_are_right_or_refused():
    case = random_case(3, 6, 2, 5, masks="random")
    layer = layer_for(case)
    xs, masks, h0, c0 = (tf.constant(array) for array in case[1:])

    def second_derivative(run):
        with tf.GradientTape() as outer:
            outer.watch(xs)
            with tf.GradientTape() as inner:
                inner.watch(xs)
                loss = tf.reduce_sum(run()[0] ** 2)
            penalty = tf.reduce_sum(inner.gradient(loss, xs) ** 2)
        return outer.gradient(penalty, xs)

    expected = second_derivative(lambda: unrolled([tf.constant(weight) for weight in case.weights], xs, masks, h0, c0))
    try:
        got = second_derivative(lambda: layer(xs, masks=masks, initial_state=[h0, c0]))
    except (LookupError, NotImplementedError, RuntimeError, ValueError):
        return
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_a_function_that_was_traced_without_a_tape_has_the_same_gradient():
    """Its forward pass keeps nothing for a backward one."""
    case = random_case(3, 6, 2, 5, masks="random")
    layer = layer_for(case)
    arguments = [tf.constant(array) for array in case[1:]]
    function = tf.function(lambda xs, masks, h0, c0: layer(xs, masks=masks, initial_state=[h0, c0]), autograph=False)
    function(*arguments)

    def gradients(run):
        with tf.GradientTape() as tape:
            loss = loss_of_tensors(run(*arguments), loss_weights(case))
        return tape.gradient(loss, layer.trainable_variables)

    for one, other in zip(gradients(function), gradients(function.python_function), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    assert function.experimental_get_tracing_count() == 1


def test_a_nan_in_one_row_leaves_the_input_gradients_of_the_others():
    case = random_case(3, 6, 2, 5, masks="random")
    expected = gradients_by_autodiff(case)
    poisoned = case.xs.copy()
    poisoned[1, 2] = np.nan
    got = gradients_of_layer(case._replace(xs=poisoned), layer_for(case))
    for name in ("xs", "h0", "c0"):
        np.testing.assert_allclose(got[name][[0, 2]], expected[name][[0, 2]], atol=1e-9, err_msg=name)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2e-2), ("bfloat16", 1.5e-1)])
def test_gradients_are_right_in_mixed_precision(dtype, tolerance):
    case = random_case(6, 10, 4, 8, masks="random")
    rounded = tf.nest.map_structure(lambda array: tf.cast(tf.cast(array, dtype), tf.float64).numpy(), tuple(case))
    case = Case(*rounded)
    got = gradients_of_layer(case, layer_for(case, dtype=f"mixed_{dtype}"))
    assert all(got[name].dtype == "float32" for name in Weights._fields)
    got = {name: gradient.astype("float64") for name, gradient in got.items()}
    assert_gradients_close(got, gradients_by_autodiff(case), tolerance)
