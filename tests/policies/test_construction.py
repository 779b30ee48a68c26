"""Building a policy: initial weights, seeds, layers, and the spaces that are supported."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import UserError
from rl_lnlstm.policies import MultiInputLnLstmPolicy, RecurrentPolicy
from tests.policies import reference
from tests.policies.small_policy import ACTION_SPACES, OBSERVATIONS, observations_of, policy_for


def kernels_of(policy):
    return {path: weights for path, weights in reference.weights_of(policy).items() if path.endswith("kernel")}


@pytest.mark.parametrize("name", ["discrete", "box"])
def test_weights_start_orthogonal_with_the_usual_gains(name):
    """Rows or columns, whichever are fewer, are orthogonal and of length gain; biases, gains and log_std as asked."""
    policy = policy_for(action_space=ACTION_SPACES[name], log_std_init=-0.7, shared_lstm=False)
    for path, kernel in kernels_of(policy).items():
        head = path.startswith("action_head")
        gain = 0.01 if head else 1.0 if path.startswith("value_head") or "lstm" in path else 2**0.5
        short = kernel if kernel.shape[0] <= kernel.shape[1] else kernel.T
        np.testing.assert_allclose(short @ short.T, gain**2 * np.eye(len(short)), atol=1e-5 * gain, err_msg=path)
    others = {path: weights for path, weights in reference.weights_of(policy).items() if "kernel" not in path}
    for path, weights in others.items():
        if path.endswith("log_std"):
            np.testing.assert_allclose(weights, -0.7, atol=1e-6)
        elif "gamma" in path:
            np.testing.assert_allclose(weights, 0.3, atol=1e-6)
        elif "lstm" not in path:
            np.testing.assert_array_equal(weights, np.zeros_like(weights), err_msg=path)
    shapes = {weights.shape for path, weights in kernels_of(policy).items() if "actor_lstm" in path}
    assert shapes == {weights.shape for path, weights in kernels_of(policy).items() if "critic_lstm" in path}


def test_the_first_policy_is_near_uniform():
    observations = observations_of(OBSERVATIONS, 1, 100)
    _, entropies, _ = policy_for().evaluate_actions(
        observations, np.zeros((1, 100), np.int64), policy_for().initial_state(1), np.ones((1, 100))
    )
    np.testing.assert_allclose(entropies, np.log(4), atol=1e-3)


def test_seeds_decide_weights_and_samples():
    observations = observations_of(OBSERVATIONS, 100)
    one, same, other, drawn = (policy_for(seed=seed) for seed in (4, 4, 5, None))
    for kernel, again in zip(one.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(kernel, again)
    for path, kernel in kernels_of(one).items():
        assert (kernel != kernels_of(other)[path]).any()
        assert (kernel != kernels_of(drawn)[path]).any()
    same_shape = [kernel for kernel in kernels_of(one).values() if kernel.shape == (11, 4)]
    assert len(same_shape) >= 2
    assert (same_shape[0] != same_shape[1]).any()  # layers alike do not start alike

    def samples(policy):
        return [policy.predict(observations)[0] for _ in range(3)]

    first = samples(one)
    np.testing.assert_array_equal(first, samples(same))
    other.set_weights(one.get_weights())
    assert (np.array(first) != samples(other)).any()


def test_actor_and_critic_share_lstm_layers_or_do_not():
    observations = observations_of(OBSERVATIONS, 2, 5)
    for shared in (True, False):
        policy = reference.randomise(policy_for(shared_lstm=shared))
        with tf.GradientTape(persistent=True) as tape:
            log_probs, _, values = policy.evaluate_actions(
                observations, np.zeros((2, 5), np.int64), policy.initial_state(2), np.ones((2, 5))
            )
        for result in (log_probs, values):
            variables = [variable for variable in policy.trainable_variables if "lstm" in variable.path]
            gradients = tape.gradient(result, [variable.value for variable in variables])
            reached = [v.path for v, gradient in zip(variables, gradients, strict=True) if gradient is not None]
            layers = {path.split("/")[0] for path in reached}
            if shared:
                assert len(layers) == 1
            else:
                assert layers == {"actor_lstm" if result is log_probs else "critic_lstm"}
        assert policy.initial_state(2).h.shape == (2, 5 if shared else 10)


def test_any_keras_model_is_an_encoder():
    """Also a functional one, of images, with a branch."""
    space = gym.spaces.Box(0, 255, (6, 6, 1), np.uint8)
    inputs = keras.Input(space.shape)
    maps = keras.layers.Conv2D(2, 3, activation="relu")(inputs / 255)
    features = keras.layers.Concatenate()([keras.layers.Flatten()(maps), keras.layers.Flatten()(inputs / 255)])
    encoder = keras.Model(inputs, keras.layers.Dense(7)(features))
    policy = RecurrentPolicy(space, gym.spaces.Discrete(2), encoder=encoder, units=4, head_layers=(), seed=0)
    assert {id(variable) for variable in encoder.trainable_variables} <= {
        id(variable) for variable in policy.trainable_variables
    }
    image = np.random.default_rng(0).integers(256, size=(2, 6, 6, 1)).astype(np.uint8)
    before = policy.value(image, policy.initial_state(2), np.ones(2, bool))
    assert before[0] != before[1]
    encoder.trainable_variables[0].assign_add(tf.ones_like(encoder.trainable_variables[0]))
    assert (policy.value(image, policy.initial_state(2), np.ones(2, bool)) != before).all()


def test_networks_may_be_deep_or_absent():
    for arguments in (
        {"encoder_layers": (), "head_layers": ()},
        {"encoder_layers": (4,) * 8, "head_layers": (4,) * 8, "shared_lstm": False},
    ):
        policy = reference.randomise(policy_for(**arguments))
        observations = observations_of(OBSERVATIONS, 2, 1)
        values = policy.value(observations[:, 0], policy.initial_state(2), np.ones(2, bool))
        np.testing.assert_allclose(values, reference.run(policy, observations).values[:, 0], atol=1e-5)


def test_an_encoder_of_ones_own_is_not_silently_ignored():
    encoder = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(UserError, match="encoder"):
        policy_for(encoder=encoder)
    with pytest.raises(UserError, match=r"encoder_layers is \(8,\), but your encoder is used as it is"):
        RecurrentPolicy(OBSERVATIONS, gym.spaces.Discrete(2), encoder=encoder, encoder_layers=(8,))


UNSUPPORTED = [
    gym.spaces.Text(3),
    gym.spaces.Sequence(OBSERVATIONS),
    gym.spaces.Graph(OBSERVATIONS, None),
    gym.spaces.OneOf([OBSERVATIONS, gym.spaces.Discrete(2)]),
    gym.spaces.Dict({}),
    gym.spaces.Box(-1, 1, (0,)),
    gym.spaces.Dict(a=gym.spaces.Tuple([OBSERVATIONS, gym.spaces.Text(3)])),
]


@pytest.mark.parametrize("policy_class", [MultiInputLnLstmPolicy, RecurrentPolicy])
@pytest.mark.parametrize("space", UNSUPPORTED, ids=str)
def test_an_observation_space_that_is_not_supported(space, policy_class):
    with pytest.raises(UserError, match=r"observation space") as caught:
        policy_class(space, ACTION_SPACES["discrete"])
    nested = space == UNSUPPORTED[-1]
    assert str(space["a"][1] if nested else space) in str(caught.value)
    assert ("['a'][1]" in str(caught.value)) == nested


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Text(3),
        gym.spaces.Box(0, 5, (2,), np.int64),
        gym.spaces.Box(0, 5, (0,)),
        gym.spaces.Tuple(()),
        gym.spaces.Sequence(OBSERVATIONS),
    ],
    ids=str,
)
def test_an_action_space_that_is_not_supported(space):
    supported = "Discrete, MultiDiscrete, MultiBinary, Box of floats, or Dict or Tuple of these"
    for given in (space, gym.spaces.Dict(a=gym.spaces.Discrete(2), b=space)):
        with pytest.raises(UserError, match=f"action space must be {supported}") as caught:
            policy_for(action_space=given)
        assert str(space) in str(caught.value)


@pytest.mark.parametrize("units", [0, -1, 2.5, "many"])
def test_units_are_a_number(units):
    with pytest.raises(UserError, match=rf"units must be an integer of at least 1, got {units!r}"):
        policy_for(units=units)
