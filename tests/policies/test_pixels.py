"""`Pixels` computes the same as Keras' `Permute` and `Rescaling`, in the kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm.lstm import kernel
from rl_lnlstm.policies import Pixels
from tests.lstm.fresh_process import run_fresh
from tests.policies.test_convolution import needs_kernel


def check_pixels():
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4, 5, 9):
        images = rng.integers(0, 256, (3, channels, 7, 6)).astype(np.uint8)
        expected = images.transpose(0, 2, 3, 1).astype(np.float32) * np.float32(1 / 255)
        for dtype in (np.uint8, np.float32):
            first, last = (part.astype(dtype) for part in (images, images.transpose(0, 2, 3, 1)))
            np.testing.assert_array_equal(in_graph(Pixels(1 / 255, channels_first=True))(first), expected)
            np.testing.assert_array_equal(in_graph(Pixels(1 / 255))(last), expected)


def in_graph(layer):
    return tf.function(lambda images: layer(tf.cast(images, tf.float32)), autograph=False)


def test_pixels():
    check_pixels()


@needs_kernel
def test_pixels_are_read_as_bytes_in_a_graph():
    given = tf.TensorSpec([None, 4, 9, 9], tf.uint8)
    graph = in_graph(Pixels(1 / 255, channels_first=True)).get_concrete_function(given)
    [operation] = [one for one in graph.graph.get_operations() if one.type == "RlLnlstm>Pixels"]
    assert operation.inputs[0].dtype == tf.uint8
    assert graph.structured_outputs.shape.as_list() == [None, 9, 9, 4]


@needs_kernel
@pytest.mark.parametrize(
    ("shape", "channels_first"), [((2, 9, 8), False), ((2, 9, 8, 3), False), ((2, 9, 8, 3), True)], ids=str
)
def test_pixels_with_and_without_the_kernel(shape, channels_first, monkeypatch):
    images = tf.constant(np.random.default_rng(0).standard_normal(shape), tf.float32)
    results = []
    for _ in range(2):
        layer = Pixels(0.5, channels_first=channels_first)
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum((pixels := layer(images)) ** 3)
        assert layer.compute_output_shape(shape) == pixels.shape
        results.append([pixels, tape.gradient(loss, images)])
        monkeypatch.setattr(kernel, "available", lambda: False)
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@needs_kernel
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_without_channels(dtype):
    operation = kernel.operations().rl_lnlstm_pixels
    assert operation(np.empty((2, 0, 9, 8), dtype), channels_first=True, scale=1.0).shape == (2, 9, 8, 0)
    assert operation(np.empty((2, 9, 8, 0), dtype), channels_first=False, scale=1.0).shape == (2, 9, 8, 0)


def test_keras_saves_and_loads_pixels(tmp_path):
    model = keras.Sequential([keras.Input((3, 5, 4)), Pixels(0.5, channels_first=True, name="halves")])
    model.save(tmp_path / "model.keras")
    images = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    program = """
        import sys
        import numpy as np
        import rl_lnlstm  # which is enough for Keras to find the layer
        import keras

        np.save(sys.argv[3], keras.saving.load_model(sys.argv[1])(np.load(sys.argv[2])))
        """
    run_fresh(program, tmp_path / "model.keras", tmp_path / "images.npy", tmp_path / "pixels.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "pixels.npy"), model(images))


def test_other_dtypes_and_xla():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 4)).astype(np.float32)
    expected = images.transpose(0, 2, 3, 1) / 2
    half = Pixels(0.5, channels_first=True, dtype="mixed_bfloat16")(images)
    assert half.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(half, tf.float32), expected, rtol=0.01)
    layer = Pixels(0.5, channels_first=True)
    np.testing.assert_array_equal(tf.function(layer, jit_compile=True)(tf.constant(images)), expected)


@pytest.mark.parametrize("shape", [(2, 9), (2, 9, 8), (2, 3, 4, 5, 6)], ids=str)
def test_images_with_another_number_of_axes_are_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \[batch, channels, rows, columns\], got"):
        Pixels(channels_first=True)(tf.ones(shape))


def test_an_offset_is_refused():
    with pytest.raises(ValueError, match=r"no offset, got -1"):
        Pixels(1 / 127.5, offset=-1)
    with pytest.raises(TypeError):
        Pixels(1 / 127.5, -1)
    layer = Pixels(1 / 127.5)
    with pytest.raises(ValueError, match=r"no offset, got -1"):
        layer.offset = -1
    np.testing.assert_array_equal(layer(tf.fill((1, 2, 2, 1), 127.5)), np.ones((1, 2, 2, 1)))
