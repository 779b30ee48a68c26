"""Every kind of action, from the network to a saved policy, in every autoreset mode; and exploration with gSDE."""

import copy
import functools

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from gymnasium import spaces

from rl_lnlstm import PPO, evaluate_policy, load_policy
from rl_lnlstm.envs import make_vec
from rl_lnlstm.policies import MlpLnLstmPolicy
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.spaces import flatten, leaves, map_leaves
from tests.any_space import AnyEnv
from tests.policies import reference
from tests.policies.acting import assert_reproduced
from tests.policies.scripted_env import MODES
from tests.ppo.tiny_ppo import iterate

OBSERVATIONS = spaces.Box(-1, 1, (3,), np.float32)
HALF_BOUNDED = spaces.Box(np.array([0.0, -np.inf, -0.1]), np.array([np.inf, 0.1, 0.3]), dtype=np.float64)
ACTION_SPACES = {
    "discrete": spaces.Discrete(3, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 1, 4], start=[5, 0, -2]),
    "multi-discrete of rank 2": spaces.MultiDiscrete([[3, 2], [4, 1]], dtype=np.int16),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary of rank 2": spaces.MultiBinary([2, 3]),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "half bounded": HALF_BOUNDED,
    "scalar": spaces.Box(-0.2, 0.2, (), np.float32),
    "matrix of half precision": spaces.Box(-0.3, 0.2, (2, 2), np.float16),
    "tuple": spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-0.2, 0.5, (2,))]),
    "nested": spaces.Dict(
        z=spaces.Box(-0.1, 0.1, (1, 2), np.float64),
        a=spaces.Tuple([spaces.MultiBinary(2), spaces.Dict(n=spaces.MultiDiscrete([2, 3]))]),
        move=spaces.Discrete(2),
    ),
}
STDS = {
    "free": {},
    "state-dependent": {"std": "network"},
    "held": {"std": "gsde", "sde_sample_freq": 3},
}
CASES = [
    (kind, std)
    for kind, space in ACTION_SPACES.items()
    for std in STDS
    if std == "free" or any(isinstance(leaf, spaces.Box) for leaf in leaves(space))
]
SIZES = {"units": 4, "encoder_layers": (6,), "head_layers": (5,)}
TINY = {
    **{"num_steps": 12, "num_minibatches": 1, "update_epochs": 1, "seed": 0, "jit_compile": False},
    **{**SIZES, "learning_rate": 0.03},
}


def policy_for(space, **arguments):
    policy = MlpLnLstmPolicy(OBSERVATIONS, copy.deepcopy(space), **{**SIZES, "seed": 0, **arguments})
    return reference.randomise(policy, scale=0.4)


def observations_of(*leading, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (*leading, 3)).astype(np.float32)


@pytest.mark.parametrize(("kind", "std"), CASES)
def test_every_space_acts_is_learnt_saves_loads_and_evaluates(kind, std, tmp_path):
    """Acting is reproduced, with sequences cut anywhere; environments only get what they allow."""
    space, options = ACTION_SPACES[kind], dict(STDS[std])
    mode = MODES[CASES.index((kind, std)) % len(MODES)]
    make = functools.partial(AnyEnv, OBSERVATIONS, copy.deepcopy(space))
    freq = options.pop("sde_sample_freq", None)
    policy = policy_for(space, **options)
    for _, sequences in assert_reproduced(policy, make_vec(make, 2, autoreset_mode=mode), 12, 4, freq):
        for leaf, part in zip(leaves(space), flatten(space, sequences.actions), strict=True):
            assert part.shape == (6, 4, *leaf.shape)

    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.action_space == space
    observations = observations_of(5)
    for deterministic in (True, False):
        for each in (loaded, policy):
            each.seed(1)
        many, _ = loaded.predict(observations, deterministic=deterministic)
        expected, _ = policy.predict(observations, deterministic=deterministic)
        map_leaves(lambda _, one, other: np.testing.assert_array_equal(one, other), space, many, expected)
    single, _ = loaded.predict(observations[0], deterministic=True)
    assert space.contains(map_leaves(lambda leaf, part: np.asarray(part, leaf.dtype), space, single))
    mean, _ = evaluate_policy(loaded, make, 2)
    assert np.isfinite(mean)


def test_ppo_trains_nested_actions():
    """Before an update's first step, acting is reproduced."""
    make = functools.partial(AnyEnv, OBSERVATIONS, copy.deepcopy(ACTION_SPACES["nested"]))
    ppo = PPO("auto", make_vec(make, 2), sequence_length=4, **STDS["held"], **TINY)
    reference.randomise(ppo.policy, scale=0.4)
    for of_one in iterate(ppo, 2):
        assert abs(of_one["train/approx_kl"]) < 1e-9
        assert of_one["train/clip_fraction"] == 0


@pytest.mark.parametrize("kind", ["half bounded", "scalar", "matrix of half precision", "unbounded"])
def test_what_is_sent_is_within_bounds_and_the_probability_is_of_what_was_sampled(kind):
    space = ACTION_SPACES[kind]
    policy = policy_for(space, log_std_init=1.0, rescale_actions=False)
    observations = observations_of(200)
    actions, _, log_probs, _ = policy.step(observations, policy.initial_state(200), np.ones(200, bool))
    sent = policy.clip_actions(actions)
    assert sent.dtype == space.dtype
    assert sent.shape == actions.shape == (200, *space.shape)
    assert (sent >= space.low).all()
    assert (sent <= space.high).all()
    inside = (actions > space.low) & (actions < space.high)
    np.testing.assert_array_equal(sent[inside], actions[inside].astype(space.dtype))
    assert inside.any()
    assert (~inside).any() == (kind != "unbounded")
    run = reference.run(policy, observations[:, None])
    expected = run.log_probs(actions.reshape(200, 1, -1).astype(np.float64))[:, 0]
    np.testing.assert_allclose(log_probs, expected, atol=1e-4)


def test_deviations_may_be_the_networks():
    """Free ones are the same in every state; the network's differ, start as asked, and reach the entropy's gradient."""
    space, observations = ACTION_SPACES["unbounded"], observations_of(1, 50)
    given = observations, np.zeros((1, 50, 2), np.float32)
    for std in ("free", "network"):
        fresh = MlpLnLstmPolicy(OBSERVATIONS, space, **SIZES, seed=0, log_std_init=-1.3, std=std)
        start, no_starts = fresh.initial_state(1), np.zeros((1, 50))
        entropies = fresh.evaluate_actions(*given, start, no_starts)[1]
        np.testing.assert_allclose(entropies, 2 * scipy.stats.norm.entropy(scale=np.exp(-1.3)), atol=0.05)
        reference.randomise(fresh)
        with tf.GradientTape() as tape:
            entropies = fresh.evaluate_actions(*given, start, no_starts)[1]
        variables = [variable for variable in fresh.trainable_variables if "log_std" in variable.path]
        gradients = tape.gradient(entropies, [variable.value for variable in variables])
        assert all(np.abs(gradient).max() > 0 for gradient in gradients)
        assert (np.ptp(entropies) > 0.1) == (std == "network")


# ------------------------------------------------------------------------------------------- exploration that is held


def deviations(policy, observations, steps):
    """How far the actions of some steps are from the mean, each `[steps, batch, ...]`, from the same state of zeros."""
    batch = len(observations)
    start, starts = policy.initial_state(batch), np.ones(batch, bool)
    mean, _ = policy.predict(observations, start, starts, deterministic=True)
    return np.stack([policy.step(observations, start, starts)[0] - mean for _ in range(steps)])


def test_held_noise_is_the_same_until_it_is_drawn_anew():
    policy = policy_for(ACTION_SPACES["unbounded"], std="gsde")
    observations = np.repeat(observations_of(1), 3, 0)
    first = deviations(policy, observations, 4)
    np.testing.assert_allclose(first, np.broadcast_to(first[0], first.shape), atol=1e-6)
    assert np.abs(first[0, 0] - first[0, 1]).min() > 1e-3  # each environment has a noise of its own
    policy.predict(observations)  # draws for itself alone
    np.testing.assert_allclose(deviations(policy, observations, 1)[0], first[0], atol=1e-6)
    policy.reset_noise(3)
    assert np.abs(deviations(policy, observations, 1)[0] - first[0]).min() > 1e-4
    assert deviations(policy, observations[:2], 1).shape == (1, 2, 2)  # another number of environments draws too


def test_only_what_explores_by_state_is_held():
    space = spaces.Dict(box=spaces.Box(-np.inf, np.inf, (2,)), bits=spaces.MultiBinary(8))
    policy = policy_for(space, std="gsde")
    observations = observations_of(4)
    start, starts = policy.initial_state(4), np.ones(4, bool)
    steps = [policy.step(observations, start, starts)[0] for _ in range(5)]
    for step in steps[1:]:
        np.testing.assert_array_equal(step["box"], steps[0]["box"])
        assert (step["bits"] != steps[0]["bits"]).any()


@pytest.mark.parametrize("std", ["free", "state-dependent"])
def test_other_noise_is_drawn_at_each_step(std):
    policy = policy_for(ACTION_SPACES["unbounded"], **STDS[std])
    steps = deviations(policy, observations_of(3), 4)
    assert len(np.unique(steps)) == steps.size


class Recording:
    """A real policy, with a note of when its noise was drawn: at which of its steps."""

    def __init__(self, policy):
        self.policy, self.steps, self.drawn = policy, 0, []
        self.initial_state, self.value, self.clip_actions = policy.initial_state, policy.value, policy.clip_actions

    def step(self, *arguments):
        self.steps += 1
        return self.policy.step(*arguments)

    def reset_noise(self, batch_size):
        assert batch_size == 2
        self.drawn.append(self.steps)
        self.policy.reset_noise(batch_size)


@pytest.mark.parametrize(
    ("freq", "expected"),
    [(-1, [0, 7, 14]), (1, list(range(21))), (3, [0, 3, 6, 7, 10, 13, 14, 17, 20]), (100, [0, 7, 14]), (None, [])],
)
def test_noise_is_drawn_every_few_steps_and_at_each_rollouts_start(freq, expected):
    policy = Recording(policy_for(ACTION_SPACES["unbounded"], std="gsde"))
    envs = make_vec(lambda: AnyEnv(OBSERVATIONS, ACTION_SPACES["unbounded"]), 2)
    runner = RolloutRunner(policy, envs, 7, 7, 0, freq)
    for _ in range(3):
        runner.run()
    assert policy.drawn == expected


def test_acting_over_all_noises_is_distributed_as_it_says():
    policy = policy_for(ACTION_SPACES["unbounded"], std="gsde", log_std_init=-0.5)
    observations = np.repeat(observations_of(1), 5_000, 0)
    start, starts = policy.initial_state(5_000), np.ones(5_000, bool)
    actions, _, log_probs, _ = policy.step(observations, start, starts)
    # Of a Gaussian: E log p is minus the entropy.
    entropy = policy.evaluate_actions(observations[:1, None], actions[:1, None], policy.initial_state(1), [[True]])[1]
    assert abs(log_probs.mean() + float(entropy[0, 0])) < 4 * log_probs.std() / np.sqrt(5_000)
    assert scipy.stats.normaltest(actions[:, 0]).pvalue > 1e-3


def test_exploration_teaches_its_deviations_and_not_the_features():
    policy = policy_for(ACTION_SPACES["unbounded"], std="gsde")
    observations = observations_of(2, 6)
    given = observations, np.ones((2, 6, 2), np.float32), policy.initial_state(2), np.zeros((2, 6))
    with tf.GradientTape() as tape:
        entropies = policy.evaluate_actions(*given)[1]
    variables = policy.trainable_variables
    gradients = tape.gradient(entropies, [variable.value for variable in variables])
    reached = [v.path for v, gradient in zip(variables, gradients, strict=True) if gradient is not None]
    assert reached == ["action_head/log_std"]
    assert np.ptp(entropies) > 1e-3  # though the standard deviation depends on the state


@pytest.mark.slow
def test_the_same_seed_explores_alike():
    def weights(seed):
        ppo = PPO(
            "auto",
            lambda: AnyEnv(OBSERVATIONS, ACTION_SPACES["tuple"]),
            **{**TINY, "num_envs": 2, "seed": seed},
            std="gsde",
            sde_sample_freq=5,
        )
        return ppo.learn(48).policy.get_weights()

    one, same, other = weights(4), weights(4), weights(5)
    for part, again in zip(one, same, strict=True):
        np.testing.assert_array_equal(part, again)
    assert any((part != differing).any() for part, differing in zip(one, other, strict=True))
