"""`Conv2D` computes the same as Keras' layer, in the kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm.lstm import kernel
from rl_lnlstm.lstm.kernel import build
from rl_lnlstm.policies.convolution import Conv2D, Pixels
from tests.lstm.fresh_process import run_fresh

needs_kernel = pytest.mark.skipif(build._compiler() is None, reason="no C++ compiler")
# Images, filters, kernel size and strides. Some have more patches than one product takes, and some have numbers of
# channels and filters that are no multiples of a vector.
CASES = [
    ((3, 84, 84, 4), 32, 8, 4),
    ((37, 20, 20, 32), 64, 4, 2),
    ((5, 9, 9, 64), 64, 3, 1),
    ((2, 9, 11, 3), 7, (3, 2), (2, 1)),
    ((1, 7, 5, 1), 33, (7, 5), 1),
    ((4, 6, 6, 2), 1, 1, 3),
]


def case_of(shape, filters, size, strides, activation=None):
    """The layer, Keras' layer with the same weights, images, and the gradient that arrives from what follows."""
    rng = np.random.default_rng(0)
    layer, plain = (kind(filters, size, strides, activation=activation) for kind in (Conv2D, keras.layers.Conv2D))
    for one in (layer, plain):
        one.build(shape)
    layer.bias.assign(rng.standard_normal(filters))
    plain.set_weights(layer.get_weights())
    images = tf.constant(rng.standard_normal(shape), tf.float32)
    d = tf.constant(rng.standard_normal(plain.compute_output_shape(shape)), tf.float32)
    return layer, plain, images, d


def gradients(layer, images, d):
    """Outputs, and the gradients of images, filters and biases."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images)
        loss = tf.reduce_sum(outputs * d)
    return [outputs, *tape.gradient(loss, [images, layer.kernel.value, layer.bias.value])]


def exact(layer, images, d):
    """Outputs before the activation, and the gradients of a loss whose gradient there is `d`, in float64.

    A sum over the positions in the kernel, written out.
    """
    images, d, filters, bias = (np.asarray(part, np.float64) for part in (images, d, layer.kernel, layer.bias))
    down, across = layer.strides
    outputs, d_images, d_filters = np.zeros(d.shape) + bias, np.zeros(images.shape), np.zeros(filters.shape)
    for i in range(filters.shape[0]):
        for j in range(filters.shape[1]):
            place = np.s_[:, i : i + down * d.shape[1] : down, j : j + across * d.shape[2] : across]
            outputs += images[place] @ filters[i, j]
            d_filters[i, j] = np.einsum("nrci,nrco->io", images[place], d)
            d_images[place] += d @ filters[i, j].T
    return [outputs, d_images, d_filters, d.sum((0, 1, 2))]


def assert_close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * max(np.abs(expected).max(initial=0), 1))


def check_case(case):
    layer, _, images, d = case_of(*case)
    for got, expected in zip(gradients(layer, images, d), exact(layer, images, d), strict=True):
        assert_close(got, expected)


@needs_kernel
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients(case, in_graph):
    layer, _, images, d = case_of(*case)
    run = tf.function(gradients, autograph=False) if in_graph else gradients
    for got, expected in zip(run(layer, images, d), exact(layer, images, d), strict=True):
        assert_close(got, expected)


def check_activations():
    for case in CASES[2:5]:
        for activation in ("relu", "tanh", "sigmoid"):
            layer, plain, images, d = case_of(*case, activation)
            for got, expected in zip(gradients(layer, images, d), gradients(plain, images, d), strict=True):
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))


@needs_kernel
def test_activations():
    check_activations()


@needs_kernel
def test_a_subclass_may_change_the_convolution():
    class Doubled(Conv2D):
        def convolution_op(self, inputs, kernel):
            return 2 * super().convolution_op(inputs, kernel)

    layer, plain, images, _ = case_of(*CASES[3])
    doubled = Doubled(7, (3, 2), (2, 1))
    doubled.build(images.shape)
    doubled.set_weights([layer.get_weights()[0], np.zeros(7)])
    np.testing.assert_allclose(doubled(images), 2 * (plain(images) - plain.bias), atol=1e-5)


@needs_kernel
def test_images_from_outside_of_a_graph():
    layer, plain, images, _ = case_of(*CASES[3])
    for kind in (layer, keras.Sequential([Pixels(), layer])):
        got = tf.function(lambda kind=kind: kind(images), autograph=False)()
        np.testing.assert_allclose(got, plain(images), atol=1e-5)


@needs_kernel
def test_a_watched_conversion_has_its_gradient():
    layer, _, images, _ = case_of(*CASES[3])
    pixels = Pixels(0.5)

    def of_floats(images):
        with tf.GradientTape() as tape:
            tape.watch(floats := tf.cast(images, tf.float32))
            loss = tf.reduce_sum(layer(pixels(floats)))
        return tape.gradient(loss, floats)

    def of_pixels(images):
        floats = tf.cast(images, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(seen := pixels(floats))
            loss = tf.reduce_sum(layer(seen))
        return 0.5 * tape.gradient(loss, seen)

    images = tf.cast(tf.abs(images) * 50, tf.uint8)
    expected = of_floats(images)
    for function in (of_floats, of_pixels):
        np.testing.assert_allclose(tf.function(function, autograph=False)(images), expected, atol=1e-6)


@needs_kernel
@pytest.mark.parametrize("activation", ["relu", None])
def test_nan_in_an_image_stays_in_its_outputs(activation):
    layer, plain, images, _ = case_of(*CASES[3], activation)
    images = tf.tensor_scatter_nd_update(images, [[1, 4, 5, 2]], [np.nan])
    bad = np.isnan(layer(images))
    assert bad.any()
    np.testing.assert_array_equal(bad, np.isnan(plain(images)))


@needs_kernel
def test_an_image_does_not_depend_on_the_others():
    layer, _, images, _ = case_of(*CASES[1])
    whole = layer(images)
    for size in (1, 2, 5):
        parts = [layer(images[i : i + size]) for i in range(0, len(images), size)]
        np.testing.assert_array_equal(tf.concat(parts, 0), whole)


@needs_kernel
def test_no_images():
    layer, _, images, d = case_of(*CASES[3])
    outputs, d_images, d_filters, d_bias = gradients(layer, images[:0], d[:0])
    assert outputs.shape == d[:0].shape
    assert d_images.shape == images[:0].shape
    assert not np.any(d_filters)
    assert not np.any(d_bias)


OPERATIONS = {"RlLnlstm>Convolution", "RlLnlstm>FilterGradient", "RlLnlstm>ImageGradient"}


def types_in(function, *arguments):
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    return {operation.type for operation in graph.get_operations()}


@needs_kernel
def test_all_of_it_comes_from_the_kernel():
    layer, plain, images, d = case_of(*CASES[1])
    assert types_in(gradients, layer, images, d) >= OPERATIONS
    assert not types_in(gradients, plain, images, d) & OPERATIONS


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same"},
        {"dilation_rate": 2},
        {"groups": 2},
        {"dtype": "float64"},
        {"dtype": "mixed_bfloat16"},
        {"use_bias": False},
        {"activation": "gelu"},
        {"data_format": "channels_first"},
    ],
    ids=str,
)
def test_elsewhere_it_is_keras_layer(arguments):
    images = np.random.default_rng(0).standard_normal((2, 9, 9, 4)).astype(np.float32)
    layer, plain = (kind(6, 3, **arguments) for kind in (Conv2D, keras.layers.Conv2D))
    layer.build(images.shape), plain.build(images.shape)
    plain.set_weights(layer.get_weights())
    if arguments.get("data_format") == "channels_first":  # TensorFlow cannot compute it on a CPU
        assert not types_in(layer, tf.TensorSpec(images.shape)) & OPERATIONS
        return
    with tf.GradientTape(persistent=True) as tape:
        losses = [tf.reduce_sum(one(images) ** 2) for one in (layer, plain)]
    got, expected = (tape.gradient(loss, one.kernel.value) for loss, one in zip(losses, (layer, plain), strict=True))
    np.testing.assert_array_equal(tf.cast(got, tf.float32), tf.cast(expected, tf.float32))


def test_under_xla_it_is_keras_layer():
    layer, plain, images, d = case_of(*CASES[3])
    for got, expected in zip(
        tf.function(gradients, autograph=False, jit_compile=True)(layer, images, d),
        gradients(plain, images, d),
        strict=True,
    ):
        np.testing.assert_allclose(got, expected, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_second_derivatives(activation):
    layer, plain, images, d = case_of((2, 6, 6, 2), 3, 3, 2, activation)

    def penalty(one):
        """The gradient of the squared norm of all gradients."""
        weights = [one.kernel.value, one.bias.value]
        with tf.GradientTape() as outer:
            outer.watch([images, d])
            with tf.GradientTape() as tape:
                tape.watch(images)
                loss = tf.reduce_sum(one(images) ** 2 * d)
            size = tf.add_n([tf.reduce_sum(part**2) for part in tape.gradient(loss, [images, *weights])])
        return outer.gradient(size, [images, d, *weights])

    for got, expected in zip(penalty(layer), penalty(plain), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_keras_saves_and_loads_it(tmp_path):
    model = keras.Sequential([keras.Input((9, 9, 2)), Conv2D(3, 3), keras.layers.Flatten()])
    model.save(tmp_path / "model.keras")
    program = """
        import sys
        import numpy as np
        import rl_lnlstm  # which is enough for Keras to find the layer
        import keras

        model = keras.saving.load_model(sys.argv[1])
        np.save(sys.argv[2], model(np.ones((1, 9, 9, 2), np.float32)))
        """
    run_fresh(program, tmp_path / "model.keras", tmp_path / "outputs.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), model(np.ones((1, 9, 9, 2), np.float32)))


@needs_kernel
def test_a_saved_function_loads_without_the_kernel(tmp_path):
    layer, _, images, d = case_of(*CASES[3])
    module = tf.Module()
    module.layer = layer
    module.call = tf.function(layer, input_signature=[tf.TensorSpec(images.shape)], autograph=False)
    tf.saved_model.save(module, str(tmp_path / "saved"))
    assert b"RlLnlstm" not in (tmp_path / "saved" / "saved_model.pb").read_bytes()
    np.savez(tmp_path / "given.npz", images=images, d=d, expected=gradients(layer, images, d)[2])
    program = """
        import sys
        import numpy as np
        import tensorflow as tf

        module, given = tf.saved_model.load(sys.argv[1]), np.load(sys.argv[2])
        images = tf.constant(given["images"])
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(module.call(images) * given["d"])
        gradients = tape.gradient(loss, tape.watched_variables())
        [filters] = [one for one in gradients if one is not None and one.shape == given["expected"].shape]
        np.testing.assert_allclose(filters, given["expected"], atol=1e-4)
        """
    run_fresh(program, tmp_path / "saved", tmp_path / "given.npz")


def test_without_the_kernel_it_is_keras_layer(monkeypatch):
    monkeypatch.setattr(kernel, "available", lambda: False)
    layer, plain, images, d = case_of(*CASES[3])
    for got, expected in zip(gradients(layer, images, d), gradients(plain, images, d), strict=True):
        np.testing.assert_array_equal(got, expected)


@needs_kernel
def test_images_that_are_too_small_are_refused():
    layer = Conv2D(3, 5)
    layer.build([2, 9, 9, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="images must not be smaller than the kernel"):
        layer(tf.ones([2, 4, 9, 1]))


@needs_kernel
@pytest.mark.many_cases
@pytest.mark.parametrize(("isa", "used"), [("avx2", ("AVX2", "portable")), ("portable", ("portable",))])
def test_every_instruction_set(isa, used):
    program = """
        from rl_lnlstm.lstm import kernel
        from tests.policies.test_convolution import CASES, check_activations, check_case
        from tests.policies.test_pixels import check_pixels

        for case in CASES:
            check_case(case)
        check_activations()
        check_pixels()
        print(kernel.instruction_set())
        """
    assert run_fresh(program, RL_LNLSTM_ISA=isa).strip() in used


@needs_kernel
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_a_convolution_reads_bytes_in_a_graph(case, channels_first):
    layer, plain, images, d = case_of(*case, "relu")
    images = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    images = tf.constant(images.transpose(0, 3, 1, 2) if channels_first else images)
    pixels = Pixels(1 / 255, channels_first=channels_first)

    def from_bytes(layer, images):
        """Outputs, gradients of filters and biases, and those of these gradients' squared norm."""
        weights = [layer.kernel.value, layer.bias.value]
        with tf.GradientTape() as outer:
            with tf.GradientTape() as tape:
                outputs = layer(pixels(tf.cast(images, tf.float32)))
                loss = tf.reduce_sum(outputs**2 * d)
            first = tape.gradient(loss, weights)
            size = tf.add_n([tf.reduce_sum(part**2) for part in first])
        return [outputs, *first, *outer.gradient(size, weights)]

    run = tf.function(from_bytes, autograph=False)
    graph = run.get_concrete_function(layer, images).graph
    found = [one.inputs[0].dtype for one in graph.get_operations() if one.type == "RlLnlstm>Convolution"]
    assert set(found) == {tf.uint8}
    for got, expected in zip(run(layer, images), run(plain, images), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))
