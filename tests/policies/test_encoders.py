"""Encoders for each kind of observation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium import spaces

from rl_lnlstm import PPO, UserError
from rl_lnlstm.policies import (
    POLICIES,
    CnnLnLstmPolicy,
    MlpLnLstmPolicy,
    MultiInputLnLstmPolicy,
    RecurrentPolicy,
    policy_for,
)
from tests.policies.reference import weights_of

DISCRETE, VECTOR = spaces.Discrete(3), spaces.Box(-1, 1, (3,))


def image(*shape, dtype=np.uint8, high=255):
    return spaces.Box(0, high, shape, dtype)


def kernels(policy):
    return [tuple(layer.kernel.shape) for layer in policy.encoder.layers if "kernel" in dir(layer)]


# ------------------------------------------------------------------------------------------------------- images


def test_the_network_for_large_images_is_natures():
    """Mnih et al. (2015): 32 of 8 x 8 with stride 4, 64 of 4 x 4 with stride 2, 64 of 3 x 3; 512 units."""
    policy = CnnLnLstmPolicy(image(84, 84, 4), DISCRETE, units=2, head_layers=())
    assert kernels(policy) == [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64), (7 * 7 * 64, 512)]
    assert [layer.strides for layer in policy.encoder.layers if hasattr(layer, "strides")] == [(4, 4), (2, 2), (1, 1)]
    assert policy.is_convolutional
    frames = np.random.default_rng(0).integers(256, size=(3, 84, 84, 4), dtype=np.uint8)
    weights = {path.removeprefix("encoder/"): weight for path, weight in weights_of(policy).items()}
    features = frames / 255.0
    for i, stride in enumerate((4, 2, 1)):
        name = f"encoder_convolution_{i}"
        features = tf.nn.conv2d(features, weights[f"{name}/kernel"], stride, "VALID") + weights[f"{name}/bias"]
        features = tf.nn.relu(features).numpy()
    features = np.maximum(features.reshape(3, -1) @ weights["encoder_0/kernel"] + weights["encoder_0/bias"], 0)
    np.testing.assert_allclose(policy._encode(frames), features, atol=1e-4)


@pytest.mark.parametrize("side", [5, 7, 15, 16, 20, 36, 47, 48, 64])
def test_smaller_images_get_smaller_networks(side):
    policy = CnnLnLstmPolicy(image(side, side + 3, 3), DISCRETE, units=2, head_layers=(), encoder_layers=(4,))
    rows, columns = policy.encoder.layers[-3].output.shape[1:3]
    assert rows >= 1
    assert columns >= 1
    assert 64 <= kernels(policy)[-1][0] <= 10_000  # features, neither nearly none nor an explosion of them
    assert policy_for(policy.observation_space) is CnnLnLstmPolicy


@pytest.mark.parametrize("high", [255, 10])
def test_few_pixels_of_bytes_are_symbols_however_many_there_are(high):
    policy = CnnLnLstmPolicy(image(7, 7, 3, high=high), DISCRETE, units=2, encoder_layers=(4,))
    assert policy.encoder.get_layer("encoder_symbols").output.shape[1:] == (7, 7, 3, 8)


@pytest.mark.parametrize("shape", [(4, 60, 4), (4, 4, 3), (3, 4, 4), (60, 4)])
def test_an_image_that_is_too_small_is_refused_or_flattened(shape):
    with pytest.raises(UserError, match=r"at least 5 x 5.*MlpLnLstmPolicy") as caught:
        CnnLnLstmPolicy(image(*shape), DISCRETE)
    assert str(shape) in str(caught.value)
    assert policy_for(image(*shape)) is MlpLnLstmPolicy


def test_layouts_are_told_apart():
    """The same pixels give the same features for every position of the channels and every stack of frames."""
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(5, 20, 17, 3), dtype=np.uint8)
    stacked = rng.integers(256, size=(5, 2, 20, 17, 3), dtype=np.uint8)
    layouts = {
        "last": (frames, [frames]),
        "first": (frames.transpose(0, 3, 1, 2), [frames]),
        "gray": (frames[..., 0], [frames[..., :1]]),
        "stack of gray": (frames[..., :2].transpose(0, 3, 1, 2), [frames[..., :2]]),
        "stack": (stacked, [stacked[:, 0], stacked[:, 1]]),
        "stack, channels first": (stacked.transpose(0, 1, 4, 2, 3), [stacked[:, 0], stacked[:, 1]]),
    }
    for name, (given, parts) in layouts.items():
        expected = np.concatenate(parts, -1)
        one, other = (
            CnnLnLstmPolicy(image(*array.shape[1:]), DISCRETE, units=2, encoder_layers=(4,), seed=0)
            for array in (given, expected)
        )
        np.testing.assert_allclose(one._encode(given), other._encode(expected), atol=1e-6, err_msg=name)


@pytest.mark.parametrize("normalized", [False, True])
def test_images_of_floats_are_those_of_bytes(normalized):
    bytes_, floats = (
        CnnLnLstmPolicy(space, DISCRETE, units=2, encoder_layers=(4,), seed=0, normalize_observations=normalized)
        for space in (image(20, 20, 1), image(20, 20, 1, dtype=np.float32, high=1))
    )
    frames = np.random.default_rng(0).integers(256, size=(5, 20, 20, 1), dtype=np.uint8)
    as_floats = np.float32(frames / 255)
    for _ in range(2):
        np.testing.assert_allclose(bytes_._encode(frames), floats._encode(as_floats), atol=2e-4)
        for policy, given in ((bytes_, frames), (floats, as_floats)):
            policy.update_statistics(given[:3], np.ones(3, bool))


def test_normalisation_leaves_of_an_image_what_changes():
    """A constant bright background disappears, moving objects stand out, and noise stays small."""
    rng = np.random.default_rng(0)
    frames = np.full((200, 20, 20, 1), 200, np.uint8)
    frames[np.arange(200), rng.integers(20, size=200), rng.integers(10, size=200)] = 90
    frames[:, :, 15] += rng.integers(2, size=(200, 20, 1), dtype=np.uint8)
    policy = CnnLnLstmPolicy(image(20, 20, 1), DISCRETE, units=2, encoder_layers=(4,), normalize_observations=True)
    policy.update_statistics(frames, np.ones(200, bool))
    normalized = np.asarray(policy.observation_statistics.normalize(frames))
    assert normalized.dtype == np.float32
    np.testing.assert_array_equal(normalized[:, :, 16:], 0)
    assert (normalized[frames == 90] < -4).all()
    assert np.abs(normalized[:, :, 15]).max() < 0.5
    assert np.abs(normalized).max() <= 5
    expected = (frames - frames.mean(0)) / np.sqrt(frames.var(0) + 2.55**2)
    np.testing.assert_allclose(normalized, np.clip(expected, -5, 5), atol=1e-4)


@pytest.mark.parametrize("policy_class", [MlpLnLstmPolicy, CnnLnLstmPolicy])
def test_bytes_are_fractions_until_there_are_statistics(policy_class):
    frames = np.random.default_rng(0).integers(256, size=(5, 20, 20, 1), dtype=np.uint8)
    with_and_without = [
        policy_class(image(20, 20, 1), DISCRETE, units=2, seed=0, normalize_observations=normalized)
        for normalized in (False, True)
    ]
    one, other = (policy._encode(frames) for policy in with_and_without)
    np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize("normalized", [False, True])
def test_symbols_are_fractions_for_a_perceptron(normalized):
    """They have no statistics, so something else must bring them to the size of 1."""
    boards = np.random.default_rng(0).integers(256, size=(5, 8, 8), dtype=np.uint8)
    policy = MlpLnLstmPolicy(image(8, 8), DISCRETE, units=2, seed=0, normalize_observations=normalized)
    expected = boards.reshape(5, -1) / np.float32(255)
    for layer in (part for part in policy.encoder.layers if part.name.startswith("encoder")):
        expected = np.tanh(expected @ layer.kernel + layer.bias)
    np.testing.assert_allclose(policy._encode(boards), expected, atol=1e-5)


def test_acting_normalises_bytes_as_the_update_does():
    space = spaces.Box(0, 255, (6,), np.uint8)
    policy = MlpLnLstmPolicy(space, DISCRETE, units=4, normalize_observations=True, seed=0)
    observations = np.random.default_rng(0).integers(256, size=(9, 6), dtype=np.uint8)
    policy.update_statistics(observations // 2, np.ones(9, bool))
    starts, state = np.ones(9, bool), policy.initial_state(9)
    actions, values, log_probs, _ = policy.step(observations, state, starts)
    again = policy.evaluate_actions(observations[:, None], actions[:, None], state, starts[:, None])
    np.testing.assert_allclose(again[0][:, 0], log_probs, atol=1e-5)
    np.testing.assert_allclose(again[2][:, 0], values, atol=1e-5)


# ----------------------------------------------------------------------------------------------- which, and others


def test_a_policy_is_chosen_for_the_observations():
    chosen = [
        (VECTOR, MlpLnLstmPolicy),
        (image(84, 84), CnnLnLstmPolicy),
        (image(7, 7, 3), CnnLnLstmPolicy),
        (image(84, 84, 3, high=1), MlpLnLstmPolicy),  # a board
        (spaces.Box(-1, 1, (20, 20)), MlpLnLstmPolicy),
        (spaces.Discrete(3), MlpLnLstmPolicy),
        (spaces.Dict(a=image(84, 84)), MultiInputLnLstmPolicy),
        (spaces.Tuple([VECTOR]), MultiInputLnLstmPolicy),
    ]
    for space, policy_class in chosen:
        assert policy_for(space) is policy_class, space
    assert set(POLICIES) == {"MlpLnLstmPolicy", "CnnLnLstmPolicy", "MultiInputLnLstmPolicy"}
    with pytest.raises(UserError, match=r"auto or one of .*CnnLnLstmPolicy.*'CnnPolicy'"):
        PPO("CnnPolicy", "CartPole-v1")


@pytest.mark.parametrize(
    ("policy_class", "space", "right"),
    [
        (MlpLnLstmPolicy, spaces.Dict(a=VECTOR), "MultiInputLnLstmPolicy"),
        (CnnLnLstmPolicy, spaces.Tuple([VECTOR]), "MultiInputLnLstmPolicy"),
        (CnnLnLstmPolicy, VECTOR, "MlpLnLstmPolicy"),
        (CnnLnLstmPolicy, spaces.Discrete(3), "MlpLnLstmPolicy"),
    ],
)
def test_a_policy_that_does_not_suit_names_the_one_that_does(policy_class, space, right):
    with pytest.raises(UserError, match=f"{policy_class.__name__} takes .*{right}"):
        policy_class(space, DISCRETE)


def test_the_others_make_their_own_encoder_too():
    encoder = keras.Sequential([keras.Input((7, 7, 3)), keras.layers.Flatten()])
    for policy_class in (CnnLnLstmPolicy, MultiInputLnLstmPolicy):
        with pytest.raises(UserError, match=rf"encoder: {policy_class.__name__} makes its own"):
            policy_class(image(7, 7, 3), DISCRETE, encoder=encoder)


def test_entries_are_encoded_each_for_itself():
    """A change in one entry changes only its own features."""
    space = spaces.Dict(image=image(16, 16, 1), place=spaces.Discrete(4), speed=spaces.Box(-1, 1, (2,)))
    policy = MultiInputLnLstmPolicy(space, DISCRETE, units=2, encoder_layers=(6,), seed=0)
    assert policy.is_convolutional
    rng = np.random.default_rng(0)
    observation = {
        "image": rng.integers(256, size=(1, 16, 16, 1), dtype=np.uint8),
        "place": np.array([1]),
        "speed": rng.uniform(-1, 1, (1, 2)).astype(np.float32),
    }
    features = np.array(policy._encode(observation))
    assert features.shape == (1, 18)
    for number, (key, other) in enumerate({"image": 255 - observation["image"], "place": np.array([3])}.items()):
        changed = np.any(features != policy._encode({**observation, key: other}), 0).reshape(3, 6).any(1)
        np.testing.assert_array_equal(changed, np.arange(3) == number)


def test_an_encoder_of_ones_own_takes_the_structure():
    space = spaces.Dict(cards=spaces.MultiDiscrete([3, 2], start=[5, 0]), where=spaces.Tuple([VECTOR, image(2, 2)]))
    cards = keras.Input((5,), name="cards")
    vector, pixels = keras.Input((3,)), keras.Input((2, 2))
    joined = keras.layers.Concatenate()([cards, vector, keras.layers.Flatten()(pixels)])
    encoder = keras.Model({"cards": cards, "where": (vector, pixels)}, joined)
    policy = RecurrentPolicy(space, DISCRETE, encoder, units=2)
    frame = {
        "cards": np.array([[6, 1]]),
        "where": (np.float32([[1, 2, 3]]), np.arange(4, dtype=np.uint8)[None].reshape(1, 2, 2)),
    }
    expected = [[0, 1, 0, 0, 1, 1, 2, 3, 0, 1, 2, 3]]
    np.testing.assert_array_equal(policy._encode(frame), expected)
    flattening = RecurrentPolicy(space, DISCRETE, units=2)
    np.testing.assert_array_equal(flattening._encode(frame), expected)
    actions, _ = policy.predict({"cards": np.array([6, 1]), "where": (np.zeros(3), np.zeros((2, 2)))})
    assert DISCRETE.contains(actions)


def test_statistics_are_kept_of_floats_and_of_images_but_not_of_symbols():
    space = spaces.Dict(
        speed=VECTOR,
        image=image(16, 16, dtype=np.float32, high=1),
        count=spaces.Box(0, 9, (2,), np.int64),
        symbols=image(7, 7, 3),
    )
    policy = MultiInputLnLstmPolicy(space, DISCRETE, units=2, encoder_layers=(4,), normalize_observations=True)
    assert {key: value is not None for key, value in policy.observation_statistics.items()} == {
        "count": False,
        "image": True,
        "speed": True,
        "symbols": False,
    }
    rng, valid = np.random.default_rng(0), np.array([[True, False], [True, True]])
    batch = {
        "speed": rng.normal(size=(2, 2, 3)).astype(np.float32),
        "image": np.zeros((2, 2, 16, 16), np.float32),
        "count": np.zeros((2, 2, 2), np.int64),
        "symbols": np.zeros((2, 2, 7, 7, 3), np.uint8),
    }
    policy.update_statistics(batch, valid)
    np.testing.assert_allclose(policy.observation_statistics["speed"].mean, batch["speed"][valid].mean(0), atol=1e-6)
