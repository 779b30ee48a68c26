"""The layer works in any program that keras.layers.LSTM works in: jacobians, gradients across functions, XLA, loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM
from tests.reference import random_case, set_weights, unrolled

BACKENDS = ["auto", "while_loop"]
CASE = random_case(2, 3, 4, 5)
XS, MASKS, H0, C0 = (tf.constant(array, tf.float32) for array in CASE[1:])


def layer_for(backend: str, **kwargs) -> MaskedLNLSTM:
    kwargs = {"return_sequences": True, **kwargs}
    return set_weights(MaskedLNLSTM(5, backend=backend, **kwargs), CASE.weights)


def call(layer, xs):
    return layer(xs, masks=MASKS, initial_state=[H0, C0])


def expected_of(xs):
    """The same in plain TensorFlow, which has every derivative."""
    weights = [tf.constant(weight, tf.float32) for weight in CASE.weights]
    return unrolled(weights, xs, MASKS, H0, C0)[0]


def gradient(run, xs=XS):
    with tf.GradientTape() as tape:
        tape.watch(xs)
        loss = tf.reduce_sum(run(xs) ** 2)
    return tape.gradient(loss, xs)


EXPECTED_GRADIENT = gradient(expected_of)


def jacobian_of(kind, run, xs=XS):
    with tf.GradientTape() as tape:
        tape.watch(xs)
        ys = run(xs)
    return getattr(tape, kind)(ys, xs)


@pytest.mark.many_cases
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["jacobian", "batch_jacobian"])
@pytest.mark.parametrize("within", ["eager", "function"])
def test_jacobians(within, kind, backend):
    layer = layer_for(backend)

    def run(xs):
        return call(layer, xs)

    def jacobian(xs):
        return jacobian_of(kind, run, xs)

    got = (tf.function(jacobian) if within == "function" else jacobian)(XS)
    np.testing.assert_allclose(got, jacobian_of(kind, expected_of), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_jacobian_of_the_weights(backend):
    layer = layer_for(backend, return_sequences=False)
    with tf.GradientTape(persistent=True) as tape:
        ys = call(layer, XS)
        parts = [ys[0, i] for i in range(5)]
    got = tape.jacobian(ys, layer.cell_beta)
    for i, part in enumerate(parts):
        np.testing.assert_allclose(got[0, i], tape.gradient(part, layer.cell_beta), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_across_functions(backend):
    layer = layer_for(backend)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(XS)
        eager = tf.reduce_sum(call(layer, XS) ** 2)
        traced = tf.function(lambda xs: tf.reduce_sum(call(layer, xs) ** 2), autograph=False)(XS)

    def gradients():
        return tape.gradient(eager, XS), tape.gradient(traced, XS)

    for got in (*gradients(), *tf.function(gradients, autograph=False)()):
        np.testing.assert_allclose(got, EXPECTED_GRADIENT, atol=1e-5)


@pytest.mark.many_cases
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("compiled_first", [False, True])
def test_one_function_compiled_and_not_in_either_order(compiled_first, backend):
    layer = layer_for(backend)
    inner = tf.function(lambda xs: call(layer, xs))
    outer = tf.function(lambda xs: inner(xs) * 1.0, jit_compile=True)
    for run in (outer, inner) if compiled_first else (inner, outer):
        np.testing.assert_allclose(run(XS), expected_of(XS), atol=1e-5)
    for run in (inner, outer) if compiled_first else (outer, inner):
        np.testing.assert_allclose(gradient(run), EXPECTED_GRADIENT, atol=1e-5)
    compiled_gradient = tf.function(lambda xs: gradient(inner, xs), jit_compile=True)
    np.testing.assert_allclose(compiled_gradient(XS), EXPECTED_GRADIENT, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(3, 4, 4), (None, 4, 4), (3, None, 4), (None, None, 4)], ids=str)
def test_static_shapes_are_those_of_keras_lstm(shape, backend):
    flags = {"return_sequences": True, "return_state": True}
    for ours, stock in (
        (MaskedLNLSTM(5, backend=backend, **flags), keras.layers.LSTM(5, **flags)),
        (MaskedLNLSTM(5, backend=backend), keras.layers.LSTM(5)),
    ):
        shapes = [
            tf.function(lambda xs, layer=layer: layer(xs), input_signature=[tf.TensorSpec(shape)])
            .get_concrete_function()
            .output_shapes
            for layer in (ours, stock)
        ]
        assert tf.nest.map_structure(tuple, shapes[0]) == tf.nest.map_structure(tuple, shapes[1])


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_inside_loops_maps_and_recomputation(backend):
    layer = layer_for(backend)
    many = tf.stack([XS, XS + 1.0, XS * 2.0])
    expected = tf.stack([expected_of(xs) for xs in many])
    for run in (tf.map_fn, tf.vectorized_map):
        mapped = tf.function(lambda xs, run=run: run(lambda one: call(layer, one), xs))
        np.testing.assert_allclose(mapped(many), expected, atol=1e-5)
        np.testing.assert_allclose(gradient(mapped, many)[0], EXPECTED_GRADIENT, atol=1e-5)
    recomputed = tf.recompute_grad(lambda xs: call(layer, xs))
    np.testing.assert_allclose(gradient(recomputed), EXPECTED_GRADIENT, atol=1e-5)

    @tf.function
    def looped(xs):
        total = tf.zeros([2, 3, 5])
        for i in tf.range(3):
            total += call(layer, xs) * tf.cast(i, tf.float32)
        return total

    np.testing.assert_allclose(looped(XS), 3.0 * expected_of(XS), atol=1e-5)
    np.testing.assert_allclose(gradient(looped), 9.0 * EXPECTED_GRADIENT, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_calls_of_one_layer_on_one_tape(backend):
    layer = layer_for(backend)
    twice = gradient(lambda xs: call(layer, xs) + call(layer, 2.0 * xs))
    np.testing.assert_allclose(twice, gradient(lambda xs: expected_of(xs) + expected_of(2.0 * xs)), atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_retracing_may_relax_shapes(backend):
    layer = layer_for(backend)
    run = tf.function(lambda xs: gradient(layer, xs), reduce_retracing=True)
    for length in (1, 2, 3, 5, 8):
        xs = tf.random.stateless_normal([2, length, 4], [length, 0])
        np.testing.assert_allclose(run(xs), gradient(layer, xs), atol=1e-5)
    assert run.experimental_get_tracing_count() <= 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_that_are_not_there_say_so(backend):
    layer = layer_for(backend)

    def hessian():
        with tf.GradientTape() as outer:
            outer.watch(XS)
            first = gradient(lambda xs: call(layer, xs))
        return outer.jacobian(first, XS)

    with pytest.raises(NotImplementedError, match="no second derivative"):
        hessian()
    with (
        tf.autodiff.ForwardAccumulator(XS, tf.ones_like(XS)),
        pytest.raises(NotImplementedError, match="ForwardAccumulator"),
    ):
        call(layer, XS)


@pytest.mark.parametrize(
    "arguments", [{"jit_compile": True}, {"jit_compile": False}, {}, {"run_eagerly": True}], ids=str
)
def test_fit_of_any_kind_learns_the_same(arguments):
    inputs = keras.Input((3, 4))
    layer = layer_for("auto", return_sequences=False)
    model = keras.Model(inputs, layer(inputs))
    model.compile(keras.optimizers.SGD(0.1), "mse", **arguments)
    model.fit(XS, tf.ones([2, 5]), epochs=2, verbose=0)

    reference = layer_for("while_loop", return_sequences=False)
    for _ in range(2):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((reference(XS) - 1.0) ** 2)
        for weight, change in zip(
            reference.trainable_variables, tape.gradient(loss, reference.trainable_variables), strict=True
        ):
            weight.assign(weight - 0.1 * change)
    for one, other in zip(layer.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_distribution_strategy():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        layer = layer_for("auto")
    got = strategy.run(lambda xs: call(layer, xs), args=(XS,))
    np.testing.assert_allclose(strategy.experimental_local_results(got)[0], expected_of(XS), atol=1e-5)


def test_a_model_that_has_been_called_is_saved_in_every_form(tmp_path):
    inputs = keras.Input((None, 4))
    model = keras.Model(inputs, layer_for("auto")(inputs))
    expected = model.predict(XS, verbose=0)
    gradient(model)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(XS), expected, atol=1e-6)
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    np.testing.assert_allclose(exported.serve(XS), expected, atol=1e-5)
