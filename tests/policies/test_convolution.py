"""`Conv2D` and `Pixels` compute the same as Keras' layers, in the kernel."""

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


@needs_kernel
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
@pytest.mark.parametrize("case", CASES[2:5], ids=str)
def test_activations(case, activation):
    layer, plain, images, d = case_of(*case, activation)
    for got, expected in zip(gradients(layer, images, d), gradients(plain, images, d), strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1))


@needs_kernel
@pytest.mark.parametrize("activation", ["relu", None])
def test_nan_in_an_image_stays_in_its_outputs(activation):
    layer, _, images, _ = case_of(*CASES[3], activation)
    bad = layer(tf.tensor_scatter_nd_update(images, [[1, 4, 5, 2]], [np.nan]))
    assert np.isnan(bad[1]).any(-1).sum() in range(1, 20)
    np.testing.assert_array_equal(bad[0], layer(images)[0])


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
def test_images_that_are_too_small_are_refused_as_by_keras():
    for kind in (Conv2D, keras.layers.Conv2D):
        with pytest.raises(ValueError, match=r"zero or negative|empty output"):
            kind(3, 5)(tf.ones([2, 4, 9, 1]))


@needs_kernel
@pytest.mark.many_cases
@pytest.mark.parametrize(("isa", "used"), [("avx2", ("AVX2", "portable")), ("portable", ("portable",))])
def test_every_instruction_set(isa, used):
    program = """
        from rl_lnlstm.lstm import kernel
        from tests.policies.test_convolution import CASES, check_case, check_pixels

        for case in CASES:
            check_case(case)
        check_pixels()
        print(kernel.instruction_set())
        """
    assert run_fresh(program, RL_LNLSTM_ISA=isa).strip() in used


IMAGES, FILTERS, OUTPUTS = (2, 9, 9, 3), (3, 3, 3, 4), (2, 7, 7, 4)
WRONG = [
    ("convolution", (IMAGES[:3], FILTERS, (4,)), "rank 4|must have shape"),
    ("convolution", (IMAGES, FILTERS[:3], (4,)), "rank 4|must have shape"),
    ("convolution", (IMAGES, (3, 3, 2, 4), (4,)), r"filters must have shape \[3,3,3,4\], got \[3,3,2,4\]"),
    ("convolution", (IMAGES, FILTERS, (5,)), r"bias must have shape \[4\], got \[5\]"),
    ("convolution", ((2, 2, 9, 3), FILTERS, (4,)), "images must not be smaller than the kernel|Negative|negative"),
    ("filter_gradient", (IMAGES, (2, 7, 6, 4)), r"d_outputs must have shape \[2,7,7,4\], got \[2,7,6,4\]"),
    ("filter_gradient", (IMAGES, (3, 7, 7, 4)), r"d_outputs must have shape \[2,7,7,4\], got \[3,7,7,4\]"),
    ("filter_gradient", ((2, 2, 9, 3), (2, 1, 7, 4)), "images must not be smaller than the kernel"),
    ("image_gradient", (IMAGES, FILTERS, (2, 7, 6, 4)), r"d_outputs must have shape \[2,7,7,4\], got \[2,7,6,4\]"),
    ("image_gradient", (IMAGES, (3, 3, 2, 4), OUTPUTS), r"filters must have shape \[3,3,3,4\], got \[3,3,2,4\]"),
    ("image_gradient", (IMAGES[:3], FILTERS, OUTPUTS), "rank 4|must have shape"),
    ("pixels", (IMAGES[:3],), "rank 4|four axes"),
]


@needs_kernel
@pytest.mark.parametrize(("name", "shapes", "message"), WRONG, ids=str)
def test_wrong_shapes_are_refused(name, shapes, message):
    attributes = {
        "convolution": {"strides": [1, 1], "activation": "relu"},
        "filter_gradient": {"strides": [1, 1], "kernel_size": [3, 3]},
        "image_gradient": {"strides": [1, 1]},
        "pixels": {"channels_first": True, "scale": 1.0},
    }[name]
    first, *others = shapes
    inputs = [tf.constant(first) if name == "image_gradient" else tf.ones(first), *map(tf.ones, others)]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        getattr(kernel.operations(), f"rl_lnlstm_{name}")(*inputs, **attributes)


@needs_kernel
@pytest.mark.parametrize(
    "changed", [{"strides": [1]}, {"strides": [0, 1]}, {"activation": "gelu"}, {"scale": 2.0}], ids=str
)
def test_wrong_attributes_are_refused(changed):
    attributes = {"strides": [1, 1], "activation": "relu", **changed}
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"two positive numbers|no activation gelu|only bytes can"):
        kernel.operations().rl_lnlstm_convolution(tf.ones(IMAGES), tf.ones(FILTERS), tf.ones(4), **attributes)


def check_pixels():
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4, 5, 9):
        images = rng.integers(0, 256, (3, channels, 7, 6)).astype(np.uint8)
        expected = images.transpose(0, 2, 3, 1).astype(np.float32) * np.float32(1 / 255)
        for values in (images, images.astype(np.float32)):
            np.testing.assert_array_equal(tf.function(Pixels(1 / 255, True))(tf.cast(values, tf.float32)), expected)
        last = tf.function(Pixels(1 / 255))(tf.cast(images.transpose(0, 2, 3, 1), tf.float32))
        np.testing.assert_array_equal(last, expected)


def test_pixels():
    check_pixels()


@needs_kernel
@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_a_convolution_reads_bytes_in_a_graph(case, channels_first):
    layer, plain, images, d = case_of(*case, "relu")
    images = np.random.default_rng(0).integers(0, 256, images.shape).astype(np.uint8)
    images = tf.constant(images.transpose(0, 3, 1, 2) if channels_first else images)
    pixels = Pixels(1 / 255, channels_first)

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


@needs_kernel
def test_pixels_are_read_as_bytes_in_a_graph():
    layer = Pixels(1 / 255, channels_first=True)
    graph = tf.function(lambda images: layer(tf.cast(images, tf.float32)), autograph=False).get_concrete_function(
        tf.TensorSpec([None, 4, 9, 9], tf.uint8)
    )
    [operation] = [one for one in graph.graph.get_operations() if one.type == "RlLnlstm>Pixels"]
    assert operation.inputs[0].dtype == tf.uint8
    assert graph.structured_outputs.shape.as_list() == [None, 9, 9, 4]


@pytest.mark.parametrize(
    ("shape", "channels_first"), [((2, 9, 8), False), ((2, 9, 8, 3), False), ((2, 9, 8, 3), True)], ids=str
)
def test_pixels_with_and_without_the_kernel(shape, channels_first, monkeypatch):
    images = tf.constant(np.random.default_rng(0).standard_normal(shape), tf.float32)
    results = []
    for _ in range(2):
        layer = Pixels(0.5, channels_first)
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum((pixels := layer(images)) ** 3)
        assert layer.compute_output_shape(shape) == pixels.shape
        results.append([pixels, tape.gradient(loss, images)])
        monkeypatch.setattr(kernel, "available", lambda: False)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_keras_saves_and_loads_pixels(tmp_path):
    model = keras.Sequential([keras.Input((3, 5, 4)), Pixels(0.5, channels_first=True, name="halves")])
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(images), model(images))
