"""Each evaluated episode has its own seed, and depends on nothing else."""

import csv

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit

from rl_lnlstm import PPO, UserError, evaluate, evaluate_policy, record_episodes
from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.evaluation.episodes import EpisodeRunner
from rl_lnlstm.evaluation.evaluate import gathered, seeds_of_episodes
from rl_lnlstm.evaluation.plans import InOrder
from rl_lnlstm.lstm import kernel
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy
from tests.policies import reference


class Lottery(gym.Env):
    """Start, length and rewards come from the seed; the actions matter too."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 12))
        return self._observation(), {}

    def step(self, action):
        self.left -= 1
        reward = float(self.np_random.normal() + action)
        return self._observation(), reward, self.left == 0, False, {}

    def _observation(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


@pytest.fixture(scope="module")
def policy():
    policy = MlpLnLstmPolicy(Lottery.observation_space, Lottery.action_space, units=4, head_layers=(5,), seed=0)
    return reference.randomise(policy)


def alone(policy, seeds):
    """What a plain loop over one environment gives."""
    returns, lengths = [], []
    for seed in seeds:
        env, state, start, episode_return, length, ended = Lottery(), None, np.ones(1, bool), 0.0, 0, False
        observation, _ = env.reset(seed=seed)
        while not ended:
            action, state = policy.predict(observation, state, start, deterministic=True)
            observation, reward, ended, _, _ = env.step(action)
            start, episode_return, length = np.zeros(1, bool), episode_return + reward, length + 1
        returns.append(episode_return)
        lengths.append(length)
    return returns, lengths


@pytest.mark.parametrize("num_envs", [1, 3, 4, 8, 100])
def test_the_list_is_that_of_a_plain_loop_whatever_the_number_of_environments(policy, num_envs):
    result = evaluate(policy, Lottery, 13, seed=5, num_envs=num_envs)
    returns, lengths = alone(policy, result.seeds)
    assert result.lengths == lengths
    np.testing.assert_allclose(result.returns, returns)
    assert result.seeds == seeds_of_episodes(5, 13)
    assert len(set(result.seeds)) == 13
    assert result.repeatable


@pytest.mark.parametrize(("discrete", "std"), [(True, "free"), (False, "free"), (False, "gsde")])
def test_sampled_actions_come_from_the_episodes_seeds_too(discrete, std):
    actions = Lottery.action_space if discrete else gym.spaces.Box(-1, 1, (1,))

    class Mine(Lottery):
        action_space = actions

        def step(self, action):
            observation, reward, *rest = super().step(float(np.sum(action)))
            return observation, reward, *rest

    sampled = MlpLnLstmPolicy(Mine.observation_space, actions, units=4, head_layers=(5,), std=std, seed=0)
    results = [evaluate(sampled, Mine, 9, False, seed=1, num_envs=count) for count in (1, 4, 8)]
    for result in results:
        assert result.lengths == results[0].lengths
        np.testing.assert_allclose(result.returns, results[0].returns, rtol=1e-6)
    best = evaluate(sampled, Mine, 9, True, seed=1)
    assert best.lengths == results[0].lengths
    assert best.returns != results[0].returns, "or the actions were not sampled"


class Pictures(Lottery):
    observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def _observation(self):
        return self.np_random.integers(0, 256, (36, 36, 3), np.uint8)


@pytest.mark.parametrize("num_layers", [1, 2])  # in a graph with two
def test_convolutions_give_the_same_list_bit_for_bit(num_layers):
    options = {"units": 4, "encoder_layers": (8,), "num_layers": num_layers, "seed": 0}
    policy = CnnLnLstmPolicy(Pictures.observation_space, Pictures.action_space, **options)
    values = [
        [episode["values"] for episode in record_episodes(policy, Pictures, 3, seed=0)],
        evaluate(policy, Pictures, 3, seed=0, num_envs=3).returns,
        evaluate(policy, Pictures, 3, seed=0, num_envs=2).returns,
    ]
    assert values[1] == values[2]
    assert policy.acts_row_by_row == (kernel.available() and num_layers == 1)
    assert [len(part) for part in values[0]] == evaluate(policy, Pictures, 3, seed=0, num_envs=3).lengths


def test_every_way_in_gives_the_same_list(policy):
    expected = evaluate(policy, Lottery, 9, seed=2, num_envs=4)
    mean, std = evaluate_policy(policy, Lottery(), 9, seed=2)
    assert (mean, std) == pytest.approx((expected.mean, expected.std))
    returns, lengths = evaluate_policy(policy, Lottery, 9, seed=2, return_episode_rewards=True)
    assert (returns, lengths) == (pytest.approx(expected.returns), expected.lengths)
    episodes = record_episodes(policy, Lottery, 9, seed=2)
    assert [int(episode["seed"]) for episode in episodes] == expected.seeds
    np.testing.assert_allclose([episode["rewards"].sum() for episode in episodes], expected.returns)


def test_more_episodes_begin_with_the_same_ones_and_seeds_share_none(policy):
    few, many = (evaluate(policy, Lottery, count, seed=3, num_envs=2) for count in (3, 7))
    assert many.returns[:3] == few.returns
    assert not set(seeds_of_episodes(3, 100)) & set(seeds_of_episodes(4, 100))


def test_seeds_that_were_reported_replay_their_episodes(policy):
    first = evaluate(policy, Lottery, 6)
    again = evaluate(policy, Lottery, episode_seeds=[first.seeds[4], first.seeds[1]])
    assert again.returns == [first.returns[4], first.returns[1]]
    assert again.seeds == [first.seeds[4], first.seeds[1]]
    assert again.seed is None
    with pytest.raises(UserError, match="at least 1, got 0"):
        evaluate(policy, Lottery, episode_seeds=[])


def test_seeds_and_numbers_may_be_of_numpy(policy):
    expected = evaluate(policy, Lottery, episode_seeds=[3, 4])
    assert evaluate(policy, Lottery, episode_seeds=np.array([3, 4])) == expected
    assert evaluate(policy, Lottery, episode_seeds=range(3, 5)) == expected
    result = evaluate(policy, make_vec(Lottery, 2), np.int64(3), seed=np.int64(1))
    assert result.returns == evaluate(policy, make_vec(Lottery, 2), 3, seed=1).returns


@pytest.mark.parametrize("seeds", [[-1], ["a"], "12", [1.5], [True], 3])
@pytest.mark.parametrize("function", [evaluate, record_episodes])
def test_seeds_that_are_none_are_named(function, seeds, policy):
    with pytest.raises(UserError, match="episode_seeds must be a sequence, each an integer of at least 0"):
        function(policy, Lottery, episode_seeds=seeds)


def test_a_vector_env_cannot_be_seeded_one_by_one_and_the_result_says_so(policy):
    envs = make_vec(Lottery, 3)
    result = evaluate(policy, envs, 7, seed=0)
    assert result.seeds == [None] * 7
    assert "cannot be seeded one by one" in str(result)
    assert evaluate(policy, envs, 7, seed=0).returns == result.returns
    with pytest.raises(UserError, match="episode_seeds"):
        evaluate(policy, envs, episode_seeds=[1])


def test_a_trainer_acts_with_its_policy():
    with_trainer = PPO("auto", Lottery, num_envs=2, num_steps=8, num_minibatches=1, units=4, jit_compile=False)
    assert evaluate_policy(with_trainer, Lottery, 4, seed=1) == evaluate_policy(with_trainer.policy, Lottery, 4, seed=1)


# ----------------------------------------------------------------------------------------------- episodes without end


class Endless(Lottery):
    def reset(self, *, seed=None, options=None):
        observation = super().reset(seed=seed)
        self.left = -1 if int(self.np_random.integers(2)) else 3
        return observation


@pytest.mark.parametrize("num_envs", [1, 4])
def test_the_limit_of_steps_cuts_episodes_which_count(policy, num_envs):
    with pytest.warns(RunWarning, match=r"did not end within 20 steps .*TimeLimit"):
        result = evaluate(policy, Endless, 10, seed=0, max_steps=20, num_envs=num_envs)
    assert sorted(set(result.lengths)) == [3, 20]
    assert result.cut == [length == 20 for length in result.lengths]
    assert result.to_dict()["cut_episodes"] == sum(result.cut)
    assert "were cut" in str(result)
    assert result.returns == pytest.approx(evaluate(policy, Endless, 10, seed=0, max_steps=20).returns)


def test_there_is_a_limit_where_the_environment_has_none(policy, monkeypatch):
    monkeypatch.setattr("rl_lnlstm.evaluation.episodes.MAX_STEPS", 15)
    with pytest.warns(RunWarning, match="within 15 steps"):
        assert max(evaluate(policy, Endless, 6, seed=0).lengths) == 15
    assert max(evaluate(policy, lambda: TimeLimit(Endless(), 30), 6, seed=0).lengths) == 30


def test_a_limit_below_that_of_the_environment_is_named(policy):
    with pytest.warns(RunWarning, match=r"did not end within 20 steps .*less than the environment's time limit"):
        evaluate(policy, lambda: TimeLimit(Endless(), 30), 6, seed=0, max_steps=20)


def test_a_recorded_episode_that_was_cut_is_truncated(policy):
    with pytest.warns(RunWarning):
        episodes = record_episodes(policy, Endless, 6, seed=0, max_steps=20)
    for episode in episodes:
        assert bool(episode["truncated"]) == (len(episode["rewards"]) == 20)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episodes_of_a_vector_env_are_cut_too(policy, mode):
    """Its environments are reset together, when all of them wait."""
    with pytest.warns(RunWarning, match="did not end within 20 steps"):
        episodes = record_episodes(policy, make_vec(Endless, 3, autoreset_mode=mode), 31, seed=0, max_steps=20)
    lengths = [len(episode["rewards"]) for episode in episodes]
    assert len(lengths) == 31
    assert set(lengths) == {3, 20}
    assert [bool(episode["truncated"]) for episode in episodes] == [length == 20 for length in lengths]
    assert 8 < lengths.count(20) < 24, "half of the episodes are endless"
    for episode in episodes:
        assert (episode["h"][0] == 0).all(), "each one begins at its beginning"
    with pytest.warns(RunWarning):
        result = evaluate(policy, make_vec(Endless, 3, autoreset_mode=mode), 31, seed=0, max_steps=20)
    assert result.lengths == lengths
    assert result.returns == pytest.approx([episode["rewards"].sum() for episode in episodes])


@pytest.mark.filterwarnings("ignore::rl_lnlstm.errors.RunWarning")
def test_a_trainer_evaluates_without_a_time_limit(monkeypatch):
    monkeypatch.setattr("rl_lnlstm.evaluation.episodes.MAX_STEPS", 15)
    small = {"num_envs": 2, "num_steps": 8, "num_minibatches": 1, "units": 4, "jit_compile": False}
    with PPO("auto", Endless, **small, eval_interval=1, n_eval_episodes=5) as ppo:
        metrics = []
        ppo.learn(32, metrics.append)
        assert np.isfinite([row["eval/mean_reward"] for row in metrics]).all()
        with pytest.warns(RunWarning, match=r"did not end within 15 steps.*--max-steps"):
            ppo.evaluate(6)
        with pytest.warns(RunWarning, match="did not end within 9 steps"):
            ppo.evaluate(6, max_steps=9)


# ------------------------------------------------------------------------------------------------------- failures


class Fragile(Lottery):
    """Fails in a third of its episodes, which its seed decides."""

    def reset(self, *, seed=None, options=None):
        self.fails = seed is not None and seed % 3 == 0
        return super().reset(seed=seed)

    def step(self, action):
        if self.fails:
            raise ZeroDivisionError("a bug of mine")
        return super().step(action)


def test_an_episode_that_fails_is_run_again_with_another_seed(policy):
    results = []
    for num_envs in (1, 4):
        envs = make_vec(Fragile, num_envs, autoreset_mode=AutoresetMode.DISABLED, max_failures=50)
        seeds = seeds_of_episodes(0, 12)
        runner = EpisodeRunner(policy, envs, InOrder(seeds, num_envs))
        results.append(gathered(runner, True, 0))
        assert envs.failures >= sum(seed % 3 == 0 for seed in seeds) > 0
    one, four = results
    assert one.seeds == four.seeds
    assert one.returns == pytest.approx(four.returns)
    for seed, used in zip(seeds, one.seeds, strict=True):
        assert (seed == used) == (seed % 3 != 0)
        assert used % 3


# --------------------------------------------------------------------------------------------------------- results


def test_the_result_is_what_the_command_prints(policy, tmp_path):
    result = evaluate(policy, Lottery, 8, seed=1)
    data = result.to_dict()
    assert data["mean_reward"] == pytest.approx(np.mean(result.returns))
    assert data["median_reward"] == pytest.approx(np.median(result.returns))
    low, high = data["mean_confidence_interval"]
    assert low <= result.mean <= high
    assert data["episode_seeds"] == result.seeds
    assert f"over {len(result.returns)} episodes" in str(result)
    result.save_csv(tmp_path / "new" / "episodes.csv")
    with (tmp_path / "new" / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["seed"]) for row in rows] == result.seeds
    assert [float(row["return"]) for row in rows] == result.returns
    assert [int(row["length"]) for row in rows] == result.lengths
