"""With `critic_keys`, entries of the observation reach the critic, and never the actor."""

import copy

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium import spaces

import rl_lnlstm
from rl_lnlstm import PPO, UserError, load_policy
from rl_lnlstm.evaluation.padding import pad_episodes
from rl_lnlstm.policies import MultiInputLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.policies.encoder_check import random_observations
from rl_lnlstm.policies.unrolling import encode, encode_for_critic
from rl_lnlstm.reports.gradients import gradient_norms
from rl_lnlstm.reports.replay import replay
from rl_lnlstm.spaces import leaves, map_leaves
from tests.any_space import AnyEnv
from tests.policies import reference

SEEN = spaces.Dict(camera=spaces.Box(-1, 1, (2,)), robot=spaces.Dict(arm=spaces.Discrete(3)))
WHOLE = spaces.Dict(
    camera=spaces.Box(-1, 1, (2,)),
    robot=spaces.Dict({"arm": spaces.Discrete(3), "fo/rce": spaces.Box(-5, 5, (2, 2), np.float64)}),
    world=spaces.Dict(
        map=spaces.Box(0, 255, (7, 7, 1), np.uint8),
        goal=spaces.Tuple([spaces.Discrete(4, start=1), spaces.MultiBinary(2)]),
    ),
)
KEYS = ("world", "robot/fo/rce")
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi-discrete": spaces.MultiDiscrete([2, 3]),
    "box": spaces.Box(-2, 2, (2,)),
}
BATCH, TIME = 3, 4


def policy_for(actions="discrete", kind=MultiInputLnLstmPolicy, **options):
    given = {"units": 4, "head_layers": (5,), "seed": 0, "critic_keys": KEYS, **options}
    return reference.randomise(kind(WHOLE, ACTIONS[actions], **given), scale=0.4)


def observations_of(batch=BATCH, seed=0):
    return random_observations(WHOLE, batch, np.random.default_rng(seed))


def seen_of(observations):
    return map_leaves(lambda _, part: part, SEEN, observations)


class Shortened(gym.ObservationWrapper):
    """Leaves out the entries that only the critic sees."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = SEEN

    def observation(self, observation):
        return seen_of(observation)


CASES = {
    "separate": {"shared_lstm": False},
    "shared": {"shared_lstm": True, "previous_action": True, "previous_reward": True},
    "stacked": {"shared_lstm": False, "num_layers": 2, "residual": True, "normalize_observations": True},
    "network": {"actions": "box", "std": "network", "shared_lstm": False},
    "gsde": {"actions": "box", "std": "gsde", "shared_lstm": True},
    "flat": {"kind": RecurrentPolicy, "actions": "multi-discrete", "shared_lstm": False},
}


@pytest.mark.parametrize("case", CASES)
def test_the_entries_reach_the_values_and_not_the_actions(case):
    policy, rng = policy_for(**CASES[case]), np.random.default_rng(0)
    assert policy.actor_observation_space == SEEN
    h, c, *kept = policy.initial_state(BATCH)
    last = [policy.last_action_reward.inputs(tf.zeros([TIME, *kept[0].shape]))] if kept else [None]
    flat = random_observations(WHOLE, BATCH * TIME, rng)
    sizes = [encoded(policy, flat).shape[-1] for encoded in (encode, encode_for_critic)]
    # Random numbers in place of the encoded observations, which saturate some units.
    features, for_critic = (tf.constant(rng.normal(0, 0.1, [TIME, BATCH, size]), tf.float32) for size in sizes)
    network, masks = policy.network, tf.ones([TIME, BATCH])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([features, for_critic])
        seen, states = network.unroll(features, network.split(h, c), masks, *last, for_critic)
        outputs = network.heads(seen)
        noise = policy.action_head.noise(rng, TIME * BATCH).reshape(TIME, BATCH, -1)
        actions = tf.nest.map_structure(tf.stop_gradient, outputs.distribution.sample(noise))
        acted = tf.reduce_sum(outputs.distribution.log_prob(actions))
        acted += sum(tf.reduce_sum(part**2) for state in states[: network.num_layers] for part in state)
        valued = tf.reduce_sum(outputs.values**2)
    of_critic = [*network.critic_layers, network.value_head, *network.lstm_layers[network.num_layers :]]
    of_critic += [] if network.critic_encoder is None else [network.critic_encoder]
    weights = [weight.value for layer in of_critic for weight in layer.trainable_variables]
    assert all(gradient is None for gradient in tape.gradient(acted, [for_critic, *weights]))
    assert np.all(np.abs(tape.gradient(acted, features)).sum(-1) > 0)
    assert np.all(np.abs(tape.gradient(valued, for_critic)).sum(-1) > 0)
    assert np.all(np.abs(tape.gradient(valued, features)).sum(-1) > 0)


@pytest.mark.parametrize("case", CASES)
def test_predict_needs_no_entry_and_acts_the_same_to_the_bit(case):
    policy = policy_for(**CASES[case])
    observations = [observations_of(seed=seed) for seed in range(4)]
    got = []
    for given in (observations, [seen_of(one) for one in observations]):
        for deterministic in (True, False):
            policy.seed(1)
            state, actions = None, []
            for t, one in enumerate(given):
                starts = np.full(BATCH, t in (0, 2))
                action, state = policy.predict(one, state, starts, deterministic)
                actions.append(action)
            got.append((np.stack(actions), [part[:, : policy.actor_state_size] for part in state]))
    for with_entries, without in zip(got[:2], got[2:], strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, with_entries, without)


def test_predict_carries_the_state_that_step_carries():
    policy = policy_for(shared_lstm=False)
    one = {"deterministic": False, "rng": np.random.default_rng(0)}
    state = predicted = None
    for t in range(3):
        observations, starts = observations_of(seed=t), np.full(BATCH, t == 0)
        state = policy.step(observations, state, starts)[-1]
        predicted = policy.predict(observations, predicted, starts, **one)[1]
    for got, expected in zip(predicted, state, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)
    before = policy.value(observations_of(), state, np.zeros(BATCH, bool))
    np.testing.assert_allclose(before, policy.value(observations_of(), predicted, np.zeros(BATCH, bool)), atol=1e-6)


def test_the_critic_needs_every_entry_and_step_goes_on_without_values():
    policy, whole, starts = policy_for(shared_lstm=False), observations_of(), np.ones(BATCH, bool)
    lacking = {**whole, "world": {"map": whole["world"]["map"]}}
    for observations, name in ((lacking, "world/goal"), (seen_of(whole), "robot/fo/rce")):
        with pytest.raises(UserError, match=f"observations have no entry '{name}', which the critic needs"):
            policy.value(observations, None, starts)
        sequences = map_leaves(lambda _, part: part[:, np.newaxis], SEEN, observations)
        with pytest.raises(UserError, match="which the critic needs"):
            policy.evaluate_actions(sequences, np.zeros((BATCH, 1), int), None, np.ones((BATCH, 1)))
        policy.seed(0)
        actions, values, log_probs, state = policy.step(observations, None, starts)
        policy.seed(0)
        complete = policy.step(whole, None, starts)
        assert np.isnan(values).all()
        assert not np.isnan(complete[1]).any()
        assert not state.h[:, policy.actor_state_size :].any()
        np.testing.assert_array_equal(actions, complete[0])
        np.testing.assert_allclose(log_probs, complete[2], atol=1e-6)
    np.testing.assert_array_equal(
        policy.distribution(seen_of(whole), None, starts).probabilities,
        policy.distribution(whole, None, starts).probabilities,
    )
    with pytest.raises(UserError, match="must be structured as"):
        policy.predict({"robot": whole["robot"]})


def test_action_masks_work_with_and_without_the_entries():
    policy, whole = policy_for(), observations_of()
    masks = np.array([[False, True, False], [True, False, False], [False, False, True]])
    for observations in (whole, seen_of(whole)):
        np.testing.assert_array_equal(policy.predict(observations, action_masks=masks)[0], [1, 0, 2])
        assert policy.step(observations, None, np.ones(3, bool), masks)[0].tolist() == [1, 0, 2]


def test_saved_and_copied_policies_keep_it(tmp_path):
    policy = policy_for(shared_lstm=False, normalize_observations=True)
    policy.update_statistics(observations_of(50), np.ones(50, bool))
    assert float(policy.observation_statistics["robot"]["fo/rce"].count.numpy()) == 50
    policy.save(tmp_path / "policy")
    whole, starts = observations_of(), np.ones(BATCH, bool)
    for other in (load_policy(tmp_path / "policy"), copy.deepcopy(policy)):
        assert other.options.critic_keys == KEYS
        np.testing.assert_array_equal(other.value(whole, None, starts), policy.value(whole, None, starts))
        for observations in (whole, seen_of(whole)):
            got, expected = (one.predict(observations, deterministic=True) for one in (other, policy))
            tf.nest.map_structure(np.testing.assert_array_equal, got, expected)


def test_an_encoder_of_the_user_gets_what_the_actor_sees(tmp_path):
    def encoder():
        inputs = {"camera": keras.Input([2], name="camera"), "robot": {"arm": keras.Input([3])}}
        joined = keras.layers.Concatenate()([inputs["camera"], inputs["robot"]["arm"]])
        return keras.Model(inputs, keras.layers.Dense(6, "tanh")(joined))

    policy = RecurrentPolicy(WHOLE, ACTIONS["discrete"], encoder=encoder(), units=4, critic_keys=KEYS, seed=0)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", encoder=encoder())
    whole, starts = observations_of(), np.ones(BATCH, bool)
    np.testing.assert_array_equal(loaded.value(whole, None, starts), policy.value(whole, None, starts))
    assert policy.is_convolutional  # the map of the critic


@pytest.mark.parametrize(
    ("space", "keys", "message"),
    [
        (spaces.Box(-1, 1, (2,)), ("state",), r"expected a Dict observation, whose entries they name, got Box"),
        (WHOLE, ("state",), r"no entry 'state'; its entries are 'camera', .*'world/goal'"),
        (WHOLE, ("world/goal/0",), r"no entry 'world/goal/0'"),
        (WHOLE, ("camera", "robot", "world"), r"at least one entry must be left for the actor"),
        (WHOLE, ("world", "world/map"), r"names 'world/map' twice"),
        (WHOLE, ("world", "world"), r"names 'world' twice"),
        (WHOLE, "world", r"critic_keys must be a sequence, each text, got 'world'"),
    ],
)
def test_wrong_keys_are_refused(space, keys, message):
    with pytest.raises(UserError, match=message):
        MultiInputLnLstmPolicy(space, ACTIONS["discrete"], critic_keys=keys)


def test_ppo_learns_and_the_policy_acts_where_the_entries_are_missing(tmp_path):
    options = {"num_envs": 2, "num_steps": 8, "num_minibatches": 1, "update_epochs": 1, "jit_compile": False}
    before = {}
    with PPO("auto", lambda: AnyEnv(WHOLE), critic_keys=KEYS, units=4, seed=0, **options) as ppo:
        policy = ppo.policy
        of_critic = policy.network.critic_encoder.trainable_variables
        before = [weight.numpy() for weight in of_critic]
        ppo.learn(16)
        assert all(np.any(weight.numpy() != old) for weight, old in zip(of_critic, before, strict=True))
    results = [rl_lnlstm.evaluate(policy, make, 3, seed=0) for make in (lambda: AnyEnv(WHOLE), shortened)]
    assert results[0].returns == results[1].returns
    complete, short = (
        rl_lnlstm.record_episodes(policy, make, 2, seed=0) for make in (lambda: AnyEnv(WHOLE), shortened)
    )
    assert pad_episodes(complete, WHOLE).values.shape == (2, 5)
    assert pad_episodes(short, SEEN).values is None
    np.testing.assert_array_equal(short[0]["actions"], complete[0]["actions"])
    for episode in (complete[0], short[0]):
        (layer,) = replay(policy, episode).layers
        assert layer.f.shape == (5, 4)
        assert np.isfinite(gradient_norms(policy, episode, 3, np.random.default_rng(0))).all()
    with pytest.raises(UserError, match="the policy was made for observation space"):
        PPO(policy, shortened, **options)
    with pytest.raises(UserError, match="the policy was made for observation space"):
        rl_lnlstm.evaluate(policy, lambda: AnyEnv(spaces.Dict(camera=WHOLE["camera"])), 1)


def shortened():
    return Shortened(AnyEnv(WHOLE))


def test_every_leaf_of_the_space_goes_to_one_of_the_two():
    policy = policy_for()
    actor, critic = policy.actor_observation_space, policy.critic_observation_space
    assert len(leaves(actor)) + len(leaves(critic)) == len(leaves(WHOLE))
    assert list(critic.spaces) == ["robot", "world"]
