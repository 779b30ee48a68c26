"""Encoders and subclasses by users: acting and training compute the same, or building the policy raises an error."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lnlstm import PPO, UserError
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.policies.compiled_step import CompiledStep
from tests.policies import reference

BOX, DISCRETE = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(4)
Dense, Sequential = keras.layers.Dense, keras.Sequential
SMALL = {"units": 4, "head_layers": (), "seed": 0}


def assert_acting_is_what_is_learnt(policy, batch=3):
    observations = np.random.default_rng(0).uniform(-1, 1, (batch, *policy.observation_space.shape)).astype(np.float32)
    starts = np.ones(batch, bool)
    actions, values, log_probs, _ = policy.step(observations, None, starts)
    for rows in (slice(0, batch), slice(0, 1)):  # also alone
        learnt = policy.evaluate_actions(
            observations[rows, None], actions[rows, None], policy.initial_state(len(starts[rows])), starts[rows, None]
        )
        np.testing.assert_allclose(learnt[0][:, 0], log_probs[rows], atol=1e-5)
        np.testing.assert_allclose(learnt[2][:, 0], values[rows], atol=1e-5)


class Scaled(keras.Sequential):
    def call(self, x, training=None, mask=None):
        return super().call(x * 10.0)


class Gated(keras.Model):
    def __init__(self, units, activation):
        super().__init__()
        self.one, self.gate = Dense(units, activation), Dense(units, "sigmoid")

    def call(self, x):
        return self.one(x) * self.gate(x)


def leaky(x):
    return keras.activations.relu(x, negative_slope=0.3)


leaky.__name__ = "relu"


@st.composite
def encoders(draw):
    """Sequential, functional and subclassed models, some of them of layers that the compiled step knows."""
    units = draw(st.integers(1, 5))
    activation = draw(st.sampled_from(["relu", "tanh", "gelu", leaky, "linear"]))
    kind = draw(st.sampled_from(["sequential", "scaled", "functional", "subclassed"]))
    layers = [Dense(units, activation) for _ in range(draw(st.integers(1, 2)))]
    layers += draw(st.sampled_from([[], [keras.layers.LayerNormalization()], [keras.layers.Rescaling(3.0, 1.0)]]))
    if kind == "subclassed":
        return Gated(units, activation)
    if kind == "functional":
        inputs = hidden = keras.Input([3])
        for layer in layers:
            hidden = layer(hidden)
        return keras.Model(inputs, keras.layers.Concatenate()([inputs, hidden]))
    return (Scaled if kind == "scaled" else Sequential)([keras.Input([3]), *layers])


@settings(max_examples=15, deadline=None, derandomize=True)
@given(encoders())
def test_any_encoder_acts_as_it_is_learnt(encoder):
    assert_acting_is_what_is_learnt(reference.randomise(RecurrentPolicy(BOX, DISCRETE, encoder=encoder, **SMALL)))


def test_any_subclass_acts_as_it_is_learnt():
    class Encodes(MlpLnLstmPolicy):
        def _encode(self, frames):
            return super()._encode(frames) * 10.0

    class Runs(MlpLnLstmPolicy):
        def _forward_sequences(self, observations, *others, **options):
            return super()._forward_sequences(observations * 2, *others, **options)

    class Narrow(MlpLnLstmPolicy):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **{**options, "units": 3})

    for kind in (Encodes, Runs, Narrow):
        policy = reference.randomise(kind(BOX, DISCRETE, **SMALL))
        assert_acting_is_what_is_learnt(policy)
        assert not isinstance(policy._actor._step(), CompiledStep) or kind is Narrow

    patched = reference.randomise(MlpLnLstmPolicy(BOX, DISCRETE, **SMALL))
    encode = patched._encode
    patched._encode = lambda frames: encode(frames) * 10.0
    assert_acting_is_what_is_learnt(patched)


class AddsNoise(keras.layers.Layer):
    def call(self, x):
        return x + tf.random.normal(tf.shape(x))


class Counts(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


class CentresBatch(keras.layers.Layer):
    def call(self, x):
        return x - tf.reduce_mean(x, 0, keepdims=True)


REFUSED = {
    "dropout": lambda: keras.layers.Dropout(0.5),
    "dropout of next to nothing": lambda: keras.layers.Dropout(1e-6),
    "batch normalisation": keras.layers.BatchNormalization,
    "noise in training": lambda: keras.layers.GaussianNoise(0.1),
    "noise at all times": AddsNoise,
    "spectral normalisation": lambda: keras.layers.SpectralNormalization(Dense(3)),
    "a layer that counts its calls": Counts,
    "a layer that looks at the batch": CentresBatch,
    "half precision": lambda: Dense(3, dtype="mixed_bfloat16"),
}


@pytest.mark.parametrize("layer", REFUSED.values(), ids=REFUSED)
def test_what_would_act_otherwise_is_refused_when_the_policy_is_built(layer):
    encoder = Sequential([keras.Input([3]), Dense(3), layer()])
    with pytest.raises(UserError, match=r"encoder sequential\w* \(Sequential\): "):
        RecurrentPolicy(BOX, DISCRETE, encoder=encoder, **SMALL)


def test_a_refused_encoder_is_named_and_stays_as_it_was():
    normalization = keras.layers.BatchNormalization(name="statistics")
    encoder = Sequential([keras.Input([3]), Dense(3), normalization])
    before = encoder.get_weights()
    with pytest.raises(UserError, match=r"statistics \(BatchNormalization\).*LayerNormalization can replace"):
        RecurrentPolicy(BOX, DISCRETE, encoder=encoder, **SMALL)
    for weight, old in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)
    frozen = keras.layers.BatchNormalization(trainable=False)
    RecurrentPolicy(BOX, DISCRETE, encoder=Sequential([keras.Input([3]), frozen]), **SMALL)
    with pytest.raises(UserError, match="encoder must be a Keras model or layer, got function"):
        RecurrentPolicy(BOX, DISCRETE, encoder=lambda x: x, **SMALL)
    with pytest.raises(
        UserError, match=r"\(Sequential\): its output must have shape \[batch, features\], got \[4, 3, 1\]"
    ):
        RecurrentPolicy(BOX, DISCRETE, encoder=Sequential([keras.Input([3]), keras.layers.Reshape([3, 1])]), **SMALL)


def test_penalties_of_the_encoder_are_losses_of_the_policy():
    """Inside a graph as outside of it, and only those of the last call."""
    layer = Dense(2, kernel_regularizer=keras.regularizers.L2(3.0), activity_regularizer=keras.regularizers.L1(0.5))
    policy = RecurrentPolicy(BOX, DISCRETE, encoder=Sequential([keras.Input([3]), layer]), **SMALL)
    observations = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    given = observations, np.zeros((2, 5), int), None, np.zeros((2, 5), bool)

    def penalty():
        policy.evaluate_actions(*given)
        return tf.add_n(policy.losses)

    features = policy.encoder(observations.reshape(10, 3))
    expected = float(tf.add_n(policy.encoder.losses))
    of_kernel, of_features = 3.0 * np.sum(layer.kernel.numpy() ** 2), 0.5 * np.abs(features).sum()
    # Keras 3.6 does not divide the penalty of the features by the size of the batch.
    assert min(abs(expected - of_kernel - of_features / batch) for batch in (1, 10)) < 1e-5
    in_graph = tf.function(penalty, autograph=False)
    policy.step(observations[:, 0], None, np.ones(2, bool))
    for run in (penalty, penalty, in_graph, in_graph):
        np.testing.assert_allclose(run(), expected, rtol=1e-5)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16", "float64"])
def global_dtype(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def test_a_global_dtype_policy_changes_nothing(global_dtype):
    policy = MlpLnLstmPolicy(BOX, DISCRETE, **SMALL)
    assert_acting_is_what_is_learnt(policy)
    assert {variable.dtype for variable in policy.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == global_dtype
    encoder = Sequential([keras.Input([3]), Dense(3)])
    if global_dtype == "float64":
        assert_acting_is_what_is_learnt(RecurrentPolicy(BOX, DISCRETE, encoder=encoder, **SMALL))
    else:
        with pytest.raises(UserError, match=r"\(Sequential\): layer \w+ computes in b?float16"):
            RecurrentPolicy(BOX, DISCRETE, encoder=encoder, **SMALL)


def test_channels_first_in_keras_configuration_changes_nothing():
    image = gym.spaces.Box(0, 255, (20, 20, 3), np.uint8)
    before = MlpLnLstmPolicy(image, DISCRETE, **SMALL), CnnLnLstmPolicy(image, DISCRETE, **SMALL)
    keras.config.set_image_data_format("channels_first")
    try:
        after = MlpLnLstmPolicy(image, DISCRETE, **SMALL), CnnLnLstmPolicy(image, DISCRETE, **SMALL)
        frame = np.random.default_rng(0).integers(256, size=(2, 20, 20, 3), dtype=np.uint8)
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(*(policy.value(frame, None, [True, True]) for policy in (one, other)))
    finally:
        keras.config.set_image_data_format("channels_last")


class UsesNumpy(keras.Model):
    def call(self, x):
        return tf.constant(np.tanh(x))


class CallsPython(keras.Model):
    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(np.tanh, [x], tf.float32), [None, 3])


class Eager(keras.Model):
    def call(self, x):
        return x if tf.executing_eagerly() else 2.0 * x


class TakesLogarithm(keras.Model):
    def call(self, x):
        return tf.math.log(x)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (UsesNumpy, "cannot run in a TensorFlow graph, .*; use keras.ops or TensorFlow"),
        (CallsPython, "calls Python"),
        (Eager, "its output in a TensorFlow graph differs"),
        (TakesLogarithm, "holds NaN or infinity"),
    ],
)
def test_an_encoder_that_fails_later_is_refused_and_named_at_once(encoder, expected):
    with pytest.raises(UserError, match=rf"encoder mine \({encoder.__name__}\): .*{expected}"):
        RecurrentPolicy(BOX, DISCRETE, encoder=encoder(name="mine"), **SMALL)


class Scales(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.factor, self.calls = 1.0, 0

    def call(self, x):
        self.calls += 1  # an attribute that each call changes must not have the step built again and again
        return x * self.factor


def test_a_layer_that_is_changed_after_the_policy_has_acted_is_used_as_it_is():
    encoder = Sequential([keras.Input([3]), Dense(3, "tanh")])
    policy = reference.randomise(RecurrentPolicy(BOX, DISCRETE, encoder=encoder, **{**SMALL, "head_layers": (4,)}))
    assert_acting_is_what_is_learnt(policy)
    step = policy._actor._step()
    assert isinstance(step, CompiledStep)
    for layer in (encoder.layers[0], policy.network.actor_layers[0], policy.network.value_head):
        layer.activation = keras.activations.softplus if layer is policy.network.value_head else keras.activations.relu
        assert_acting_is_what_is_learnt(policy)
        assert policy._actor._step() is not step
        step = policy._actor._step()


def test_a_layer_that_is_changed_between_two_calls_of_learn_is_learnt_as_it_is():
    scales = Scales()
    policy = RecurrentPolicy(BOX, DISCRETE, encoder=Sequential([keras.Input([3]), Dense(3), scales]), **SMALL)
    ppo = PPO(policy, LinearEnv, num_envs=1, num_steps=8, num_minibatches=1, jit_compile=False, seed=0)
    ppo.learn(8)
    step, update = policy._actor._step(), ppo._updater.function
    assert_acting_is_what_is_learnt(policy)
    ppo.learn(8)
    assert (policy._actor._step(), ppo._updater.function) == (step, update)
    scales.factor = 2.0
    assert_acting_is_what_is_learnt(policy)
    ppo.learn(8)
    assert step is not policy._actor._step()
    assert update is not ppo._updater.function
    policy.network.value_head = Dense(1)
    policy.network.value_head.build([None, 7])
    with pytest.raises(UserError, match="make a new PPO"):
        ppo.learn(8)


class LinearEnv(gym.Env):
    observation_space, action_space = BOX, DISCRETE

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, False, False, {}


def test_an_encoder_that_raises_is_named():
    encoder = keras.Sequential([keras.layers.Dense(4)])
    encoder.build((None, 5))
    with pytest.raises(UserError, match=r"\(Sequential\): a call with observations failed, ValueError"):
        RecurrentPolicy(gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(2), encoder=encoder, units=4)
