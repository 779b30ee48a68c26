"""The policy interface for every kind of space, against the same network in float64 NumPy."""

import gymnasium as gym
import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from rl_lnlstm import UserError
from rl_lnlstm.lstm.kernel import available
from rl_lnlstm.policies import MlpLnLstmPolicy, MultiInputLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.policies.compiled_step import compiled_step
from rl_lnlstm.policies.graph_step import graph_step
from tests.policies import reference

OBSERVATIONS = gym.spaces.Box(-2, 2, (3,), np.float32)
ACTION_SPACES = {
    "discrete": gym.spaces.Discrete(4),
    "discrete from 2": gym.spaces.Discrete(3, start=2),
    "box": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "bounded box": gym.spaces.Box(np.array([-0.1, 0.0]), np.array([0.1, 0.3]), dtype=np.float64),
    "scalar box": gym.spaces.Box(-1, 1, (), np.float32),
    "box of rank 2": gym.spaces.Box(-1, 1, (2, 3), np.float32),
}
COMPILED = {
    "tanh": {},
    "relu, separate LSTM layers": {"activation": "relu", "shared_lstm": False, "units": 16},
    "normalised, wide": {"normalize_observations": True, "encoder_layers": (40, 33), "head_layers": (64, 17)},
    "no layers": {"encoder_layers": (), "head_layers": ()},
    "sigmoid": {"activation": "sigmoid"},
}
SMALL = {"units": 5, "encoder_layers": (6,), "head_layers": (4,), "seed": 0}


def policy_for(observation_space=OBSERVATIONS, action_space=ACTION_SPACES["discrete"], **arguments):
    return MlpLnLstmPolicy(observation_space, action_space, **{**SMALL, **arguments})


def observations_of(space, *leading, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-2, 2, (*leading, *space.shape)).astype(space.dtype)


def flat(actions, leading):
    return np.reshape(actions, (*leading, -1)).astype(np.float64)


@pytest.fixture(scope="module")
def discrete():
    return reference.randomise(policy_for())


each_action_space = pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)


# ------------------------------------------------------------------------------------------------- the interface


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
    changes = [
        lambda: kernel.assign(kernel + 0.1),
        tf.function(lambda: kernel.assign_add(0.1 * tf.ones_like(kernel)), jit_compile=True),
        lambda: kernel.assign_sub(0.1 * tf.eye(*kernel.shape)),
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
    convolution = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Conv2D(2, 2), keras.layers.Flatten()])
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


# -------------------------------------------------------------------------------------- predict, as SB3's


@each_action_space
def test_predict_gives_legal_actions_for_one_or_many(action_space):
    policy = policy_for(action_space=action_space, log_std_init=2.0)  # far beyond any bounds
    observations = observations_of(OBSERVATIONS, 50)
    for deterministic in (True, False):
        actions, state = policy.predict(observations, deterministic=deterministic)
        assert isinstance(actions, np.ndarray)
        assert isinstance(state, tuple)
        assert all(isinstance(part, np.ndarray) and part.shape == (50, 5) for part in state)
        assert actions.shape == (50, *action_space.shape)
        assert actions.dtype == action_space.dtype
        assert all(action_space.contains(action) for action in actions)
        action, state = policy.predict(observations[0], deterministic=deterministic)
        assert action_space.contains(action)
        assert np.shape(action) == action_space.shape
        assert all(part.shape == (1, 5) for part in state)


def test_predict_carries_and_resets_the_state(discrete):
    sequence = observations_of(OBSERVATIONS, 8)
    starts = np.array([False, False, True, False, False, True, True, False])
    states, state = [], None
    for observation, start in zip(sequence, starts, strict=True):
        _, state = discrete.predict(observation, state=state, episode_start=np.array([start]), deterministic=True)
        states.append(state[0][0])
    expected = reference.run(discrete, sequence[None], 1 - starts[None])
    np.testing.assert_allclose(states, expected.hs[0], atol=1e-5)
    # Without episode_start nothing is reset, and no state is the state before an episode.
    _, carried = discrete.predict(sequence[1], state=discrete.predict(sequence[0])[1])
    np.testing.assert_allclose(carried[0], expected.hs[:, 1], atol=1e-5)


def test_deterministic_actions_repeat_and_sampled_ones_do_not(discrete):
    observations = observations_of(OBSERVATIONS, 200)
    best, _ = discrete.predict(observations, deterministic=True)
    np.testing.assert_array_equal(best, discrete.predict(observations, deterministic=True)[0])
    sampled = discrete.predict(observations)[0]
    assert (sampled != discrete.predict(observations)[0]).any()
    assert (sampled != best).any()


@pytest.mark.parametrize(
    ("observation", "state", "message"),
    [
        (np.zeros(4), None, r"observation must have shape .*\[3\].* got \[4\]"),
        (np.zeros((2, 2, 3)), None, r"observation must have shape .* got \[2, 2, 3\]"),
        (np.zeros((2, 3)), (np.zeros((1, 5)), np.zeros((1, 5))), r"state must be .*\[2, 5\].*\[1, 5\]"),
    ],
)
def test_predict_names_what_does_not_fit(discrete, observation, state, message):
    with pytest.raises(UserError, match=message):
        discrete.predict(observation, state)


@pytest.mark.peers
def test_stable_baselines3_evaluates_it():
    """SB3's own `evaluate_policy`, against one environment and one step at a time."""
    pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv

    space = gym.make("CartPole-v1")
    policy = reference.randomise(policy_for(space.observation_space, space.action_space))
    envs = DummyVecEnv([lambda: Monitor(gym.make("CartPole-v1"))] * 3)
    envs.seed(11)
    returns, lengths = evaluate_policy(policy, envs, n_eval_episodes=6, return_episode_rewards=True)

    expected = []
    for number in range(3):
        env = gym.make("CartPole-v1")
        for episode in range(2):
            observation, _ = env.reset(seed=11 + number if episode == 0 else None)
            state, total, ended = None, 0.0, False
            while not ended:
                action, state = policy.predict(observation, state, deterministic=True)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, ended = total + reward, terminated or truncated
            expected.append(total)
    assert sorted(returns) == sorted(lengths) == sorted(expected)
    mean, deviation = evaluate_policy(policy, envs, n_eval_episodes=6, deterministic=False)
    assert mean > 0 <= deviation


# --------------------------------------------------------------------------------------------------- construction


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
