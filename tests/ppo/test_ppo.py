"""PPO: what a run promises, from seeds to metrics."""

import functools
import itertools

import gymnasium as gym
import keras
import numpy as np
import pytest

from rl_lnlstm import PPO, UserError
from rl_lnlstm.policies import MlpLnLstmPolicy, RecurrentPolicy
from tests.policies.scripted_env import MODES, SCRIPTS, ScriptedEnv, scripted_envs
from tests.ppo.tiny_ppo import LOSSES, SMALL, TINY, iterate, tiny_ppo, untimed

_, SAME_STEP, _ = MODES


@functools.cache
def seeded_run(jit_compile, attempt):
    """Returns the metrics and weights after each of three iterations. Every attempt does the same."""
    config = {"update_epochs": 2, "num_minibatches": 2, "num_envs": 4, "sequence_length": 6, "target_kl": 1.0}
    ppo = tiny_ppo(normalize_observations=True, normalize_rewards=True, jit_compile=jit_compile, **config)
    metrics, weights = [], []

    def after_each(of_one):
        metrics.append(of_one)
        weights.append(ppo.policy.get_weights())
        return len(metrics) < 3

    ppo.learn(callback=after_each)
    return untimed(metrics), weights


def test_the_seed_decides_everything_bit_for_bit():
    (metrics, weights), (again, weights_again) = seeded_run(True, 1), seeded_run(True, 2)
    np.testing.assert_equal(metrics, again)
    for one, two in zip(itertools.chain(*weights), itertools.chain(*weights_again), strict=True):
        assert one.tobytes() == two.tobytes()


def test_xla_changes_rounding_only():
    (plain_metrics, plain), (xla_metrics, xla) = seeded_run(False, 1), seeded_run(True, 1)
    for one, two in zip(plain[0], xla[0], strict=True):
        np.testing.assert_allclose(two, one, atol=2e-5)
    for name in LOSSES:
        assert xla_metrics[0][f"train/{name}"] == pytest.approx(plain_metrics[0][f"train/{name}"], rel=1e-4, abs=1e-6)


def test_another_seed_gives_other_weights_and_environments():
    envs = [gym.make_vec("CartPole-v1", 2, vectorization_mode="sync") for _ in range(3)]
    ppos = [tiny_ppo(given, seed=seed) for given, seed in zip(envs, (5, 6, 5), strict=True)]
    kernels = [ppo.policy.trainable_variables[0].numpy() for ppo in ppos]
    states = [np.array(given.get_attr("state")) for given in envs]
    assert (kernels[0] == kernels[2]).all()
    assert (states[0] == states[2]).all()
    assert (kernels[0] != kernels[1]).any()
    assert (states[0] != states[1]).all()


def test_metrics_tell_what_happened():
    envs = scripted_envs()
    ppo = tiny_ppo(envs, normalize_observations=True)
    metrics = iterate(ppo, 3)
    logs = [log for env in envs.envs for log in env.log]
    ended = [log for log in logs if log.ending]
    assert metrics[-1]["rollout/ep_rew_mean"] == pytest.approx(np.mean([sum(log.rewards) for log in ended]))
    assert metrics[-1]["rollout/ep_len_mean"] == pytest.approx(np.mean([len(log) for log in ended]))
    assert metrics[-1]["time/total_timesteps"] == ppo.num_timesteps == sum(map(len, logs)) < 3 * 12 * 4
    assert [of_one["time/iterations"] for of_one in metrics] == [1, 2, 3]
    assert all(of_one["time/fps"] > 0 for of_one in metrics)
    seen = np.array([seen for log in logs for seen in log.observations[: len(log)]])  # no final observations
    np.testing.assert_allclose(ppo.policy.observation_statistics.mean.numpy(), seen.mean(0), atol=1e-6)
    np.testing.assert_allclose(ppo.policy.observation_statistics.variance.numpy(), seen.var(0), atol=1e-6)


def test_the_learning_rate_falls_linearly_over_each_call_of_learn():
    ppo = tiny_ppo(num_envs=4, anneal_lr=True, learning_rate=0.01)
    for total in (150, 260):
        before, metrics = ppo.num_timesteps, []
        ppo.learn(total, metrics.append)
        assert total <= ppo.num_timesteps - before < total + 4 * 12
        frames = [0, *(of_one["time/total_timesteps"] - before for of_one in metrics)]
        expected = [0.01 * (1 - done / total) for done in frames[:-1]]
        np.testing.assert_allclose([of_one["train/learning_rate"] for of_one in metrics], expected)
    assert ppo._updater.function.experimental_get_tracing_count() == 1


def test_learn_trains_as_long_as_configured_unless_told():
    ppo = tiny_ppo(scripted_envs(SAME_STEP), total_timesteps=96)
    assert ppo.learn() is ppo
    assert ppo.num_timesteps == 96
    assert ppo.learn().num_timesteps == 192
    assert ppo.learn(1).num_timesteps == 192 + 48  # a rollout is finished


def test_callbacks_hear_of_every_iteration_and_may_stop():
    ppo, heard = tiny_ppo(scripted_envs(SAME_STEP)), []

    def stop_after_two(metrics):
        heard.append(metrics["time/iterations"])
        return len(heard) < 2

    others = []
    ppo.learn(480, [lambda metrics: others.append(metrics), stop_after_two, lambda metrics: others.append(metrics)])
    assert heard == [1, 2]
    assert len(others) == 4
    ppo.learn(48, callback=lambda metrics: heard.append(metrics))  # a single one; returning nothing goes on
    assert len(heard) == 3
    assert {"train/value_loss", "rollout/ep_rew_mean", "time/fps"} <= set(heard[-1])


def test_environments_are_named_made_or_given():
    named = tiny_ppo("CartPole-v1", num_envs=2)
    assert (named.envs.num_envs, named.config.env_id) == (2, "CartPole-v1")
    made = tiny_ppo(lambda: ScriptedEnv([(3, "truncated")]), num_envs=3)
    assert made.envs.num_envs == 3
    assert made.envs.single_action_space == gym.spaces.Discrete(3)
    envs = scripted_envs()
    given = tiny_ppo(envs)
    assert given.envs.unwrapped is envs
    assert given.config.num_envs == len(SCRIPTS)
    assert made.learn(1).num_timesteps == 3 * 12 - 3 * 3  # less than three resets in each


def test_a_policy_of_ones_own_is_trained():
    envs = scripted_envs()
    encoder = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu")])
    policy = RecurrentPolicy(envs.single_observation_space, envs.single_action_space, encoder=encoder, units=3)
    before = encoder.get_weights()
    assert PPO(policy, envs, **TINY).learn(1).policy is policy
    assert all((one != two).any() for one, two in zip(before, encoder.get_weights(), strict=True))


def test_what_does_not_fit_is_refused():
    envs = scripted_envs()
    with pytest.raises(UserError, match=r"num_envs.* 3.* 4"):
        tiny_ppo(envs, num_envs=3)
    with pytest.raises(UserError, match=r"MlpLnLstmPolicy.*'MlpPolicy'"):
        PPO("MlpPolicy", envs, **TINY, **SMALL)
    discrete = gym.spaces.Discrete(2)
    policy = MlpLnLstmPolicy(envs.single_observation_space, discrete, units=2)
    with pytest.raises(UserError) as caught:
        PPO(policy, envs, **TINY)
    assert str(discrete) in str(caught.value)
    assert str(envs.single_action_space) in str(caught.value)
    with pytest.raises(UserError, match="CartPole-v1"):
        tiny_ppo("CartPoole-v1")
