"""Action masks: they are found, never violated, and reproduced in the update, and they help learning."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from rl_lnlstm import PPO, UserError, evaluate_policy
from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.action_masks import mask_sizes
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.policies import MlpLnLstmPolicy
from tests.policies import reference
from tests.policies.acting import assert_reproduced
from tests.policies.card_env import CARDS, NVEC, Over, cards
from tests.ppo.tiny_ppo import iterate

SMALL = {"units": 4, "encoder_layers": (6,), "head_layers": (5,)}
TINY = {**SMALL, "num_steps": 16, "sequence_length": 8, "num_minibatches": 1, "update_epochs": 1, "jit_compile": False}
MODES = list(AutoresetMode)


def fouls(envs):
    return sum(env.unwrapped.fouls for env in envs.unwrapped.envs)


def policy_for(envs, **arguments):
    spaces = envs.single_observation_space, envs.single_action_space
    return MlpLnLstmPolicy(*spaces, **{**SMALL, "seed": 0, **arguments})


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
@pytest.mark.parametrize("truncates", [False, True], ids=["terminating", "truncating"])
@pytest.mark.parametrize("tells", ["info", "method"])
@pytest.mark.parametrize("nvec", [None, NVEC], ids=["discrete", "multi-discrete"])
def test_no_illegal_action_of_a_thousand(mode, truncates, tells, nvec):
    """With weights that would often break the masks, over ends of episodes, whose own masks allow nothing."""
    envs = make_vec(cards(tells=tells, nvec=nvec, truncates=truncates), 4, autoreset_mode=mode)
    policy = reference.randomise(policy_for(envs), scale=2)
    stepper, state, steps = Stepper(envs, 0), policy.initial_state(4), 0
    while steps < 1000:
        given = stepper.observations, state, stepper.episode_starts, stepper.action_masks
        if steps % 3:
            actions, _, log_probs, state = policy.step(*given)
            assert np.isfinite(log_probs).all()
        else:
            actions, state = policy.predict(*given[:3], deterministic=bool(steps % 2), action_masks=given[3])
        steps += int(stepper.step(actions).valid.sum())
    assert fouls(envs) == 0
    without, _ = policy.predict(stepper.observations, state, stepper.episode_starts)
    assert without.shape == (4, *envs.single_action_space.shape)


def test_the_same_policy_without_masks_breaks_them():
    """Or the test above could not fail."""
    envs = make_vec(cards(tells="nothing"), 4)
    policy = reference.randomise(policy_for(envs), scale=2)
    stepper = Stepper(envs, 0)
    assert stepper.action_masks is None
    for _ in range(20):
        actions, *_ = policy.step(stepper.observations, policy.initial_state(4), stepper.episode_starts)
        stepper.step(actions)
    assert fouls(envs) > 0


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
@pytest.mark.parametrize("tells", ["info", "method"])
@pytest.mark.parametrize("nvec", [None, NVEC], ids=["discrete", "multi-discrete"])
def test_worker_processes_tell_their_masks(mode, tells, nvec):
    envs = make_vec(cards(tells=tells, nvec=nvec), 2, vectorization="async", autoreset_mode=mode)
    try:
        policy = reference.randomise(policy_for(envs), scale=2)
        stepper, state, episodes = Stepper(envs, 0), policy.initial_state(2), 0
        for _ in range(40):
            given = stepper.observations, state, stepper.episode_starts, stepper.action_masks
            actions, _, _, state = policy.step(*given)
            episodes += len(stepper.step(actions).episodes)
        assert episodes > 10
        assert envs.get_attr("fouls") == (0, 0)
        assert not stepper.action_masks.all()
    finally:
        envs.close()


def test_worker_processes_without_masks_live_on():
    envs = make_vec("CartPole-v1", 2, vectorization="async")
    try:
        stepper = Stepper(envs, 0)
        assert stepper.action_masks is None
        assert stepper.step(np.zeros(2, int)).valid.all()
    finally:
        envs.close()


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
@pytest.mark.parametrize("vectorization", ["sync", "async", "SyncVectorEnv"])
def test_nobody_asks_for_masks_after_the_end(mode, vectorization):
    if vectorization == "SyncVectorEnv":
        envs = make_vec(SyncVectorEnv([Over] * 2, autoreset_mode=mode))
    else:
        envs = make_vec(Over, 2, vectorization=vectorization, autoreset_mode=mode)
    try:
        stepper, episodes = Stepper(envs, 0), 0
        for _ in range(15):
            episodes += len(stepper.step(stepper.action_masks.argmax(1) + 2).episodes)
        assert episodes >= 4
    finally:
        envs.close()


class VectorCards(VectorEnv):
    """A vector environment with a method of its own."""

    num_envs = 3
    single_observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    single_action_space = gym.spaces.Discrete(2)
    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        return np.zeros((3, 2), np.float32), {}

    def step(self, actions):
        assert (actions == 1).all()
        return np.zeros((3, 2), np.float32), np.ones(3), np.zeros(3, bool), np.zeros(3, bool), {}

    def action_masks(self):
        return np.array([[False, True]] * 3)


def test_a_vector_environments_own_method():
    envs = make_vec(VectorCards())
    returns = PPO("MlpLnLstmPolicy", envs, **TINY).learn(16)
    assert returns.num_timesteps == 48


# -------------------------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
@pytest.mark.parametrize("nvec", [None, NVEC], ids=["discrete", "multi-discrete"])
def test_masked_acting_is_reproduced(mode, nvec):
    envs = make_vec(cards(nvec=nvec), 3, autoreset_mode=mode)
    policy = reference.randomise(policy_for(envs))
    for rollout, _ in assert_reproduced(policy, envs, 16, 8, rollouts=3):
        assert rollout.action_masks.shape == (16, 3, CARDS if nvec is None else sum(NVEC))
        assert rollout.action_masks[~rollout.valid].all()
        # The environment's masks, which its observations tell too.
        expected = rollout.observations[..., : rollout.action_masks.shape[-1]] == 1
        np.testing.assert_array_equal(rollout.action_masks[rollout.valid], expected[rollout.valid])
    assert fouls(envs) == 0


def test_ppo_trains_with_masks():
    """Before an update's first step, acting is reproduced."""
    envs = make_vec(cards(nvec=NVEC), 3)
    ppo = PPO("MlpLnLstmPolicy", envs, learning_rate=0.03, **TINY)
    reference.randomise(ppo.policy)
    for of_one in iterate(ppo, 3):
        assert abs(of_one["train/approx_kl"]) < 1e-9
        assert all(np.isfinite(value) for name, value in of_one.items() if name.startswith("train/"))
    assert all(np.isfinite(weight).all() for weight in ppo.policy.get_weights())
    assert fouls(envs) == 0


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "XLA"])
@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(4, start=1),
        gym.spaces.MultiDiscrete([3, 1, 4], start=[5, 0, -1]),
        gym.spaces.MultiDiscrete([[3, 1], [4, 2]]),
    ],
    ids=["discrete", "multi-discrete", "multi-discrete of rank 2"],
)
def test_an_illegal_action_has_no_probability_no_entropy_and_no_gradient(space, compiled):
    rng = np.random.default_rng(0)
    policy = reference.randomise(MlpLnLstmPolicy(gym.spaces.Box(-1, 1, (3,)), space, **SMALL, seed=0))
    sizes = mask_sizes(space)
    mask = np.concatenate([np.arange(size) < max(1, size - 2) for size in sizes])
    observations = rng.normal(size=(2, 3, 3)).astype(np.float32)
    actions = np.full((2, 3, *space.shape), space.start)  # of each component the first value, which is legal
    masks = np.broadcast_to(mask, (2, 3, len(mask)))
    state, starts = policy.initial_state(2), np.zeros((2, 3), bool)
    variables = [variable.value for variable in policy.trainable_variables]

    def evaluate():
        with tf.GradientTape() as tape:
            log_probs, entropies, _ = policy.evaluate_actions(observations, actions, state, starts, masks)
            total = tf.reduce_sum(log_probs) + tf.reduce_sum(entropies)
        return log_probs, entropies, tape.gradient(total, variables, unconnected_gradients="zero")

    run = tf.function(evaluate, autograph=False, jit_compile=True) if compiled else evaluate
    log_probs, entropies, gradients = run()
    for gradient, variable in zip(gradients, policy.trainable_variables, strict=True):
        assert np.isfinite(gradient).all()
        if "logits" in variable.path:
            columns = np.reshape(gradient, (-1, len(sizes), max(sizes)))
            for component, size in enumerate(sizes):
                legal = max(1, size - 2)
                np.testing.assert_array_equal(columns[:, component, legal:], 0)
                if legal > 1:
                    assert np.abs(columns[:, component, :legal]).max() > 0

    # The probabilities of the legal actions alone sum to 1, and entropy is theirs.
    every = np.stack(np.meshgrid(*(np.arange(max(1, size - 2)) for size in sizes), indexing="ij"), -1)
    every = every.reshape(-1, len(sizes))
    log_p = []
    for action in every:
        one = np.broadcast_to(action.reshape(space.shape) + space.start, actions.shape)
        log_p.append(policy.evaluate_actions(observations, one, state, starts, masks)[0].numpy())
    log_p = np.array(log_p)
    np.testing.assert_allclose(np.exp(log_p).sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(entropies, -(np.exp(log_p) * log_p).sum(0), atol=1e-5)
    np.testing.assert_allclose(log_probs, log_p[0], atol=1e-5)
    for component in np.flatnonzero(sizes > 2):  # one that is illegal makes the whole action so
        foul = (sizes - 1) * (np.arange(len(sizes)) == component)
        illegal = actions + foul.reshape(space.shape)
        in_graph = tf.function(policy.evaluate_actions, autograph=False)
        np.testing.assert_array_equal(in_graph(observations, illegal, state, starts, masks)[0], -np.inf)
        with pytest.raises(UserError, match=r"actions\[0, 0\] is illegal"):
            policy.evaluate_actions(observations, illegal, state, starts, masks)


def test_masked_learning_beats_learning_what_is_legal():
    """The same game and frames, with and without word of the masks."""
    means = {}
    for tells in ("info", "nothing"):
        envs = make_vec(cards(tells=tells, length=10), 8)
        ppo = PPO(
            *("MlpLnLstmPolicy", envs),
            **{"units": 16, "encoder_layers": (32,), "num_steps": 32, "learning_rate": 3e-3, "update_epochs": 4},
            **{"num_minibatches": 2, "gamma": 0.5, "seed": 0, "jit_compile": False},
        )
        ppo.learn(1_000)  # of which 3,000 are enough for either
        means[tells], _ = evaluate_policy(ppo.policy, envs, 50, deterministic=False, seed=1)
    assert means["info"] > means["nothing"] + 3  # of 10


# ------------------------------------------------------------------------------------------- predict and evaluation


def test_predict_takes_masks_for_one_or_many():
    envs = make_vec(cards(), 3)
    policy = reference.randomise(policy_for(envs), scale=2)
    observations, _ = envs.reset(seed=0)
    only = np.eye(CARDS, dtype=np.int8)[[4, 0, 5]]
    for deterministic in (True, False):
        many, _ = policy.predict(observations, deterministic=deterministic, action_masks=only)
        np.testing.assert_array_equal(many, np.array([4, 0, 5]) + 2)
        one, _ = policy.predict(observations[0], deterministic=deterministic, action_masks=only[0])
        assert one == 6
    with pytest.raises(UserError, match=r"action_masks must have shape \[3, 6\], got \[3, 5\]"):
        policy.predict(observations, action_masks=only[:, 1:])
    with pytest.raises(UserError, match=r"action_masks must allow at least one action, got \[0 0 0 0 0 0\]"):
        policy.predict(observations, action_masks=0 * only)
    box = MlpLnLstmPolicy(envs.single_observation_space, gym.spaces.Box(-1, 1, (2,)), **SMALL)
    with pytest.raises(
        UserError, match="action_masks are for Discrete, MultiDiscrete and MultiBinary actions, got Box"
    ):
        box.predict(observations, action_masks=only)


@pytest.mark.parametrize("tells", ["info", "method"])
def test_evaluation_fetches_the_masks(tells):
    envs = make_vec(cards(tells=tells), 3)
    policy = reference.randomise(policy_for(envs), scale=2)
    for deterministic in (True, False):
        _, lengths = evaluate_policy(policy, envs, 9, deterministic, return_episode_rewards=True)
        assert lengths == [5] * 9  # a foul would have ended one
    assert fouls(envs) == 0


def test_a_policy_that_takes_no_masks_is_evaluated_without():
    envs = make_vec(cards(), 2)

    class Plain:
        observation_space, action_space = envs.single_observation_space, envs.single_action_space

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.full(len(observation), 2), state

    assert evaluate_policy(Plain(), envs, 4)[0] < 5
