"""The policy interface for every kind of space, against the same network in float64 NumPy."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from rl_lnlstm.lstm.kernel import available
from rl_lnlstm.policies import MlpLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.policies.compiled_step import compiled_step
from rl_lnlstm.policies.graph_step import graph_step
from tests.policies import reference
from tests.policies.small_policy import (
    ACTION_SPACES,
    OBSERVATIONS,
    SMALL,
    each_action_space,
    flat,
    observations_of,
    policy_for,
)

COMPILED = {
    "tanh": {},
    "relu, separate LSTM layers": {"activation": "relu", "shared_lstm": False, "units": 16},
    "normalised, wide": {"normalize_observations": True, "encoder_layers": (40, 33), "head_layers": (130, 17)},
    "no layers": {"encoder_layers": (), "head_layers": ()},
    "sigmoid": {"activation": "sigmoid"},
}


@pytest.mark.parametrize(
    ("action_space", "shared_lstm"),
    [*((space, True) for space in ACTION_SPACES.values()), (ACTION_SPACES["discrete"], False)],
    ids=[*ACTION_SPACES, "discrete, separate LSTM layers"],
)
def test_acting_and_evaluating(action_space, shared_lstm):
    """Step, value, predict and evaluate_actions: shapes, dtypes, and the numbers of the NumPy network."""
    policy = reference.randomise(policy_for(action_space=action_space, shared_lstm=shared_lstm))
    discrete = isinstance(action_space, gym.spaces.Discrete)
    batch, time = 3, 6
    observations = observations_of(OBSERVATIONS, time, batch)
    starts = np.random.default_rng(1).random((time, batch)) < 0.3
    starts[0] = False
    rng = np.random.default_rng(2)
    size = 5 if shared_lstm else 10
    first = tuple(rng.normal(0, 0.5, (2, batch, size)).astype(np.float32))

    state, steps = first, []
    for t in range(time):
        values = policy.value(observations[t], state, starts[t])
        actions, step_values, log_probs, state = policy.step(observations[t], state, starts[t])
        np.testing.assert_array_equal(values, step_values)  # asking for a value changes nothing
        assert actions.shape == (batch, *action_space.shape)
        assert actions.dtype == (np.int64 if discrete else np.float32)
        assert values.shape == log_probs.shape == (batch,)
        assert values.dtype == log_probs.dtype == np.float32
        assert [tuple(part.shape) for part in state] == [(batch, size)] * 2
        for action in policy.clip_actions(actions):
            assert action_space.contains(action)
        steps.append((actions, values, log_probs))
    actions, values, log_probs = (np.stack(column) for column in zip(*steps, strict=True))

    expected = reference.run(policy, observations.swapaxes(0, 1), 1 - starts.T, first)
    numbered = actions - action_space.start if discrete else flat(actions, (time, batch))
    np.testing.assert_allclose(values.T, expected.values, atol=1e-5)
    np.testing.assert_allclose(log_probs.T, expected.log_probs(numbered.swapaxes(0, 1)), atol=1e-5)
    np.testing.assert_allclose(state[0], expected.hs[:, -1], atol=1e-5)

    evaluated = policy.evaluate_actions(observations.swapaxes(0, 1), actions.swapaxes(0, 1), first, starts.T)
    for got, wanted in zip(evaluated, (log_probs.T, expected.entropies(), values.T), strict=True):
        assert got.shape == (batch, time)
        assert got.dtype == tf.float32
        np.testing.assert_allclose(got, wanted, atol=1e-5)

    best, _ = policy.predict(observations[0], first, starts[0], deterministic=True)
    if discrete:
        np.testing.assert_array_equal(best, expected.actor[:, 0].argmax(-1) + action_space.start)
    else:
        means = expected.actor[:, 0].reshape(batch, *action_space.shape)
        np.testing.assert_allclose(best, policy.clip_actions(means), atol=1e-5)


@pytest.mark.skipif(not available(), reason="no kernel")
@pytest.mark.parametrize("arguments", COMPILED.values(), ids=COMPILED)
@each_action_space
def test_the_compiled_step_is_that_of_the_graph(action_space, arguments):
    space = gym.spaces.Box(-9, 9, (2, 3), np.float64)
    policy = reference.randomise(policy_for(space, action_space, **arguments))
    if policy.observation_statistics is not None:
        policy.observation_statistics.update(observations_of(space, 50, seed=1))
    compiled, graph = compiled_step(policy), graph_step(policy)
    discrete = isinstance(action_space, gym.spaces.Discrete)
    masked_graph = graph_step(policy, masked=True) if discrete else None
    rng = np.random.default_rng(0)
    for batch in (0, 1, 3, 70):
        state = rng.normal(size=(2, batch, policy.state_size)).astype(np.float32)
        noise = policy.action_head.noise(rng, batch)
        given = observations_of(space, batch), *state, rng.random(batch) < 0.5, noise
        runs = [(compiled(*given), graph(*given))]
        if discrete:
            masks = rng.random((batch, action_space.n)) < 0.4
            masks[np.arange(batch), rng.integers(action_space.n, size=batch)] = True
            runs += [(compiled(*given, masks), masked_graph(*given, masks)), (compiled(*given), graph(*given))]
            assert masks[np.arange(batch), runs[1][0][0]].all()
        for one, other in (pair for run in runs for pair in zip(*run, strict=True)):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not available(), reason="no kernel")
@pytest.mark.parametrize("units", [5, 32])
def test_a_row_of_the_compiled_step_does_not_depend_on_the_others(units):
    policy = reference.randomise(policy_for(OBSERVATIONS, ACTION_SPACES["box"], units=units))
    rng, batch = np.random.default_rng(0), 150
    state = rng.normal(size=(2, batch, policy.state_size)).astype(np.float32)
    noise = policy.action_head.noise(rng, batch)
    given = observations_of(OBSERVATIONS, batch), *state, rng.random(batch) < 0.5, noise
    step = compiled_step(policy)
    whole = step(*given)
    for size in (1, 2, 7, 64):
        parts = [step(*(array[i : i + size] for array in given)) for i in range(0, batch, size)]
        for one, other in zip(whole, map(np.concatenate, zip(*parts, strict=True)), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(not available(), reason="no kernel")
def test_the_compiled_step_notices_every_change_of_the_weights():
    policy = reference.randomise(policy_for(OBSERVATIONS, ACTION_SPACES["box"]))
    compiled, graph = compiled_step(policy), graph_step(policy)
    noise = np.zeros((3, policy.action_head.noise_size), np.float32)
    given = observations_of(OBSERVATIONS, 3), *np.ones((2, 3, policy.state_size), np.float32), np.zeros(3, bool), noise
    kernel = policy.network.lstm_layers[0].recurrent_kernel.value
    before = compiled(*given)[-1]
    step = 0.1 * tf.eye(*kernel.shape)  # no constant: in a row of the kernel, that changes nothing
    changes = [
        lambda: kernel.assign(kernel + step),
        tf.function(lambda: kernel.assign_add(step), jit_compile=True),
        lambda: kernel.assign_sub(step),
        *[lambda: kernel.scatter_nd_add([[0, 1], [2, 3]], [0.5, -0.5])] * 3,  # changes the variable's memory in place
        lambda: kernel.assign(tf.eye(*kernel.shape)),
    ]
    for change in changes:
        change()
        cell = compiled(*given)[-1]
        assert not np.array_equal(cell, before)
        np.testing.assert_allclose(cell, graph(*given)[-1], atol=1e-5)
        before = cell


def test_what_the_compiled_step_cannot_do_is_left_to_the_graph():
    assert compiled_step(policy_for(activation="gelu")) is None
    padded = keras.layers.Conv2D(2, 2, padding="same")
    convolution = keras.Sequential([keras.Input((4, 4, 1)), padded, keras.layers.Flatten()])
    images = gym.spaces.Box(0, 255, (4, 4, 1), np.uint8)
    policy = RecurrentPolicy(images, ACTION_SPACES["box"], convolution, units=3)
    assert compiled_step(policy) is None
    actions, values, _, _ = policy.step(observations_of(images, 2), policy.initial_state(2), np.zeros(2, bool))
    assert actions.shape == (2, 2)
    assert values.shape == (2,)


def test_a_subclass_that_runs_otherwise_acts_otherwise():
    class Memoryless(MlpLnLstmPolicy):
        def _forward_sequences(self, observations, h, c, episode_starts, *others, **options):
            return super()._forward_sequences(observations, h, c, tf.ones_like(episode_starts), *others, **options)

    policy = reference.randomise(Memoryless(OBSERVATIONS, ACTION_SPACES["box"], **SMALL))
    observations = observations_of(OBSERVATIONS, 3)
    state = policy.step(observations, policy.initial_state(3), np.ones(3, bool))[3]
    remembering = policy.value(observations, state, np.zeros(3, bool))
    np.testing.assert_array_equal(remembering, policy.value(observations, state, np.ones(3, bool)))


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Box(-2, 2, (2, 3), np.float32),
        gym.spaces.Box(-2, 2, (), np.float32),
        gym.spaces.Box(-2, 2, (3,), np.float64),
        gym.spaces.Box(-1, 1, (2,), np.float16),
    ],
    ids=str,
)
def test_observations_of_any_shape_and_dtype(space):
    policy = reference.randomise(policy_for(space, normalize_observations=True, shared_lstm=False))
    space.seed(0)
    observations = np.stack([space.sample() for _ in range(12)]).reshape(2, 6, *space.shape)
    policy.observation_statistics.update(observations.reshape(12, *space.shape))
    expected = reference.run(policy, observations)
    actions = np.zeros((2, 6), np.int64)
    log_probs, _, values = policy.evaluate_actions(observations, actions, policy.initial_state(2), np.zeros((2, 6)))
    np.testing.assert_allclose(values, expected.values, atol=1e-5)
    np.testing.assert_allclose(log_probs, expected.log_probs(actions), atol=1e-5)
    got = policy.value(observations[:, 0], policy.initial_state(2), np.ones(2, bool))
    np.testing.assert_allclose(got, expected.values[:, 0], atol=1e-5)
    single, _ = policy.predict(observations[0, 0])
    assert policy.action_space.contains(single)


def test_a_step_in_a_batch_is_a_step_alone(discrete):
    observations, starts = observations_of(OBSERVATIONS, 4), np.array([True, False, False, True])
    state = tuple(np.random.default_rng(3).normal(size=(2, 4, 5)).astype(np.float32))
    together, (h, c) = discrete.predict(observations, state, starts, deterministic=True)
    values = discrete.value(observations, state, starts)
    for i in range(4):
        own = tuple(part[i : i + 1] for part in state)
        alone, (own_h, own_c) = discrete.predict(observations[i], own, starts[i : i + 1], deterministic=True)
        assert alone == together[i]
        np.testing.assert_allclose(own_h[0], h[i], atol=1e-6)
        np.testing.assert_allclose(own_c[0], c[i], atol=1e-6)
        own_value = discrete.value(observations[i : i + 1], own, starts[i : i + 1])
        np.testing.assert_allclose(own_value, values[i : i + 1], atol=1e-6)


def test_an_episodes_start_forgets(discrete):
    observations, zeros = observations_of(OBSERVATIONS, 4), discrete.initial_state(4)
    assert all(part.shape == (4, 5) and not np.any(part) for part in zeros)
    state = (np.full((4, 5), 0.5, np.float32), np.full((4, 5), -2.0, np.float32))
    starts = np.array([True, False, True, False])
    values = discrete.value(observations, state, starts)
    fresh = discrete.value(observations, zeros, np.zeros(4, bool))
    np.testing.assert_array_equal(values[starts], fresh[starts])
    assert (np.abs(values - fresh)[~starts] > 1e-3).all()


def test_samples_follow_the_probabilities():
    for space in (ACTION_SPACES["discrete from 2"], ACTION_SPACES["box"]):
        policy, count = reference.randomise(policy_for(action_space=space)), 20_000
        observation = np.array([0.3, -1.0, 0.7], np.float32)
        expected = reference.run(policy, observation[None, None])
        batch = np.tile(observation, (count, 1))
        actions, _, log_probs, _ = policy.step(batch, policy.initial_state(count), np.ones(count, bool))
        if isinstance(space, gym.spaces.Discrete):
            probabilities = np.exp([expected.log_probs(np.array([[action]]))[0, 0] for action in range(3)])
            assert scipy.stats.chisquare(np.bincount(actions - 2), count * probabilities).pvalue > 1e-3
            np.testing.assert_allclose(log_probs, np.log(probabilities)[actions - 2], atol=1e-5)
        else:
            for component in range(2):
                normal = scipy.stats.norm(expected.actor[0, 0, component], np.exp(expected.log_std[component]))
                assert scipy.stats.kstest(actions[:, component], normal.cdf).pvalue > 1e-3
