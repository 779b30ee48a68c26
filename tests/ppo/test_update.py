"""The update, apart from PPO's loss: penalties, unused weights, minibatches without valid steps, early stopping."""

import gymnasium as gym
import keras
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics

from rl_lnlstm import PPO, UserError
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.policies import RecurrentPolicy
from tests.picture_env import Picture
from tests.policies.scripted_env import scripted_envs
from tests.ppo.tiny_ppo import iterate

TINY = {
    **{"num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "anneal_lr": False, "seed": 3},
    **{"jit_compile": False, "num_envs": 2},
}
CARTPOLE = gym.make("CartPole-v1")


def with_encoder(encoder, **config):
    options = {"units": 3, "head_layers": (), "seed": 0}
    policy = RecurrentPolicy(CARTPOLE.observation_space, CARTPOLE.action_space, encoder=encoder, **options)
    return PPO(policy, "CartPole-v1", **{**TINY, **config})


def dense(**options):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input([4]), keras.layers.Dense(4, "tanh", **options)])


@pytest.mark.many_cases
@pytest.mark.parametrize("jit_compile", [False, True])
def test_penalties_are_in_the_loss(jit_compile):
    plain = iterate(with_encoder(dense(), jit_compile=jit_compile), 1)[0]
    encoder = dense(kernel_regularizer=keras.regularizers.L2(2.0))
    penalty = 2.0 * (encoder.get_weights()[0] ** 2).sum()
    penalised = iterate(with_encoder(encoder, jit_compile=jit_compile), 1)[0]
    assert penalised["train/loss"] - plain["train/loss"] == pytest.approx(penalty, rel=1e-4)
    for name in ("policy_gradient_loss", "value_loss", "entropy_loss"):
        assert penalised[f"train/{name}"] == pytest.approx(plain[f"train/{name}"], abs=1e-6)


@pytest.mark.parametrize("side", [7, 20])
def test_an_update_on_images_is_the_same_with_and_without_xla(side):
    weights = []
    for jit_compile in (False, True):
        options = {**TINY, "units": 4, "encoder_layers": (8,), "jit_compile": jit_compile}
        ppo = PPO(
            "CnnLnLstmPolicy", lambda: Picture(gym.make("CartPole-v1"), side), **{**options, "num_minibatches": 2}
        )
        before = [variable.numpy() for variable in ppo.policy.trainable_variables]
        iterate(ppo, 2)
        weights.append([variable.numpy() for variable in ppo.policy.trainable_variables])
        assert not any(np.array_equal(*pair) for pair in zip(before, weights[-1], strict=True))
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_penalty_of_activations_is_that_of_the_minibatch():
    encoder = dense(activity_regularizer=keras.regularizers.L1(1.0))
    plain, ppo, seen = iterate(with_encoder(dense()), 1)[0], with_encoder(encoder), []
    act = ppo._collector.collect

    def run():
        seen.append(act())
        outputs = np.array(encoder(seen[0].observations.reshape(-1, 4)))
        penalties.append(float(encoder.losses[0]))
        # Keras 3.6 does not divide by the size of the batch.
        assert min(abs(penalties[-1] - abs(outputs).sum() / batch) for batch in (1, len(outputs))) < 1e-4
        return seen[0]

    penalties: list[float] = []
    ppo._collector.collect = run
    penalised = iterate(ppo, 1)[0]
    assert penalised["train/loss"] - plain["train/loss"] == pytest.approx(penalties[0], rel=1e-4)


class Spare(keras.Model):
    """Has a layer that it does not use."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)

    def build(self, shape):
        self.used.build(shape)
        self.spare.build(shape)
        self.built = True

    def call(self, inputs):
        return self.used(inputs)


def test_weights_that_are_not_used_stay_as_they_are():
    encoder = Spare()
    ppo = with_encoder(encoder, learning_rate=0.1)
    used, spare = encoder.used.get_weights(), encoder.spare.get_weights()
    assert iterate(ppo, 1)[0]["train/skipped_steps"] == 0
    assert any((one != other).any() for one, other in zip(used, encoder.used.get_weights(), strict=True))
    for one, other in zip(spare, encoder.spare.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.many_cases
@pytest.mark.parametrize(("jit_compile", "target_kl"), [(False, None), (True, None), (False, 10.0)])
def test_a_minibatch_without_a_valid_transition_changes_nothing(jit_compile, target_kl):
    """Neither weights nor Adam's moments, which would move weights also without a gradient, and no mean of losses."""
    options = {**TINY, "num_steps": 6, "sequence_length": 1, "learning_rate": 0.1, "target_kl": target_kl}
    options |= {"jit_compile": jit_compile, "update_epochs": 2, "norm_adv": False}
    del options["num_envs"]

    def trained(num_minibatches, order):
        """One-step episodes: every other transition is a reset, and a minibatch of its own if there are 6."""
        envs = scripted_envs(scripts=[[(1, "terminated")]])
        ppo = PPO("MlpLnLstmPolicy", envs, **{**options, "num_minibatches": num_minibatches}, units=3)
        ppo._updater.generator = order
        metrics = iterate(ppo, 2)
        return metrics, [*ppo.policy.get_weights(), *ppo._updater.optimizer.get_state()]

    class InOrder:
        def permutation(self, count):
            return np.arange(count)

    class ValidOnes:
        """As if the invalid ones were not there: 3 minibatches of one valid sequence and, for company, a reset."""

        def permutation(self, count):
            return np.array([0, 1, 2, 3, 4, 5])

    (metrics, state), (expected_metrics, expected) = trained(6, InOrder()), trained(3, ValidOnes())
    for one, other in zip(state, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    for got, wanted in zip(metrics, expected_metrics, strict=True):
        assert got["train/skipped_steps"] == 0
        assert got["train/value_loss"] == pytest.approx(wanted["train/value_loss"], rel=1e-4)


def test_the_epoch_in_which_target_kl_stopped_the_update_is_told():
    options = {**TINY, "update_epochs": 5, "learning_rate": 0.2, "units": 4, "sequence_length": 8, "num_minibatches": 2}
    unlimited = iterate(PPO("auto", "CartPole-v1", **options), 1)[0]
    stopped = iterate(PPO("auto", "CartPole-v1", **options, target_kl=1e-4), 1)[0]
    assert list(unlimited) == list(stopped)
    assert unlimited["train/stopped_at_epoch"] == 0
    assert stopped["train/stopped_at_epoch"] == 1  # the second minibatch of the first epoch is already too far
    assert iterate(PPO("auto", "CartPole-v1", **options, target_kl=1e4), 1)[0]["train/stopped_at_epoch"] == 0


class Payday(gym.Env):
    """Earns 1, 10 or -7 in turn, and says at the end how often it was paid."""

    observation_space, action_space = gym.spaces.Box(0, 9, (1,), np.float32), gym.spaces.Discrete(2)
    rewards = 1.0, 10.0, -7.0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        end = self.t == 3
        info = {"is_success": True, "paid": self.t} if end else {}
        return np.full(1, self.t, np.float32), self.rewards[self.t - 1], end, False, info


class PaysSigns(Payday):
    rewards = 1.0, 1.0, -1.0


def test_clipped_rewards_are_for_learning_and_not_for_reports():
    options = {**TINY, "units": 3, "normalize_rewards": True, "update_epochs": 2}
    clipped, signs = PPO("auto", Payday, **options, clip_rewards=True), PPO("auto", PaysSigns, **options)
    metrics, expected = iterate(clipped, 3)[-1], iterate(signs, 3)[-1]
    assert (metrics["rollout/ep_rew_mean"], expected["rollout/ep_rew_mean"]) == (4, 1)
    for one, other in zip(clipped.policy.get_weights(), signs.policy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert clipped.evaluate(2) == (4, 0)


def test_what_infos_tell_of_episodes_becomes_metrics():
    ppo = PPO("auto", Payday, **TINY, units=3, info_keys=("is_success", "paid", "absent"))
    metrics = iterate(ppo, 1)[0]
    assert (metrics["rollout/is_success"], metrics["rollout/paid"]) == (1, 3)
    assert np.isnan(metrics["rollout/absent"])
    ppo = PPO("auto", lambda: RecordEpisodeStatistics(Payday()), **TINY, units=3, info_keys=("episode",))
    metrics = iterate(ppo, 1)[0]
    assert metrics["rollout/episode/r"] == metrics["rollout/ep_rew_mean"]
    assert "rollout/episode" not in metrics


# ------------------------------------------------------------------------------ what is changed after PPO was made


def test_layers_that_are_frozen_are_named():
    ppo = with_encoder(dense())
    ppo.policy.encoder.trainable = False
    with pytest.raises(UserError, match="trainable weights are not those that PPO was made with"):
        iterate(ppo, 1)


def test_layers_that_workers_do_not_have_are_named():
    ppo = with_encoder(dense())
    iterate(ppo, 1)
    ppo.config.ray = "local"  # as if other processes had collected the rollout
    ppo.policy.encoder.layers[-1].activation = keras.activations.relu
    with pytest.warns(RunWarning, match="the workers act with the policy as it was"):
        iterate(ppo, 1)


def test_options_that_a_callback_changes_take_effect():
    ppo, seen = with_encoder(dense(), ent_coef=0.5), []

    def change(metrics):
        seen.append(metrics)
        ppo.config.ent_coef, ppo.config.vf_coef = 0.25, 2.0
        return len(seen) < 2

    ppo.learn(10**6, callback=change)
    for metrics, ent_coef, vf_coef in zip(seen, (0.5, 0.25), (0.5, 2.0), strict=True):
        terms = [metrics[f"train/{name}"] for name in ("policy_gradient_loss", "entropy_loss", "value_loss")]
        assert metrics["train/loss"] == pytest.approx(np.dot(terms, [1, ent_coef, vf_coef]), rel=1e-5)
