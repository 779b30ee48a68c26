import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lnlstm.envs import RepeatPreviousEnv, RepeatPreviousVectorEnv, TMazeEnv, TMazeVectorEnv
from rl_lnlstm.errors import UserError

TASKS = [
    ("TMaze-v0", {}),
    ("TMaze-v0", {"corridor_length": 1}),
    ("TMaze-v0", {"corridor_length": 2, "time_limit": 5}),
    ("RepeatPrevious-v0", {}),
    ("RepeatPrevious-v0", {"num_symbols": 2, "delay": 1, "episode_length": 3}),
]


def returns_of(vector_env, act, seed=0):
    """Returns of one episode of each environment (all of them end); `act` maps (observations, time) to actions."""
    observations, _ = vector_env.reset(seed=seed)
    returns, running, time = np.zeros(vector_env.num_envs), np.ones(vector_env.num_envs, bool), 0
    while running.any():
        observations, rewards, terminated, truncated, _ = vector_env.step(act(observations, time))
        returns += running * rewards
        running &= ~(terminated | truncated)
        time += 1
    return returns


class MazeOracle:
    """Remembers the cue."""

    def __call__(self, observations, time):
        if time == 0:
            self.cues = 1 + observations[:, :2].argmax(axis=1)
        return np.where(observations[:, 3] == 1, self.cues, 0)


class RepeatOracle:
    """Remembers every symbol."""

    def __init__(self, delay):
        self.delay, self.seen = delay, []

    def __call__(self, observations, time):
        self.seen.append(observations.argmax(axis=1))
        return self.seen[time - self.delay] if time >= self.delay else np.zeros(len(observations), int)


@pytest.mark.parametrize(("env_id", "kwargs"), TASKS)
def test_gymnasiums_checker_accepts_the_single_environment(env_id, kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gym.make(env_id, **kwargs).unwrapped)


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize(("env_id", "kwargs"), TASKS)
def test_vectorised_equals_gymnasiums_sync_vector_env_over_single_ones(env_id, kwargs, mode):
    num_envs = 5
    vectorised = gym.make_vec(
        env_id, num_envs, vectorization_mode="vector_entry_point", autoreset_mode=mode.value, **kwargs
    )
    single = SyncVectorEnv([lambda: gym.make(env_id, **kwargs)] * num_envs, autoreset_mode=mode)
    assert vectorised.metadata["autoreset_mode"] is mode
    assert vectorised.observation_space == single.observation_space
    assert vectorised.action_space == single.action_space
    # Forward more often than not: the T-maze then sees arms, bumps and time limits.
    rng = np.random.default_rng(0)
    np.testing.assert_equal(vectorised.reset(seed=7), single.reset(seed=7))
    assert vectorised.np_random_seed == single.np_random_seed == (7, 8, 9, 10, 11)
    ends = np.zeros(2, int)
    for _ in range(150):
        actions = rng.integers(vectorised.single_action_space.n, size=num_envs) * (rng.random(num_envs) < 0.5)
        ours, theirs = vectorised.step(actions), single.step(actions)
        assert data_equivalence(ours, theirs, exact=True)
        ends += ours[2].sum(), ours[3].sum()
        done = ours[2] | ours[3]
        if mode is AutoresetMode.DISABLED and done.any():
            with pytest.raises(gym.error.ResetNeeded, match="reset_mask"):
                vectorised.step(actions)
            seeds = rng.integers(100, size=num_envs).tolist()
            np.testing.assert_equal(
                vectorised.reset(seed=seeds, options={"reset_mask": done}),
                single.reset(seed=seeds, options={"reset_mask": done}),
            )
    assert ends[0] > 0
    if "time_limit" in kwargs:
        assert ends[1] > 0


@pytest.mark.parametrize(("env_id", "kwargs"), TASKS)
def test_same_seed_same_episode(env_id, kwargs):
    def episode(env, seed):
        steps = [env.reset(seed=seed)[0]]
        while True:
            observation, *rest = env.step(1)
            steps.append((observation, *rest))
            if rest[1] or rest[2]:
                return steps

    first, second = gym.make(env_id, **kwargs), gym.make(env_id, **kwargs)
    for seed in range(3):
        np.testing.assert_equal(episode(first, seed), episode(second, seed))
    np.testing.assert_equal(episode(first, None), episode(second, None))  # the generators go on alike


@pytest.mark.parametrize("corridor_length", [1, 2, 10, 50])
def test_tmaze_who_remembers_the_cue_earns_exactly_one(corridor_length):
    env = TMazeVectorEnv(20, corridor_length=corridor_length, autoreset_mode="Disabled")
    observations, _ = env.reset(seed=0)
    oracle = MazeOracle()
    for time in range(corridor_length + 1):
        observations, rewards, terminated, truncated, _ = env.step(oracle(observations, time))
        assert not truncated.any()
        assert (terminated == (time == corridor_length)).all()
        assert (rewards == (time == corridor_length)).all()


def test_tmaze_shows_the_cue_once_and_then_nothing_that_depends_on_it():
    env = TMazeVectorEnv(40, corridor_length=4)
    observations, _ = env.reset(seed=0)
    assert set(observations.argmax(axis=1)) == {0, 1}
    seen = [env.step(np.zeros(40, int))[0] for _ in range(6)]
    assert all((observation == observation[0]).all() for observation in seen)
    assert [observation[0].argmax() for observation in seen] == [2, 2, 2, 3, 3, 3]


def test_tmaze_cues_are_fair():
    lefts = gym.make_vec("TMaze-v0", 2000).reset(seed=0)[0][:, 0]
    assert abs(lefts.mean() - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_tmaze_rewards_bumps_and_time_limit():
    env = TMazeEnv(corridor_length=2, bump_penalty=0.25, time_limit=6)
    cue = 1 + env.reset(seed=3)[0].argmax()
    wrong = 3 - cue
    assert env.step(wrong)[1:4] == (0.0, False, False)  # at the start every action leads into the corridor
    assert env.step(cue)[1:4] == (-0.25, False, False)  # a wall
    assert env.step(0)[1:4] == (0.0, False, False)
    observation, *rest = env.step(0)  # forward at the junction: a wall
    assert observation.tolist() == [0, 0, 0, 1]
    assert rest[:3] == [-0.25, False, False]
    assert env.step(wrong)[1:4] == (-1.0, True, False)
    env.reset(seed=3)
    assert [env.step(0)[2:4] for _ in range(6)] == [(False, False)] * 5 + [(False, True)]
    env.reset(seed=3)
    for _ in range(5):
        env.step(0)
    assert env.step(cue)[1:4] == (1.0, True, False)  # in time


def test_tmaze_no_memoryless_policy_has_a_positive_expectation():
    """Exact, by exhaustion: a stochastic memoryless policy is a mixture of deterministic ones whose action depends on
    the observation and on time, and there are finitely many of these. All are run, under both cues."""
    steps = 4
    policies = np.array(list(itertools.product(range(3), repeat=2 * steps))).reshape(-1, steps, 2)
    num_policies = len(policies)
    env = TMazeVectorEnv(2 * num_policies + 1000, corridor_length=2, time_limit=steps)
    cues = env.reset(seed=0)[0][:, :2].argmax(axis=1)
    of_policy = np.stack([np.flatnonzero(cues == cue)[:num_policies] for cue in (0, 1)])
    assert of_policy.shape == (2, num_policies)
    policy_of = np.zeros(env.num_envs, int)
    policy_of[of_policy] = np.arange(num_policies)

    def act(observations, time):
        # Two columns each: in the first step the observation is a cue, later the corridor or the junction.
        return policies[policy_of, min(time, steps - 1), observations.argmax(axis=1) % 2]

    expected = returns_of(env, act)[of_policy].mean(axis=0)
    assert expected.max() == 0.0
    assert returns_of(env, MazeOracle()).min() == 1.0


def test_repeat_previous_who_remembers_earns_exactly_one():
    assert (returns_of(RepeatPreviousVectorEnv(10), RepeatOracle(4)) == 1.0).all()
    shorter = RepeatPreviousVectorEnv(10, num_symbols=3, delay=2, episode_length=9)
    np.testing.assert_allclose(returns_of(shorter, RepeatOracle(2)), 1.0, rtol=1e-14)


@pytest.mark.parametrize("delay", [0, 3, 5])
def test_repeat_previous_another_delay_is_worth_chance(delay):
    returns = returns_of(RepeatPreviousVectorEnv(500), RepeatOracle(delay))
    standard_error = np.sqrt(0.25 * 0.75 / (500 * 32))
    assert abs(returns.mean() - 0.25) < 4 * standard_error


def test_repeat_previous_every_memoryless_policy_expects_exactly_chance():
    """Exact, by exhaustion: every deterministic policy of observation and time, on every sequence of symbols once."""
    num_envs, steps = 100, 3
    env = RepeatPreviousVectorEnv(num_envs, num_symbols=2, delay=1, episode_length=steps, autoreset_mode="Disabled")
    shown = [env.reset(seed=0)[0]] + [env.step(np.zeros(num_envs, int))[0] for _ in range(steps)]
    sequences = np.stack(shown[:steps]).argmax(axis=2).T
    distinct, representatives = np.unique(sequences, axis=0, return_index=True)
    assert len(distinct) == 2**steps
    for policy in itertools.product(itertools.product(range(2), repeat=2), repeat=steps):
        returns = returns_of(env, lambda o, t, policy=policy: np.array(policy[t])[o.argmax(axis=1)])
        assert returns[representatives].mean() == 0.5


def test_repeat_previous_symbols_are_uniform_and_independent():
    env = RepeatPreviousVectorEnv(500)
    shown = [env.reset(seed=0)[0]] + [env.step(np.zeros(500, int))[0] for _ in range(36)]
    symbols = np.stack(shown).argmax(axis=2)
    pairs = np.bincount((4 * symbols[4:] + symbols[:-4]).ravel(), minlength=16)
    total = pairs.sum()
    assert (abs(pairs / total - 1 / 16) < 4 * np.sqrt(1 / 16 * 15 / 16 / total)).all()


@pytest.mark.parametrize(
    ("env_id", "kwargs", "expected"),
    [
        ("TMaze-v0", {"corridor_length": 0}, r"corridor_length=0: expected an integer of at least 1"),
        ("TMaze-v0", {"corridor_length": 2.0}, r"corridor_length=2.0: expected an integer"),
        ("TMaze-v0", {"corridor_length": 5, "time_limit": 5}, r"time_limit=5: expected an integer of at least 6"),
        ("TMaze-v0", {"bump_penalty": -0.1}, r"bump_penalty=-0.1: expected a finite number of at least 0"),
        ("RepeatPrevious-v0", {"delay": 0}, r"delay=0: expected an integer of at least 1"),
        ("RepeatPrevious-v0", {"num_symbols": True}, r"num_symbols=True: expected an integer of at least 2"),
        ("RepeatPrevious-v0", {"episode_length": 4}, r"episode_length=4: expected an integer of at least 5"),
    ],
)
def test_bad_arguments_are_named(env_id, kwargs, expected):
    with pytest.raises(UserError, match=expected):
        gym.make(env_id, **kwargs)
    with pytest.raises(UserError, match=expected):
        gym.make_vec(env_id, 2, vectorization_mode="vector_entry_point", **kwargs)


@pytest.mark.parametrize(("env_class", "action"), [(TMazeEnv, 3), (TMazeEnv, -1), (RepeatPreviousEnv, 0.5)])
def test_an_invalid_action_raises(env_class, action):
    env = env_class()
    env.reset()
    with pytest.raises(gym.error.InvalidAction, match=str(action)):
        env.step(action)


def test_bad_calls_of_the_vectorised_environment():
    env = TMazeVectorEnv(3)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(3, int))
    with pytest.raises(UserError, match=r"num_envs=3.*got 2"):
        env.reset(seed=[1, 2])
    with pytest.raises(UserError, match="reset_mask"):
        env.reset(options={"reset_mask": [True, False, True]})
    env.reset()
    with pytest.raises(gym.error.InvalidAction, match=r"expected 3 integers in 0\.\.2"):
        env.step(np.zeros(2, int))


@pytest.mark.parametrize("env_id", ["TMaze-v0", "RepeatPrevious-v0"])
def test_pictures_change_as_the_episode_goes_on(env_id):
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    frames = [env.render()]
    for _ in range(8):
        env.step(0)
        frames.append(env.render())
    assert {(frame.dtype, frame.ndim, frame.shape[2]) for frame in frames} == {(np.dtype("uint8"), 3, 3)}
    assert len({frame.tobytes() for frame in frames}) > 3
    vectorised = gym.make_vec(env_id, 2, render_mode="rgb_array")
    vectorised.reset(seed=[0, 1])
    np.testing.assert_equal(vectorised.render()[0], frames[0])
