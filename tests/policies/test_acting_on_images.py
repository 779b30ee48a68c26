"""Acting on images in one call computes the same as the policy's graph."""

import dataclasses

import gymnasium as gym
import keras
import numpy as np
import pytest

from rl_lnlstm.lstm.kernel import available
from rl_lnlstm.policies import CnnLnLstmPolicy, Conv2D, Pixels, RecurrentPolicy
from rl_lnlstm.policies.compiled_step import compiled_step
from rl_lnlstm.policies.graph_step import graph_step
from tests.policies import reference
from tests.policies.small_policy import ACTION_SPACES

pytestmark = pytest.mark.skipif(not available(), reason="no kernel")

IMAGES = {
    "four frames": (4, 84, 84),
    "grey": (84, 84),
    "colours": (20, 24, 3),
    "colours first": (3, 20, 24),
    "many channels first": (6, 20, 24),
}


def image_policy(shape, encoder=None, action_space=ACTION_SPACES["discrete"], **arguments):
    rng, space = np.random.default_rng(0), gym.spaces.Box(0, 255, shape, np.uint8)
    kind = CnnLnLstmPolicy if encoder is None else RecurrentPolicy
    given = {} if encoder is None else {"encoder": encoder}
    policy = reference.randomise(kind(space, action_space, units=5, seed=0, **given, **arguments))
    if policy.observation_statistics is not None:
        policy.observation_statistics.update(rng.integers(0, 256, (9, *shape)).astype(np.uint8))
    return policy


def own_convolutions(*before):
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((20, 24, 3)),
            *before,
            layers.Conv2D(7, (5, 3), (2, 1), activation="tanh"),
            layers.Conv2D(33, 2, activation="sigmoid"),
            layers.Flatten(),
            layers.Dense(9, "relu"),
        ]
    )


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("shape", IMAGES.values(), ids=IMAGES)
def test_the_compiled_step_for_images_is_that_of_the_graph(shape, normalized):
    assert_compiled_like_the_graph(image_policy(shape, normalize_observations=normalized))


def test_the_compiled_step_with_convolutions_of_the_user_is_that_of_the_graph():
    # Batch 0 is left out: TensorFlow's own convolution of no images fails with oneDNN.
    assert_compiled_like_the_graph(image_policy((20, 24, 3), own_convolutions()), (1, 5, 8))


def assert_compiled_like_the_graph(policy, batches=(0, 1, 5, 8)):
    rng, space = np.random.default_rng(1), policy.observation_space
    compiled, graph = compiled_step(policy), graph_step(policy)
    for batch in batches:
        images = rng.integers(0, 256, (batch, *space.shape)).astype(np.uint8)
        state = rng.normal(size=(2, batch, policy.state_size)).astype(np.float32)
        given = images, *state, rng.random(batch) < 0.5, policy.action_head.noise(rng, batch)
        whole = compiled(*given)
        for one, other in zip(whole, graph(*given), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(np.abs(other).max(initial=0), 1))
        if batch:
            for one, other in zip(whole, compiled(*(array[-1:] for array in given)), strict=True):
                np.testing.assert_array_equal(one[-1:], other)  # a row does not depend on the others


@pytest.mark.parametrize("normalized", [False, True])
def test_the_compiled_step_with_pixels_of_the_user_is_that_of_the_graph(normalized):
    options = {"normalize_observations": normalized, "shared_lstm": False, "action_space": ACTION_SPACES["box"]}
    assert_compiled_like_the_graph(image_policy((20, 24, 3), own_convolutions(Pixels(0.01)), **options), (1, 5, 8))


class OwnConvolution(keras.layers.Conv2D):
    pass


class OwnPixels(Pixels):
    pass


@pytest.mark.parametrize(
    ("before", "dtype"),
    [
        ([OwnPixels(0.1)], np.uint8),
        ([OwnConvolution(3, 3)], np.uint8),
        ([Conv2D(3, 3, padding="same")], np.uint8),
        ([Conv2D(3, 3, dilation_rate=2)], np.uint8),
        ([keras.layers.Rescaling(0.1)], np.uint8),
        ([], np.float32),
    ],
    ids=str,
)
def test_other_networks_for_images_act_through_the_graph(before, dtype):
    space = gym.spaces.Box(0, 255 if dtype == np.uint8 else 1, (20, 24, 3), dtype)
    policy = RecurrentPolicy(space, ACTION_SPACES["discrete"], own_convolutions(*before), units=3)
    assert compiled_step(policy) is None


@dataclasses.dataclass  # such a class has no hash
class Scaled:
    factor: float

    def __call__(self, values):
        return values * self.factor


@pytest.mark.parametrize("convolution", [Conv2D, keras.layers.Conv2D])
def test_an_activation_without_a_hash(convolution):
    layers = keras.layers
    encoder = keras.Sequential(
        [keras.Input((9, 9, 2)), convolution(3, 3, activation=Scaled(1e-4)), layers.Flatten(), layers.Dense(4)]
    )
    policy = image_policy((9, 9, 2), encoder)
    assert compiled_step(policy) is None
    images = np.random.default_rng(0).integers(0, 256, (2, 9, 9, 2)).astype(np.uint8)
    value = policy.value(images, policy.initial_state(2), np.zeros(2, bool))
    encoder.layers[0].activation = Scaled(1e-3)
    assert not np.allclose(policy.value(images, policy.initial_state(2), np.zeros(2, bool)), value)
    encoder.layers[0].activation = lambda values: 1e-4 * values
    np.testing.assert_allclose(policy.value(images, policy.initial_state(2), np.zeros(2, bool)), value, rtol=1e-5)


def test_acting_on_images_notices_a_changed_layer():
    pixels, convolution = Pixels(0.01), Conv2D(3, 4, 4, activation="tanh")
    encoder = keras.Sequential([keras.Input((20, 20, 1)), pixels, convolution, keras.layers.Flatten()])
    policy = image_policy((20, 20, 1), encoder)
    images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 1)).astype(np.uint8)
    given = images, policy.initial_state(2), np.zeros(2, bool)
    before = policy.value(*given)
    pixels.scale = 0.02
    other_scale = policy.value(*given)
    assert not np.allclose(before, other_scale)
    convolution.strides = (2, 2)
    with pytest.raises(RuntimeError, match="a weight must have shape"):  # the LSTM expects fewer features
        policy.value(*given)
    convolution.strides = (4, 4)
    np.testing.assert_array_equal(policy.value(*given), other_scale)


def test_acting_on_images_notices_another_convolution():
    policy = image_policy(IMAGES["colours first"])
    images = np.random.default_rng(0).integers(0, 256, (2, *IMAGES["colours first"])).astype(np.uint8)
    given = images, policy.initial_state(2), np.zeros(2, bool)
    before, layer = policy.value(*given), policy.encoder.layers[1]
    layer.convolution_op = lambda inputs, kernel: 2 * keras.ops.conv(inputs, kernel, layer.strides)
    assert not np.allclose(policy.value(*given), before)
    del layer.convolution_op
    np.testing.assert_array_equal(policy.value(*given), before)


def test_the_compiled_step_for_images_notices_changed_filters():
    policy = image_policy(IMAGES["colours first"])
    compiled, graph = compiled_step(policy), graph_step(policy)
    images = np.full((2, *IMAGES["colours first"]), 100, np.uint8)
    given = images, *np.zeros((2, 2, policy.state_size), np.float32), np.zeros(2, bool), policy.action_head.no_noise(2)
    before = compiled(*given)[1]
    for layer in policy.encoder.layers[1:4]:
        layer.kernel.assign(layer.kernel * 1.5 + 0.1)
        values = compiled(*given)[1]
        assert not np.array_equal(values, before)
        np.testing.assert_allclose(values, graph(*given)[1], rtol=1e-4)
        before = values
