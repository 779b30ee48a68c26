"""Environments that fail are replaced, and results are as if the aborted episodes had never happened.

Also updates that are not finite.
"""

import functools
import logging
import re
from typing import NamedTuple

import numpy as np
import pytest

from rl_lnlstm import PPO, EnvironmentFailure, TrainingFailure, evaluate_policy
from rl_lnlstm.envs import make_vec
from rl_lnlstm.policies import MlpLnLstmPolicy
from rl_lnlstm.ppo.advantages import generalized_advantages
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.ppo.rollout import Rollout
from rl_lnlstm.seeding import derived_seed
from tests.failing_env import SURVIVED, SURVIVED_IN_WORKERS, FailingEnv, Failure, episode_length, failing_envs
from tests.policies.scripted_env import MODES
from tests.ppo.tiny_ppo import iterate

ROLLOUTS, NUM_STEPS, SEQUENCE_LENGTH = 3, 12, 4
TINY = {
    **{"num_minibatches": 1, "update_epochs": 1, "anneal_lr": False, "seed": 3, "jit_compile": False},
    **{"units": 3, "encoder_layers": (3,), "head_layers": (3,), "num_steps": NUM_STEPS},
}
PLANS = {"sync": SURVIVED, "async": SURVIVED_IN_WORKERS}
NEXT_STEP, SAME_STEP, _ = MODES
LOSSES = [f"train/{name}" for name in ("loss", "value_loss", "entropy_loss", "approx_kl")]


class Play(NamedTuple):
    rollouts: list
    failures: int

    def column(self, name):
        return np.concatenate([getattr(rollout, name) for rollout in self.rollouts])


@functools.cache
def play(vectorization, mode):
    envs = failing_envs(PLANS[vectorization], vectorization, mode)
    policy = MlpLnLstmPolicy(envs.single_observation_space, envs.single_action_space, units=3, seed=1)
    runner = RolloutRunner(policy, envs, NUM_STEPS, SEQUENCE_LENGTH, seed=0)
    played = Play([runner.run() for _ in range(ROLLOUTS)], envs.failures)
    envs.close()
    return played


each_mode = pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
both = pytest.mark.parametrize("vectorization", ["sync", "async"])


def only_the_broken_episode_is_left_out(vectorization, mode):
    played, plan = play(vectorization, mode), PLANS[vectorization]
    observations, valid, ends = (played.column(name) for name in ("observations", "valid", "episode_ends"))
    assert played.failures == len(plan) - 1, "each environment but the first fails once"
    for env, failure in enumerate(plan):
        seeds = observations[:, env, 0]
        anew = seeds != env  # the environment that was made instead
        broken_in = 0 if failure is None else np.flatnonzero(anew)[0] - 1
        left_out = np.zeros(len(valid), bool)
        if failure is not None and failure.step != 0:
            left_out = ~anew & (observations[:, env, 1] == failure.episode)
            left_out &= np.arange(len(valid)) // NUM_STEPS == broken_in // NUM_STEPS
            assert left_out.any()
            assert ends[broken_in, env], "nothing is bootstrapped past it"
        resets = np.zeros(len(valid), bool)
        if mode is NEXT_STEP:
            resets[1:] = ends[:-1, env] & (np.arange(len(valid) - 1) != (broken_in if left_out.any() else -1))
        np.testing.assert_array_equal(valid[:, env], ~(left_out | resets), err_msg=str(failure))


def what_is_valid_is_what_happens_without_failures(vectorization, mode):
    """Valid steps equal those of an environment that does not fail. A new environment begins with its first episode."""
    played, plan = play(vectorization, mode), PLANS[vectorization]
    valid = played.column("valid")
    for env, failure in enumerate(plan):
        told = played.column("observations")[valid[:, env], env].tolist()
        expected, seed, episode, time = [], env, 0, 0
        counted = iter(told)
        for observation in counted:
            if failure is not None and seed == env and observation[0] != env:
                seed, episode, time = observation[0], 0, 0
            expected.append([seed, episode, np.float32(time / 10)])
            time += 1
            if time == episode_length(int(seed), episode):
                episode, time = episode + 1, 0
        np.testing.assert_array_equal(np.array(told), np.array(expected, np.float32), err_msg=str(failure))
        assert failure is None or seed != env
        starts = played.column("episode_starts")[valid[:, env], env]
        np.testing.assert_array_equal(starts, [time == 0 for _, _, time in expected])


def only_whole_episodes_are_counted(vectorization, mode):
    played = play(vectorization, mode)
    for env in range(len(PLANS[vectorization])):
        counted = [e for rollout in played.rollouts for e in rollout.episodes if e.environment == env]
        observations = played.column("observations")[:, env]
        ended = played.column("episode_ends")[:, env] & played.column("valid")[:, env]
        assert len(counted) == ended.sum()
        for (seed, number, _), episode in zip(observations[ended].astype(int), counted, strict=True):
            length = episode_length(seed, number)
            assert episode.length == length
            if seed == env:  # of the others, the whole seed is not in the observation
                earned = [np.sin(seed + 7 * number + 3 * time) for time in range(1, length + 1)]
                assert episode.episode_return == pytest.approx(sum(earned))


def advantages_do_not_see_what_is_left_out(vectorization, mode):
    played = play(vectorization, mode)
    assert not played.column("valid").all()
    for rollout in played.rollouts:
        advantages, *others = (
            generalized_advantages(
                np.where(rollout.valid, rollout.rewards, garbage),
                np.where(rollout.valid, rollout.values, garbage),
                rollout.next_values,
                rollout.terminations,
                rollout.episode_ends,
                0.9,
                0.8,
            )[rollout.valid]
            for garbage in (0, 1e6, -1e6)
        )
        for other in others:
            np.testing.assert_array_equal(advantages, other)


@both
@each_mode
def test_a_broken_episode_has_no_influence(vectorization, mode):
    """All checks of a play in one test, so that one process plays it, and only once."""
    only_the_broken_episode_is_left_out(vectorization, mode)
    what_is_valid_is_what_happens_without_failures(vectorization, mode)
    only_whole_episodes_are_counted(vectorization, mode)
    advantages_do_not_see_what_is_left_out(vectorization, mode)


@each_mode
def test_workers_fail_as_environments_in_this_process_do(mode):
    sync, workers = play("sync", mode), play("async", mode)
    for name in ("observations", "rewards", "valid", "episode_starts", "terminations", "episode_ends"):
        np.testing.assert_array_equal(sync.column(name), workers.column(name)[:, : len(SURVIVED)], err_msg=name)


def test_the_same_seed_is_the_same_run_with_failures():
    first, second = (play.__wrapped__("sync", SAME_STEP) for _ in range(2))
    for one, other in zip(first.rollouts, second.rollouts, strict=True):
        for name in Rollout._fields:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


# ----------------------------------------------------------------------------------------------------------- PPO


@both
def test_ppo_goes_on(vectorization, caplog, told):
    """And before an update's first step, acting is reproduced."""
    plan = [Failure("raise", 1, 2), None, Failure("nan", 3, 1), Failure("raise", 2, 0)]
    ppo = PPO("MlpLnLstmPolicy", failing_envs(plan, vectorization), **{**TINY, "seed": 0})
    ppo._collector._runner.restart(0)  # the seed that the plan is for
    frames = []
    intercepted = ppo._collector.collect
    ppo._collector.collect = lambda: frames.append(intercepted()) or frames[-1]
    with caplog.at_level(logging.WARNING):
        metrics = iterate(ppo, 3)
    ppo.envs.close()
    assert [of_one["rollout/env_failures"] for of_one in metrics] == [2, 3, 3]
    assert ppo.num_timesteps == sum(rollout.valid.sum() for rollout in frames)
    assert all(abs(of_one["train/approx_kl"]) < 1e-9 for of_one in metrics)
    assert len(told()) == 3
    first = told()[0]
    assert first.startswith("FailingEnv (environment 0 in 0..3) raised ZeroDivisionError: a bug of mine (at step ")


def test_the_limit_stops_the_run_between_iterations():
    """Everything except the environments is then as after the last iteration."""

    class Worse(FailingEnv):
        lives = 40

        def step(self, action):
            Worse.lives -= 1
            if Worse.lives < 0:
                raise OSError("no more")
            return super().step(action)

    ppo = PPO("MlpLnLstmPolicy", lambda: Worse([None]), max_env_failures=3, num_envs=2, **TINY)
    kept = []
    with pytest.raises(
        EnvironmentFailure,
        match=r"environment [01] in 0\.\.1\) raised OSError: no more .*, failure number 4 in a row, of which 3",
    ):
        ppo.learn(10**9, lambda metrics: kept.append((ppo.policy.get_weights(), ppo.num_timesteps, ppo.iteration)))
    weights, num_timesteps, iteration = kept[-1]
    assert iteration == len(kept) > 0
    assert (ppo.num_timesteps, ppo.iteration) == (num_timesteps, iteration)
    assert all(map(np.array_equal, ppo.policy.get_weights(), weights))


def test_failures_far_apart_are_not_in_a_row():
    class Tired(FailingEnv):
        total = 0

        def step(self, action):
            self.total += 1
            if self.total == 101:
                raise OSError("after a hundred steps")
            return super().step(action)

    envs = make_vec(Tired, env_kwargs={"plan": [None]}, max_failures=1, autoreset_mode="SAME_STEP")
    envs.reset(seed=0)
    for _ in range(505):
        envs.step(np.zeros(1, int))
    assert envs.failures == 5


@pytest.mark.slow
def test_a_run_in_which_every_episode_breaks_off_stops():
    class Endless(FailingEnv):
        def step(self, action):
            observation, reward, *_, info = super().step(action)
            if self.time == 150:
                raise OSError("always")
            return observation, reward, False, False, info

    ppo = PPO("MlpLnLstmPolicy", lambda: Endless([None]), num_envs=1, **{**TINY, "num_steps": 300})
    with pytest.raises(EnvironmentFailure, match="failed in every episode of the last 11 rollouts"):
        ppo.learn(10**9)
    assert ppo.num_timesteps == 0
    with pytest.raises(EnvironmentFailure, match="failed in 100 episodes in a row"):
        evaluate_policy(ppo.policy, ppo.envs, 1)


def test_evaluation_raises_unless_it_is_told_otherwise():
    plan = [Failure("raise", 0, 2), Failure("nan", 1, 1)]
    policy = MlpLnLstmPolicy(FailingEnv.observation_space, FailingEnv.action_space, units=3, seed=1)
    with pytest.raises(EnvironmentFailure, match=r"environment 0 in 0\.\.1"):
        evaluate_policy(policy, failing_envs(plan, max_failures=0), 4, seed=0)
    _, lengths = evaluate_policy(policy, failing_envs(plan), 6, seed=0, return_episode_rewards=True)
    assert len(lengths) == 6


# --------------------------------------------------------------------------------------------- updates


def state_of(ppo):
    return [*(v.numpy() for v in ppo.policy.trainable_variables), *ppo._updater.optimizer.get_state()]


@pytest.mark.many_cases
@pytest.mark.parametrize(("jit_compile", "target_kl"), [(False, None), (False, 10.0), (True, None)])
def test_a_step_that_is_not_finite_changes_nothing(intercept, jit_compile, target_kl):
    """Weights and optimizer are the same as after the other steps alone."""
    options = {**TINY, "num_envs": 4, "num_minibatches": 4, "update_epochs": 2, "learning_rate": 0.1, "vtrace": False}
    options |= {"jit_compile": jit_compile, "target_kl": target_kl}
    ppo, expected = (PPO("MlpLnLstmPolicy", "CartPole-v1", **options) for _ in range(2))

    def poison(_, sequences):
        sequences.advantages[1] = np.nan
        sequences.returns[2] = np.inf

    intercept(poison)
    metrics = []
    ppo.learn(1, metrics.append)
    assert metrics[0]["train/skipped_steps"] == 4  # a minibatch is one sequence, which two epochs see
    assert all(np.isfinite(value) for name, value in metrics[0].items() if name in LOSSES)

    class WithoutTheSpoiled:
        shuffler = np.random.default_rng(derived_seed(TINY["seed"], "shuffling"))

        def permutation(self, count):
            return np.array([i for i in self.shuffler.permutation(count) if i not in (1, 2)])

    intercept(lambda rollout, sequences: None)
    expected._updater.generator = WithoutTheSpoiled()
    before = state_of(expected)
    expected.learn(1)
    assert all(np.isfinite(values).all() for values in state_of(ppo))
    assert any((one != other).any() for one, other in zip(before, state_of(expected), strict=True))
    for one, other in zip(state_of(ppo), state_of(expected), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("column", "value", "cause"),
    [
        ("advantages", np.nan, "policy_gradient_loss"),
        ("returns", np.inf, "policy_gradient_loss and value_loss"),  # they scale advantages
        ("returns", 1e18, "the gradient of a small weight, such as a bias"),  # whose square overflows
    ],
)
def test_updates_that_change_nothing_stop_the_run(intercept, told, column, value, cause):
    intercept(lambda rollout, sequences: getattr(sequences, column).fill(value))
    ppo = PPO(
        "MlpLnLstmPolicy",
        "CartPole-v1",
        **{**TINY, "num_envs": 2, "vf_coef": 100.0, "max_skipped_updates": 2},
    )
    before = state_of(ppo)
    skipped = []
    with pytest.raises(TrainingFailure, match=rf"no update of the last 3 .* these were not finite: {cause};"):
        ppo.learn(10 * 2 * NUM_STEPS, lambda metrics: skipped.append(metrics["train/skipped_steps"]))
    assert skipped == [1, 1, 1]
    assert re.fullmatch(f"iteration 1: 1 of 1 gradient steps .*, because these were not finite: {cause}", told()[0])
    learning_rate = 1  # the optimizer's, set anew by each update
    for number, (one, other) in enumerate(zip(before, state_of(ppo), strict=True)):
        if number != len(ppo.policy.trainable_variables) + learning_rate:
            np.testing.assert_array_equal(one, other)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of what overflows
@pytest.mark.parametrize("normalize_rewards", [False, True])
def test_a_reward_that_overflows_spoils_no_weights(normalize_rewards):
    class Rich(FailingEnv):
        def step(self, action):
            observation, _, *rest = super().step(action)
            return observation, 1e300 if self.episode == 1 else 1.0, *rest

    ppo = PPO("MlpLnLstmPolicy", lambda: Rich([None]), num_envs=1, normalize_rewards=normalize_rewards, **TINY)
    skipped = []
    ppo.learn(5 * NUM_STEPS, lambda metrics: skipped.append(metrics["train/skipped_steps"]))
    assert skipped[0] == (0 if normalize_rewards else 1)  # normalised rewards are clipped
    assert skipped[-1] == 0
    assert all(np.isfinite(values).all() for values in state_of(ppo))
