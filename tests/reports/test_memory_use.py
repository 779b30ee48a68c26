"""`memory_use`: the gradient agrees with finite differences, and a cut memory holds what it should."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rl_lnlstm import PPO, Evaluation, MemoryUse, UserError, evaluate, memory_use
from rl_lnlstm.envs.tasks.tmaze import TMazeEnv
from rl_lnlstm.policies.factory import policy_for
from rl_lnlstm.reports.cut_memory import CutMemory
from rl_lnlstm.reports.gradients import gradient_norms
from rl_lnlstm.reports.memory_use import default_cuts
from rl_lnlstm.reports.page import finding
from tests.any_space import OBSERVATION_SPACES
from tests.envs.masked_env import Switches
from tests.policies import reference
from tests.reports.recordings import environment, policy, recorded

BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)


def differences(acting, observations, actions):
    """d log pi(a_t) / d x_s by central differences in float64, `[t, s, components]`."""
    epsilon, length = 1e-5, len(observations)
    result = np.zeros((length, *observations.shape))
    for place in np.ndindex(observations.shape):
        moved = [observations.copy() for _ in range(2)]
        for sign, array in zip((1, -1), moved, strict=True):
            array[place] += sign * epsilon
        high, low = (reference.run(acting, array[np.newaxis]).log_probs(actions[np.newaxis])[0] for array in moved)
        result[:, *place] = (high - low) / (2 * epsilon)
    return result


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("space", [DISCRETE, spaces.Box(-1, 1, (2,))], ids=["discrete", "box"])
def test_the_gradient_is_that_of_finite_differences(space, normalized):
    acting = policy(BOX, space, normalize_observations=normalized)
    scale = np.ones(3)
    if normalized:
        acting.update_statistics(np.random.default_rng(0).normal(0.1, [1, 2, 3], (99, 3)), np.ones(99, bool))
        scale = np.sqrt(acting.observation_statistics.variance.numpy() + 1e-8)
    episode = recorded(acting)
    observations, length = episode["observations"].astype(np.float64), 6
    noise = acting.action_head.noise(np.random.default_rng(5), length)
    run = reference.run(acting, observations[np.newaxis])
    actions = episode["actions"] if space is DISCRETE else run.actor[0] + np.exp(run.log_std) * noise
    expected = np.linalg.norm(differences(acting, observations, actions) * scale, axis=-1)
    got = gradient_norms(acting, episode, 8, np.random.default_rng(5))
    assert got.shape == (9,)
    assert np.isnan(got[length:]).all(), "no observation is that far back"
    for lag in range(length):
        mean = np.mean([expected[t, t - lag] for t in range(lag, length)])
        np.testing.assert_allclose(got[lag], mean, rtol=2e-3, err_msg=f"lag {lag}")


def test_windows_that_begin_in_the_episode_give_the_same_gradient():
    """The recorded state takes the place of what was before the window."""
    acting = policy(BOX, DISCRETE, num_layers=2, shared_lstm=False, previous_action=True, previous_reward=True)
    episode = recorded(acting, 12)
    whole, short = (gradient_norms(acting, episode, lag, np.random.default_rng(0)) for lag in (11, 2))
    np.testing.assert_allclose(short, whole[:3], rtol=1e-4)
    assert (whole > 0).all()


def test_of_long_episodes_some_actions_are_differentiated():
    acting = policy(BOX, DISCRETE)
    norms = gradient_norms(acting, recorded(acting, 80), 100, np.random.default_rng(0))
    assert np.isfinite(norms[:80]).sum() > 40
    assert np.isfinite(norms[79]), "the last action has all lags"


KINDS = {
    **{name: (OBSERVATION_SPACES[name], DISCRETE, {}) for name in ("discrete", "multi-discrete", "image", "symbols")},
    "nested": (OBSERVATION_SPACES["nested"], DISCRETE, {}),
    "multi": (BOX, spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, -1]]), {}),
    "bits": (BOX, spaces.MultiBinary([2, 2]), {}),
    "gsde": (BOX, spaces.Box(-2, 3, (2,)), {"std": "gsde"}),
    "network": (BOX, spaces.Box(-2, 3, ()), {"std": "network", "num_layers": 2, "residual": True}),
    "dict": (BOX, spaces.Dict(arm=spaces.Box(-1, 1, (2,)), go=spaces.Tuple([DISCRETE])), {"previous_action": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_policy_is_measured(kind):
    observation_space, action_space, options = KINDS[kind]
    acting = policy_for(observation_space)(observation_space, action_space, units=4, seed=0, **options)
    memory = memory_use(acting, environment(acting), 2, deterministic=kind != "gsde", seed=0, cuts=[1, 4], max_lag=4)
    assert memory.gradient_norms.shape == (2, 5)
    assert (memory.gradient_norms > 0).all(), "a new policy uses everything a little"
    assert list(memory.cut_scores) == [1, 4]
    low, high = np.array(memory.gradient_intervals).T
    assert (low <= memory.gradient).all()
    assert (memory.gradient <= high).all()


@pytest.mark.filterwarnings("ignore:an episode:rl_lnlstm.errors.RunWarning")
def test_illegal_actions_are_never_taken():
    acting = policy(spaces.Box(-1, 1, (1,)), spaces.MultiBinary(3))
    made = functools.partial(Switches, (6,), True)  # raises if an action is illegal
    memory = memory_use(acting, made, 2, seed=0, cuts=[2], max_steps=8)
    assert memory.cut_scores[2].lengths == [8, 8]
    assert (memory.gradient_norms[:, 0] > 0).all()


def test_actions_depend_on_what_was_observed_since_the_cut():
    acting, every = policy(BOX, DISCRETE, shared_lstm=False), 3
    rng = np.random.default_rng(0)
    observations = rng.uniform(-1, 1, (9, 2, 3)).astype(np.float32)
    other = observations.copy()
    other[:6] = rng.uniform(-1, 1, (6, 2, 3))

    def states(observations):
        cut, state, found = CutMemory(acting, every), None, []
        for t, now in enumerate(observations):
            starts = np.array([t == 0, t in (0, 4)])  # the second environment begins an episode at 4
            _, state = cut.predict(now, state, starts, deterministic=True)
            found.append(np.concatenate(state[:2], -1))
        return np.stack(found)

    one, two = states(observations), states(other)
    np.testing.assert_array_equal(one[6:, 0], two[6:, 0])  # cut at 0, 3, 6
    assert (one[5] != two[5]).any(-1).all()
    assert (one[6, 1] != two[6, 1]).any(), "in the second environment, cuts are at 0, 3, 4, 7"
    np.testing.assert_array_equal(one[7:, 1], two[7:, 1])


@pytest.fixture(scope="module")
def solver():
    """A policy that solves a T-maze with a corridor of 2."""
    options = {"num_envs": 16, "num_steps": 32, "units": 32, "learning_rate": 3e-3, "ent_coef": 0.01, "seed": 0}
    with PPO("auto", "TMaze-v0", env_kwargs={"corridor_length": 2}, jit_compile=False, **options) as ppo:
        return ppo.learn(10_000).policy


def test_a_maze_needs_a_memory_of_its_length(solver):
    memory = memory_use(solver, lambda: TMazeEnv(corridor_length=2), 40, seed=0)
    assert memory.score.mean == 1
    assert list(memory.cut_scores) == [1, 2, 3]
    for every in (1, 2):
        assert memory.cut_scores[every].mean < 0.5, "chance is 0"
    assert memory.cut_scores[3].returns == memory.score.returns
    assert memory.harmless_cut == 3
    assert memory.gradient[2] > 0, "the cue is 2 steps before the turn"


@pytest.mark.filterwarnings("ignore:an episode:rl_lnlstm.errors.RunWarning")
def test_all_evaluations_run_the_episodes_of_the_seed():
    with gym.make("CartPole-v1") as env:
        acting = policy(env.observation_space, env.action_space)
    options = {"seed": 3, "max_steps": 9, "cuts": [9, 2]}
    one, other = (memory_use(acting, "CartPole-v1", 5, num_envs=count, **options) for count in (1, 4))
    expected = evaluate(acting, "CartPole-v1", 5, seed=3, max_steps=9)
    assert one.score == other.score == expected
    assert list(one.cut_scores) == [2, 9]
    assert one.cut_scores == other.cut_scores
    assert one.cut_scores[9] == expected, "no episode has more than 9 steps"
    np.testing.assert_allclose(one.gradient_norms, other.gradient_norms, rtol=1e-4)


def scored(*returns):
    count = len(returns)
    return Evaluation([float(value) for value in returns], [9] * count, list(range(count)), [False] * count, True)


@pytest.mark.parametrize(("lower", "harmless"), [((), 1), ((1, 2), 4), ((2,), 4), ((1, 2, 4), None)])
def test_the_cut_that_does_no_harm(lower, harmless):
    cuts = {every: scored(*([0, 1] if every in lower else [9, 10]) * 10) for every in (1, 2, 4)}
    memory = MemoryUse(np.ones((20, 3)), scored(*[9, 10] * 10), cuts)
    assert memory.harmless_cut == harmless
    assert "every 4 steps: mean" in str(memory)
    assert ("does not fall" in finding(memory)) == (harmless is not None)
    assert ("falls from 9.50 to 0.50" in finding(memory)) == bool(lower)


def test_cuts_by_default():
    assert default_cuts(5) == [1, 2, 3, 4, 5]
    assert default_cuts(500) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_wrong_arguments_are_named():
    acting = policy(BOX, DISCRETE)
    for arguments, message in (
        ({"cuts": [0]}, "cuts must be a sequence, each an integer of at least 1"),
        ({"cuts": []}, "cuts must have at least one number of steps"),
        ({"max_lag": -1}, "max_lag must be"),
        ({"n_eval_episodes": 0}, "number of episodes must be at least 1"),
    ):
        with pytest.raises(UserError, match=message):
            memory_use(acting, environment(acting), seed=0, **{"n_eval_episodes": 1, **arguments})


class Other:
    """A policy of another package."""

    observation_space, action_space = BOX, DISCRETE

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        return DISCRETE.sample(), state


def test_policies_of_other_packages_are_refused():
    with pytest.raises(UserError, match="policy must be a RecurrentPolicy or a PPO, got Other"):
        memory_use(Other(), "CartPole-v1")
