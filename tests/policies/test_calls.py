"""The arguments of a policy's methods, and the errors for wrong ones."""

import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from gymnasium import spaces

from rl_lnlstm import UserError, load_policy
from rl_lnlstm.policies import MlpLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.spaces import map_leaves
from tests.policies import reference

BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
SMALL = {"units": 4, "head_layers": (), "seed": 0}
STARTS, GO_ON = np.ones(3, bool), np.zeros(3, bool)


def policy_for(action_space=DISCRETE, **options):
    return reference.randomise(MlpLnLstmPolicy(BOX, action_space, **{**SMALL, **options}), scale=0.4)


def observations_of(*leading):
    return np.random.default_rng(0).uniform(-1, 1, (*leading, 3)).astype(np.float32)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}], ids=["compiled", "graph"])
def test_arguments_that_do_not_fit_are_named(options):
    policy, four = policy_for(**options), observations_of(4)
    state = policy.initial_state(4)
    for call, message in {
        lambda: policy.predict(four, state, np.ones(1, bool)): r"episode_start must have shape \[4\], got \[1\]",
        lambda: policy.predict(four, policy.initial_state(3)): r"state must be \(h, c\) of shapes \[\[4, ",
        lambda: policy.predict(four[:, :2]): "observation must have shape",
        lambda: policy.predict(four, rng=[np.random.default_rng(0)]): "rng must have a generator for each of 4",
        lambda: policy.predict(four, rng=7): "rng must be a numpy.random.Generator",
        lambda: policy.predict(four, action_masks=np.ones((4, 3))): r"action_masks must have shape \[4, 4\]",
        lambda: policy.step(four, state, np.ones((4, 1), bool)): r"episode_starts must have shape \[4\], got \[4, 1\]",
        lambda: policy.step(four, policy.initial_state(2), np.ones(4, bool)): "state must be",
        lambda: policy.step(four[:, :2], state, np.ones(4, bool)): "observations must have shape",
        lambda: policy.evaluate_actions(four[None], np.zeros((1, 4), int), None, np.ones(4)): "must have shape",
        lambda: policy.evaluate_actions(
            four[None], np.zeros((1, 4), int), None, np.ones((4, 1))
        ): "episode_starts must",
        lambda: policy.evaluate_actions(four[None], np.full((1, 4), 9), None, np.ones((1, 4))): "actions",
    }.items():
        with pytest.raises(UserError, match=message):
            call()


def test_no_state_is_the_state_before_an_episode():
    policy, observations = policy_for(previous_action=True), observations_of(3)
    zeros = policy.initial_state(3)
    np.testing.assert_array_equal(policy.value(observations, None, GO_ON), policy.value(observations, zeros, GO_ON))
    assert policy.step(observations, None, STARTS)[3].h.shape == (3, 4)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=-1, dtype=np.int32),
        spaces.Discrete(3, dtype=np.uint8),
        spaces.MultiDiscrete([3, 2], start=[1, -1], dtype=np.int16),
        spaces.MultiBinary([2, 2]),
        spaces.Box(0, 100, (2,), np.float64),
        spaces.Box(-5, 3, (), np.float32),
        spaces.Dict(a=spaces.Discrete(2, dtype=np.int8), b=spaces.Tuple([spaces.Box(0, 1, (1,), np.float16)])),
    ],
    ids=str,
)
def test_what_is_sent_is_an_element_of_the_action_space(space):
    policy, observations = policy_for(space, log_std_init=1.0), observations_of(3)
    sent = policy.clip_actions(policy.step(observations, None, STARTS)[0])
    batched = gym.vector.utils.batch_space(space, 3)
    assert all(action in space for action in gym.vector.utils.iterate(batched, sent))
    for deterministic in (False, True):
        action, _ = policy.predict(observations[0], deterministic=deterministic)
        assert action in space


# -------------------------------------------------------------------------------------------------- rescaled actions


def test_a_new_policy_explores_the_inside_of_wide_bounds():
    """Its actions are normal around the middle, with a standard deviation of half the distance to a bound."""
    policy = MlpLnLstmPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(0, 100, (1,)), units=4, seed=0)
    actions = policy.step(observations_of(2000), policy.initial_state(2000), np.ones(2000, bool))[0]
    sent = policy.clip_actions(actions)
    assert abs(np.mean(sent) - 50) < 3
    assert 20 < np.std(sent) < 25
    assert np.mean((sent == 0) | (sent == 100)) < 0.1


def test_actions_are_rescaled_where_both_bounds_are_finite():
    low, high = np.float32([0, -np.inf, -1, 5, -3e38]), np.float32([100, 1, 1, 5, 3e38])
    policy, actions = policy_for(spaces.Box(low, high)), np.linspace(-2, 2, 9, dtype=np.float32)
    sent = policy.clip_actions(np.repeat(actions[:, None], 5, 1))
    unit = np.clip(actions, -1, 1)
    np.testing.assert_allclose(sent[:, 0], 50 + 50 * unit, rtol=1e-6)
    np.testing.assert_array_equal(sent[:, 1], np.minimum(actions, 1))  # half bounded: as it is
    np.testing.assert_array_equal(sent[:, 2], unit)
    np.testing.assert_array_equal(sent[:, 3], 5)
    np.testing.assert_array_equal(sent[:, 4], actions)  # bounds that stand for none
    plain = policy_for(spaces.Box(low, high), rescale_actions=False)
    np.testing.assert_array_equal(plain.clip_actions(np.full((1, 5), 7, np.float32))[0], [7, 1, 1, 5, 7])


# ----------------------------------------------------------------------------------------------------- distributions


def test_scaled_actions_are_those_that_were_sampled():
    low, high = np.array([-3, 1, 5, -np.inf], np.float32), np.array([1, 1.5, 5, np.inf], np.float32)
    policy = policy_for(spaces.Tuple([spaces.Box(low, high), spaces.Discrete(3, start=1)]))
    (sampled, number), *_ = policy.step(observations_of(3), None, STARTS)
    sampled = np.clip(sampled / 4, [-1, -1, 0, -9], [1, 1, 0, 9])  # so that clipping changes nothing
    again = policy.scale_actions(policy.clip_actions((sampled, number)))
    np.testing.assert_allclose(again[0], sampled, atol=1e-5)
    assert again[0].dtype == np.float32
    np.testing.assert_array_equal(again[1], number)
    given = observations_of(3)[:, None], tuple(part[:, None] for part in again), None, STARTS[:, None]
    assert np.isfinite(policy.evaluate_actions(*given)[0]).all()


def test_the_distribution_is_that_of_step():
    policy, observations = policy_for(spaces.Discrete(4, start=2)), observations_of(3)
    distribution = policy.distribution(observations, None, STARTS)
    assert distribution.probabilities.shape == (3, 4)
    np.testing.assert_allclose(distribution.probabilities.sum(1), 1, atol=1e-6)
    actions, _, log_probs, _ = policy.step(observations, None, STARTS)
    np.testing.assert_allclose(distribution.log_prob(actions), log_probs, atol=1e-5)
    np.testing.assert_allclose(np.log(distribution.probabilities[range(3), actions - 2]), log_probs, atol=1e-5)
    np.testing.assert_allclose(
        distribution.entropy(), scipy.stats.entropy(distribution.probabilities, axis=1), atol=1e-5
    )
    np.testing.assert_array_equal(distribution.mode(), policy.predict(observations, deterministic=True)[0])
    masks = np.array([[False, True, False, True]] * 3)
    masked = policy.distribution(observations, None, STARTS, masks)
    np.testing.assert_array_equal(masked.probabilities[:, [0, 2]], 0)
    box = policy_for(spaces.Box(0, 9, (2,))).distribution(observations, None, STARTS)
    assert box.probabilities is None
    assert box.mode().shape == (3, 2)
    assert box.log_prob(box.mode()).shape == box.entropy().shape == (3,)


def test_bits_are_masked_too():
    policy, observations = policy_for(spaces.MultiBinary(3)), observations_of(200)
    masks = np.tile([[True, False], [False, True], [True, True]], (200, 1, 1))
    starts = np.ones(200, bool)
    for given in (masks, masks.reshape(200, 6)):
        actions, _, log_probs, _ = policy.step(observations, None, starts, given)
        assert not actions[:, 0].any()
        assert actions[:, 1].all()
        assert len(np.unique(actions[:, 2])) == 2
        assert policy.predict(observations[0], action_masks=given[0])[0][:2].tolist() == [0, 1]
    again, entropies, _ = policy.evaluate_actions(
        observations[:, None], actions[:, None], None, starts[:, None], masks.reshape(200, 1, 6)
    )
    np.testing.assert_allclose(again[:, 0], log_probs, atol=1e-5)
    p = policy.distribution(observations, None, starts).probabilities[:, 2]
    np.testing.assert_allclose(entropies[:, 0], scipy.stats.entropy([p, 1 - p]), atol=1e-5)
    with pytest.raises(UserError, match="is illegal"):
        policy.evaluate_actions(
            observations[:, None], 1 - actions[:, None], None, starts[:, None], masks.reshape(200, 1, 6)
        )


# -------------------------------------------------------------------------------------------------------- randomness


def test_each_row_can_have_random_numbers_of_its_own():
    policy, observations = policy_for(), np.repeat(observations_of(1), 3, 0)

    def sampled(seeds, steps=20):
        rngs = [np.random.default_rng(seed) for seed in seeds]
        return np.array([policy.predict(observations[: len(seeds)], rng=rngs)[0] for _ in range(steps)])

    together = sampled([1, 2, 3])
    for column, seed in enumerate([1, 2, 3]):
        np.testing.assert_array_equal(together[:, column], sampled([seed])[:, 0])
    np.testing.assert_array_equal(sampled([3, 1, 2]), together[:, [2, 0, 1]])
    before = policy.generator.bit_generator.state
    sampled([1])
    assert policy.generator.bit_generator.state == before


def test_predict_holds_the_noise_of_gsde():
    policy, observations = policy_for(spaces.Box(-np.inf, np.inf, (2,)), std="gsde"), observations_of(3)
    first, _ = policy.predict(observations)
    np.testing.assert_array_equal(first, policy.predict(observations)[0])
    policy.reset_noise(3)
    assert (policy.predict(observations)[0] != first).all()

    def episode(rng):
        starts = [STARTS, GO_ON, np.array([True, False, False])]
        return [policy.predict(observations, episode_start=start, rng=rng)[0] for start in starts]

    for rng in (None, [np.random.default_rng(i) for i in range(3)]):
        one, same, other = episode(rng)
        np.testing.assert_array_equal(one, same)
        np.testing.assert_array_equal((other != one).any(1), [True, False, False])
    for part, again in zip([one, same, other], episode([np.random.default_rng(i) for i in range(3)]), strict=True):
        np.testing.assert_array_equal(part, again)


def test_what_is_no_array_of_the_right_kind_is_named():
    policy, four = policy_for(), observations_of(4)
    images = MlpLnLstmPolicy(spaces.Box(0, 255, (3,), np.uint8), DISCRETE, **SMALL)
    for call, message in {
        lambda: policy.predict((four[0], {})): "observation must be an array of",
        lambda: policy.predict(["a", "b", "c"]): "observation must have dtype float32, got text",
        lambda: images.predict(np.full(3, 0.5)): "observation must have dtype uint8, got float64",
        lambda: policy.predict(four[0], action_masks=True): "action_masks must have shape",
        lambda: policy.predict(four[0], action_masks=[0.0, -np.inf, 0.0, 0.0]): "action_masks: .* values other than",
        lambda: policy.step(four, None, True): r"episode_starts must have shape \[batch\], got True",
        lambda: policy.distribution(four, None, True): r"episode_starts must have shape \[batch\], got True",
        lambda: policy.distribution(four[0], None, [True]): "observations must have shape",
        lambda: policy.distribution(
            four, None, [True]
        ): "observations must have the batch size of episode_starts, 1, got 4",
    }.items():
        with pytest.raises(UserError, match=message):
            call()


IMAGE, NESTED = spaces.Box(0, 255, (3,), np.uint8), spaces.Dict(a=spaces.Tuple([spaces.MultiDiscrete([2, 3])]))


@pytest.mark.parametrize(
    ("space", "batch", "message"),
    [
        (IMAGE, np.full((1, 3), 0.5), "dtype uint8, got float64 with fractions"),
        (IMAGE, np.full((1, 3), 256), "in Box.*, got 256"),
        (IMAGE, np.full((1, 3), "a"), "dtype uint8, got text"),
        (DISCRETE, np.array([4]), r"in Discrete\(4\), got 4"),
        (DISCRETE, np.array([1.5]), "fractions"),
        (spaces.MultiBinary(2), np.array([[0, 2]]), "got 2"),
        (NESTED, {"a": (np.array([[2, 0]]),)}, "got 2"),
        (NESTED, {"b": 1}, "structured as"),
    ],
)
def test_every_method_refuses_observations_that_are_none(space, batch, message):
    policy = RecurrentPolicy(space, DISCRETE, **SMALL)
    sequence = batch if message == "structured as" else map_leaves(lambda _, part: part[None], space, batch)
    start = np.ones(1, bool)
    for call in (
        lambda: policy.predict(batch),
        lambda: policy.step(batch, None, start),
        lambda: policy.value(batch, None, start),
        lambda: policy.distribution(batch, None, start),
        lambda: policy.evaluate_actions(sequence, np.zeros((1, 1), int), None, start[None]),
    ):
        with pytest.raises(UserError, match=f"observations? must.*{message}"):
            call()


def test_gradients_reach_the_observations():
    policy, observations = policy_for(), tf.constant(observations_of(1, 2))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(observations)
        outputs = policy.evaluate_actions(observations, np.zeros((1, 2), int), None, np.ones((1, 2)))
    for output in outputs:
        assert np.abs(tape.gradient(output, observations)).min() > 0


@pytest.mark.parametrize(
    ("space", "actions", "message"),
    [
        (DISCRETE, np.full((1, 4), 0.5), "actions of float64, expected int64"),
        (DISCRETE, np.full((1, 4), 4), r"actions: got 4 in sequence 0, at .*, expected 0\.\.3"),
        (spaces.MultiDiscrete([2, 3]), np.full((1, 4, 2), 2), "actions: got 2 in sequence 0, at"),
        (spaces.MultiBinary(2), np.full((1, 4, 2), 2), "actions: got 2 in sequence 0, at"),
        (BOX, np.full((1, 4, 3), np.nan), "actions: got nan in sequence 0, at"),
        (BOX, np.zeros((1, 4, 1)), r"actions of shape \[1, 4, 1\], expected \[1, 4, 3\]"),
    ],
    ids=["fractions", "beyond", "multi-discrete", "multi-binary", "nan", "shape"],
)
def test_evaluate_actions_names_actions_that_are_none(space, actions, message):
    policy = policy_for(space)
    with pytest.raises(UserError, match=message):
        policy.evaluate_actions(observations_of(1, 4), actions, None, np.zeros((1, 4)))


def test_evaluate_actions_names_masks_and_states_that_do_not_fit():
    policy, given = policy_for(), (observations_of(1, 4), np.zeros((1, 4), int))
    for state, masks, message in [
        (None, np.ones((1, 4, 3)), "action_masks must have shape"),
        (None, np.zeros((1, 4, 4)), "action_masks must allow at least"),
        (policy.initial_state(2), None, r"state must be \(h, c\) of shapes \[\[1, 4\], \[1, 4\]\], got \[\[2, 4\]"),
    ]:
        with pytest.raises(UserError, match=message):
            policy.evaluate_actions(*given, state, np.zeros((1, 4)), action_masks=masks)
    remembers = policy_for(previous_action=True)
    with pytest.raises(UserError, match=r"state must be \(h, c, last_action_reward\)"):
        remembers.evaluate_actions(*given, remembers.initial_state(1)[:2], np.zeros((1, 4)))


@pytest.mark.parametrize("options", [{}, {"previous_action": True}], ids=["plain", "previous action"])
def test_evaluate_actions_works_in_a_function_with_any_batch_size(options):
    policy = policy_for(spaces.MultiBinary(2), **options)
    masks = np.ones((3, 4, 2, 2), bool)
    masks[:, 1, 0, 1] = False
    given = observations_of(3, 4), np.zeros((3, 4, 2), np.int8), np.zeros((3, 4), np.float32), masks

    def evaluate(observations, actions, starts, masks):
        return policy.evaluate_actions(observations, actions, None, starts, masks)

    specs = [tf.TensorSpec([None, None, *part.shape[2:]], part.dtype) for part in given]
    for eager, graph in zip(evaluate(*given), tf.function(evaluate, specs)(*given), strict=True):
        np.testing.assert_allclose(eager, graph, rtol=1e-5)


def test_evaluate_actions_takes_unlikely_continuous_actions():
    policy = policy_for(BOX)
    actions = np.full((1, 4, 3), 1e5, np.float32)
    log_probs = policy.evaluate_actions(observations_of(1, 4), actions, None, np.zeros((1, 4)))[0]
    assert (log_probs.numpy() < -1e8).all()


def test_distribution_takes_float64_tensors_as_step_takes_them():
    policy, observations = policy_for(), observations_of(3)
    wide = policy.distribution(tf.constant(observations, tf.float64), None, STARTS)
    np.testing.assert_array_equal(wide.entropy(), policy.distribution(observations, None, STARTS).entropy())


@pytest.mark.parametrize(
    ("space", "fits", "wrong"),
    [
        (spaces.Discrete(3, start=2), [2, 3, 4], [2, 5]),
        (spaces.MultiDiscrete([2, 3]), [[1, 2]], [[2, 0]]),
        (spaces.MultiBinary(2), [[0, 1]], [[0, 2]]),
        (spaces.Box(0, 255, (2,), np.uint8), [[0, 255]], [[0, 256]]),
        (spaces.Discrete(3), 1, 1.5),
        (spaces.Discrete(200, start=56, dtype=np.uint8), [56, 255], [0, 55]),
        (spaces.MultiDiscrete([100], start=[28], dtype=np.int8), [[28], [127]], [[27], [0]]),
    ],
    ids=["discrete", "multi-discrete", "multi-binary", "bytes", "fraction", "small dtype", "small dtypes"],
)
def test_predict_refuses_what_the_observation_space_does_not_hold(space, fits, wrong):
    policy = MlpLnLstmPolicy(space, DISCRETE, **SMALL)
    policy.predict(np.array(fits))
    with pytest.raises(UserError, match="observation must"):
        policy.predict(np.array(wrong))


@pytest.mark.parametrize("path", [None, 5, "a" * 5000])
def test_what_is_no_path_holds_no_policy(path):
    with pytest.raises(UserError):
        load_policy(path)
