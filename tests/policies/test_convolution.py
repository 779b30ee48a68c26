"""`Conv2D` computes the same as Keras' layer, with gradients from the kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm.lstm import kernel
from rl_lnlstm.lstm.kernel import build
from rl_lnlstm.policies.convolution import Conv2D
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


def case_of(shape, filters, size, strides):
    """The layer, Keras' layer with the same weights, images, and the gradient that arrives from what follows."""
    rng = np.random.default_rng(0)
    layer, plain = (kind(filters, size, strides) for kind in (Conv2D, keras.layers.Conv2D))
    for one in (layer, plain):
        one.build(shape)
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


def filters_gradient_in_float64(images, d, size, strides):
    """A sum over the positions in the kernel, written out."""
    images, d = np.asarray(images, np.float64), np.asarray(d, np.float64)
    (rows, columns), (down, across) = size, strides
    result = np.zeros((rows, columns, images.shape[-1], d.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            seen = images[:, i : i + down * d.shape[1] : down, j : j + across * d.shape[2] : across]
            result[i, j] = np.einsum("nrci,nrco->io", seen, d)
    return result


def assert_exact(d_filters, layer, images, d):
    exact = filters_gradient_in_float64(images, d, layer.kernel_size, layer.strides)
    np.testing.assert_allclose(d_filters, exact, rtol=0, atol=2e-6 * max(np.abs(exact).max(initial=0), 1))


def check_filters_gradient(case):
    layer, _, images, d = case_of(*case)
    assert_exact(gradients(layer, images, d)[2], layer, images, d)


@needs_kernel
@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_same_outputs_and_right_gradients(case, in_graph):
    layer, plain, images, d = case_of(*case)
    run = tf.function(gradients, autograph=False) if in_graph else gradients
    outputs, d_images, d_filters, d_bias = run(layer, images, d)
    expected = gradients(plain, images, d)
    np.testing.assert_array_equal(outputs, expected[0])
    np.testing.assert_array_equal(d_images, expected[1])
    np.testing.assert_allclose(d_bias, expected[3], rtol=1e-6, atol=1e-6)
    assert_exact(d_filters, layer, images, d)


@needs_kernel
def test_the_gradient_of_no_images_is_zero():
    operation = kernel.operations().rl_lnlstm_filter_gradient
    gradient = operation(tf.ones([0, 8, 8, 2]), tf.ones([0, 6, 6, 3]), kernel_size=[3, 3], strides=[1, 1])
    np.testing.assert_array_equal(gradient, np.zeros((3, 3, 2, 3)))


@needs_kernel
def test_the_gradient_comes_from_the_kernel():
    layer, plain, images, d = case_of(*CASES[1])
    types = []
    for one in (layer, plain):
        graph = tf.function(gradients, autograph=False).get_concrete_function(one, images, d).graph
        types.append({operation.type for operation in graph.get_operations()})
    slow, fast = "Conv2DBackpropFilter", "RlLnlstm>FilterGradient"
    assert [{slow, fast} & found for found in types] == [{fast}, {slow}]


@pytest.mark.parametrize(
    "arguments",
    [
        {"padding": "same"},
        {"dilation_rate": 2},
        {"groups": 2},
        {"dtype": "float64"},
        {"dtype": "mixed_bfloat16"},
    ],
    ids=str,
)
def test_elsewhere_it_is_keras_layer(arguments):
    images = np.random.default_rng(0).standard_normal((2, 9, 9, 4)).astype(np.float32)
    layer, plain = (kind(6, 3, **arguments) for kind in (Conv2D, keras.layers.Conv2D))
    layer.build(images.shape), plain.build(images.shape)
    plain.set_weights(layer.get_weights())
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


def test_second_derivatives():
    layer, plain, images, d = case_of((2, 6, 6, 2), 3, 3, 2)

    def penalty(one):
        """The gradient of the squared norm of the filters' gradient."""
        with tf.GradientTape() as outer:
            outer.watch([images, d])
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(one(images) * d)
            size = tf.reduce_sum(tape.gradient(loss, one.kernel.value) ** 2)
        return outer.gradient(size, [images, d])

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
    """Also one whose gradient was traced with the kernel before."""
    layer, _, images, d = case_of(*CASES[3])
    module = tf.Module()
    module.layer = layer
    module.call = tf.function(layer, input_signature=[tf.TensorSpec(images.shape)], autograph=False)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(module.call(images) * d)
    expected = tape.gradient(loss, layer.kernel.value)
    tf.saved_model.save(module, str(tmp_path / "saved"))
    assert b"RlLnlstm" not in (tmp_path / "saved" / "saved_model.pb").read_bytes()
    np.savez(tmp_path / "given.npz", images=images, d=d, expected=expected)
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
        from tests.policies.test_convolution import CASES, check_filters_gradient

        for case in CASES:
            check_filters_gradient(case)
        print(kernel.instruction_set())
        """
    assert run_fresh(program, RL_LNLSTM_ISA=isa).strip() in used


@needs_kernel
@pytest.mark.parametrize(
    ("images", "d", "size", "message"),
    [
        ((2, 9, 9, 3), (2, 7, 6, 4), [3, 3], r"d_outputs must have shape \[2,7,7,4\], got \[2,7,6,4\]"),
        ((2, 9, 9, 3), (3, 7, 7, 4), [3, 3], r"d_outputs must have shape \[2,7,7,4\], got \[3,7,7,4\]"),
        ((2, 2, 9, 3), (2, 1, 7, 4), [3, 3], "images must not be smaller than the kernel"),
        ((2, 9, 9), (2, 7, 7, 4), [3, 3], "rank 4|must have shape"),
        ((2, 9, 9, 3), (2, 7, 7, 4), [3], "two"),
        ((2, 9, 9, 3), (2, 7, 7, 4), [0, 3], "two positive numbers"),
    ],
    ids=str,
)
def test_wrong_shapes_are_refused(images, d, size, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        kernel.operations().rl_lnlstm_filter_gradient(tf.ones(images), tf.ones(d), kernel_size=size, strides=[1, 1])
