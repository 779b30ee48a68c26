"""`evaluate_policy` runs whole episodes without bias, in every autoreset mode."""

import contextlib
import itertools
import sys
from typing import ClassVar

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import scipy.stats
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import ClipReward, TimeLimit

from rl_lnlstm import UserError, evaluate, evaluate_policy
from rl_lnlstm.envs import make_vec
from rl_lnlstm.evaluation.environments import make_evaluation_envs
from rl_lnlstm.evaluation.episodes import EpisodeRunner, has_time_limit
from rl_lnlstm.evaluation.plans import EvenlySpread, InOrder
from rl_lnlstm.evaluation.statistics import bootstrap_interval, interquartile_mean
from rl_lnlstm.evaluation.video import rgb
from rl_lnlstm.policies import MlpLnLstmPolicy

# Workers then need not import this module, and TensorFlow with it.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Countdown(gym.Env):
    """Episodes of a fixed length; pays the number of the step; observes whether it is the first one."""

    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        self.taken += 1
        return np.zeros(1, np.float32), float(self.taken), False, self.taken == self.length, {}


class Recorder:
    """Acts at random, and holds the flags it is given against the observations."""

    observation_space, action_space = Countdown.observation_space, Countdown.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        np.testing.assert_array_equal(observation[:, 0] == 1, episode_start)
        return np.zeros(len(observation), int), state


@pytest.mark.parametrize("mode", AutoresetMode)
def test_every_mode_gives_the_same_episodes(mode):
    envs = SyncVectorEnv([lambda n=n: Countdown(n) for n in (1, 2, 5)], autoreset_mode=mode)
    returns, lengths = evaluate_policy(Recorder(), envs, 6, return_episode_rewards=True)
    assert sorted(lengths) == [1, 1, 2, 2, 5, 5], "short episodes do not count more often"
    assert sorted(returns) == [1, 1, 3, 3, 15, 15]


class Gamble(Countdown):
    """Long episodes pay, short ones do not, and chance says which comes."""

    def __init__(self):
        super().__init__(1)

    def reset(self, *, seed=None, options=None):
        observation = super().reset(seed=seed)
        self.length = int(self.np_random.choice([1, 30]))
        return observation


def test_short_episodes_count_no_more_often_than_long_ones_in_a_vector_env():
    returns, lengths = evaluate_policy(Recorder(), make_vec(Gamble, 5), 23, seed=7, return_episode_rewards=True)
    expected = []
    for index, episodes in enumerate((4, 4, 5, 5, 5)):
        env = Gamble()
        for number in range(episodes):
            env.reset(seed=7 + index if number == 0 else None)
            expected.append(env.length)
    assert sorted(lengths) == sorted(expected)
    assert set(lengths) == {1, 30}
    assert returns == [length * (length + 1) / 2 for length in lengths]


def test_mean_and_standard_deviation():
    envs = SyncVectorEnv([lambda n=n: Countdown(n) for n in (1, 2)])
    assert evaluate_policy(Recorder(), envs, 2) == (2.0, 1.0)


def test_an_environment_an_id_and_a_function_will_do():
    policy = MlpLnLstmPolicy(gym.make("CartPole-v1").observation_space, gym.spaces.Discrete(2), units=4, seed=0)
    results = {
        evaluate_policy(policy, env, 3, seed=5)
        for env in ("CartPole-v1", gym.make("CartPole-v1"), lambda: gym.make("CartPole-v1"))
    }
    assert len(results) == 1


def test_mistakes():
    with pytest.raises(UserError, match="number of episodes must be at least 1, got 0"):
        evaluate_policy(Recorder(), lambda: Countdown(1), 0)
    with pytest.raises(UserError, match=r"made for observation space .* but the environment has"):
        evaluate_policy(Recorder(), "CartPole-v1")


@pytest.mark.parametrize("count", [1, 3, 4, 10, 101])
def test_the_interquartile_mean_is_scipys_trimmed_one(count):
    returns = np.random.default_rng(count).standard_cauchy((2, count))
    np.testing.assert_allclose(interquartile_mean(returns), scipy.stats.trim_mean(returns, 0.25, axis=-1))


def test_the_bootstrap_interval_is_scipys():
    returns = np.random.default_rng(0).exponential(size=60)
    theirs = scipy.stats.bootstrap((returns,), np.mean, method="percentile", n_resamples=20_000, rng=0)
    ours = bootstrap_interval(returns, lambda drawn: drawn.mean(-1), resamples=20_000)
    np.testing.assert_allclose(ours, theirs.confidence_interval, rtol=0.02)
    assert bootstrap_interval([500.0] * 20) == (500.0, 500.0)


def test_the_stratified_interval_counts_all_resamples():
    """Two runs in each of three environments have only 64 resamples, which are listed here."""
    scores = np.array([[0.0, 10.0, 300.0], [3.0, 17.0, 200.0]])
    pairs = [[(a, b) for a in column for b in column] for column in scores.T]
    means = [scipy.stats.trim_mean(sum(drawn, ()), 0.25) for drawn in itertools.product(*pairs)]
    expected = np.quantile(means, [0.1, 0.9])
    np.testing.assert_allclose(bootstrap_interval(scores, confidence=0.8, resamples=50_000), expected, atol=0.5)
    constant = np.tile([1.0, 100.0], (6, 1))
    assert bootstrap_interval(constant) == (50.5, 50.5), "each environment has as many runs in every resample"


@pytest.mark.peers
def test_an_id_is_evaluated_in_what_has_the_policys_observations():
    """Atari's vector implementation stacks and resizes frames, its single environments do not."""
    pytest.importorskip("ale_py")
    frames = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    for trained_on, kwargs, expected in (
        (frames, {}, (4, 84, 84)),
        (None, {}, (210, 160, 3)),
        (None, {"stack_num": 1}, (1, 84, 84)),  # which single environments do not take
    ):
        envs = make_evaluation_envs("ALE/Pong-v5", 1, trained_on=trained_on, env_kwargs=kwargs)
        assert envs.single_observation_space.shape == expected
        envs.close()
    with pytest.raises(UserError, match=r"does not take env_kwargs.*no_such_argument"):
        make_evaluation_envs("ALE/Pong-v5", 1, env_kwargs={"no_such_argument": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": None}, "policy must have predict"),
        ({"policy": lambda observation: 0}, "policy must have predict"),
        ({"n_eval_episodes": 1.5}, "n_eval_episodes must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1 or None, got 0"),
    ],
    ids=["none", "function", "episodes", "seed", "steps"],
)
def test_arguments_of_other_types_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        evaluate_policy(**{"policy": Recorder(), "env": lambda: Countdown(3), **arguments})


def test_a_vec_env_of_stable_baselines3_is_refused_with_the_way_out():
    class DummyVecEnv:  # has the methods of theirs
        def reset(self): ...
        def step_async(self, actions): ...
        def step_wait(self): ...
        def env_method(self, name): ...

    with pytest.raises(UserError, match=r"^env is a DummyVecEnv of Stable-Baselines3.* id, or a function.* use stable"):
        evaluate_policy(Recorder(), DummyVecEnv())


@pytest.mark.peers
def test_a_policy_is_evaluated_in_a_real_vec_env_by_their_function():
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env").DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2)
    policy = MlpLnLstmPolicy(vec_env.observation_space, vec_env.action_space, units=4, seed=0)
    with pytest.raises(UserError, match="env is a DummyVecEnv of Stable-Baselines3") as refused:
        evaluate_policy(policy, vec_env)
    assert "stable_baselines3.common.evaluation.evaluate_policy" in str(refused.value)
    theirs = pytest.importorskip("stable_baselines3.common.evaluation").evaluate_policy
    mean, _ = theirs(policy, vec_env, n_eval_episodes=4, warn=False)
    assert 8 <= mean <= 500


@pytest.mark.parametrize(("n_eval_episodes", "num_envs"), [(8, 4), (7, 4), (2, 4), (5, 1)])
def test_every_episode_has_a_number_of_its_own(n_eval_episodes, num_envs):
    """Files of recorded episodes are named after them."""
    envs = make_vec(lambda: Countdown(3), num_envs)
    plan = EvenlySpread(n_eval_episodes, num_envs, 0)
    numbers = [episode.number for episode in EpisodeRunner(Recorder(), envs, plan)]
    assert sorted(numbers) == list(range(n_eval_episodes))


@pytest.mark.parametrize("limit", [None, 3])
def test_returns_are_not_clipped_where_an_episode_is_cut(limit):
    result = evaluate(Recorder(), lambda: ClipReward(Countdown(4), -1, 1), 2, seed=0, max_steps=limit)
    assert result.returns == [10.0 if limit is None else 6.0] * 2
    assert result.cut == [limit is not None] * 2


@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("how", ["sync", "async", "SyncVectorEnv", "AsyncVectorEnv"])
def test_time_limits_are_found_in_other_processes_too(how, limited):
    def make():
        return gym.wrappers.FlattenObservation(TimeLimit(Countdown(4), 9) if limited else Countdown(4))

    kinds = {"SyncVectorEnv": SyncVectorEnv, "AsyncVectorEnv": AsyncVectorEnv}
    made = kinds[how]([make] * 2) if how in kinds else make_vec(make, 2, vectorization=how)
    with contextlib.closing(make_vec(made)) as envs:
        if how == "AsyncVectorEnv":
            envs.unwrapped.reset_async()  # as after Ctrl-C
        assert has_time_limit(envs) == limited


def test_a_time_limit_can_be_turned_off():
    with contextlib.closing(
        make_vec("CartPole-v1", 1, vectorization="sync", env_kwargs={"max_episode_steps": -1})
    ) as envs:
        assert not has_time_limit(envs)


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (np.full((2, 2, 3), 7, np.int64), None),
        (np.full((2, 2, 4), 7.0), None),
        (np.full((2, 2, 3), 0.5), "whole numbers from 0 to 255, got others in an array of float64"),
        (np.full((2, 2, 3), 256), "whole numbers"),
        (np.zeros((2, 2)), r"RGB \[height, width, 3\], got shape \[2, 2\]"),
    ],
)
def test_pictures_are_bytes_or_named(picture, problem):
    if problem is None:
        np.testing.assert_array_equal(rgb(picture), np.full((2, 2, 3), 7, np.uint8))
    else:
        with pytest.raises(UserError, match=problem):
            rgb(picture)


def test_the_pictures_of_an_episode_that_is_cut_belong_to_it():
    calls = []

    class Film:
        captioned = False

        def add(self, number, seed, picture, caption):
            calls.append((number, caption[0].partition("step ")[2].partition("   return")[0]))

        def end(self, number, episode_return):
            calls.append((number, "end"))

    class Filmed(Countdown):
        metadata: ClassVar = {"render_modes": ["rgb_array"]}
        render_mode = "rgb_array"

        def render(self):
            return np.zeros((2, 2, 3), np.uint8)

    envs = make_vec(lambda: Filmed(5), 1, autoreset_mode="DISABLED")
    for _ in EpisodeRunner(Recorder(), envs, InOrder([3, 4], 1), max_steps=2, video=Film()):
        pass
    of_one = ["0", "1", "2   end of the episode", "end"]
    assert calls == [(number, what) for number in (0, 1) for what in of_one]
