"""The update equals one in float64 NumPy, and transitions that never happened do not enter it."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import VectorWrapper

from tests.policies import reference
from tests.policies.scripted_env import MODES, scripted_envs
from tests.ppo.numpy_ppo import NumpyPPO
from tests.ppo.tiny_ppo import LOSSES, iterate, tiny_ppo, untimed

TERMINATED = [[(3, "terminated"), (1, "terminated")], [(1, "terminated")], [(7, "terminated")], [(2, "terminated")]]
NEXT_STEP, SAME_STEP, _ = MODES
BOX = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
FEW = {"units": 2, "encoder_layers": (2,), "head_layers": (2,)}  # the reference takes time for each weight
UPDATES = {
    "usual": (
        {"anneal_lr": True, "ent_coef": 0.05, "clip_coef": 0.05, "sequence_length": 3, **FEW},
        {"mode": NEXT_STEP, "action_space": gym.spaces.Discrete(3, start=2)},
    ),
    # A tiny gradient norm, of the order of Adam's epsilon: Adam would undo any larger scaling.
    "clipped": (
        {"clip_vloss": True, "norm_adv": False, "anneal_clip": True, "clip_coef": 0.05, "max_grad_norm": 1e-3, **FEW},
        {"mode": NEXT_STEP, "action_space": BOX},
    ),
    # The second step's divergence is 1.4 times target_kl, and allowed; the third's is 3.6 times, and not.
    "early stop": (
        {
            **{"target_kl": 0.0072, "update_epochs": 4, "max_grad_norm": 100.0, "vf_coef": 0.1},
            **{"normalize_rewards": True, "shared_lstm": True},
        },
        {"mode": SAME_STEP, "action_space": gym.spaces.Discrete(2)},
    ),
    # Each environment has two sequences, so that a mistake in their order shows; by default there is V-trace.
    "without vtrace": (
        {
            **{"vtrace": False, "sequence_length": 3, "learning_rate": 0.02, "clip_coef": 0.05},
            **{"normalize_rewards": True, **FEW},
        },
        {"mode": NEXT_STEP, "action_space": gym.spaces.Discrete(3)},
    ),
}


@pytest.mark.many_cases
@pytest.mark.parametrize(("config", "env"), UPDATES.values(), ids=UPDATES)
def test_the_update_is_that_of_the_papers(config, env, intercept):
    """Two iterations of several epochs: all losses, their gradients, clipping, Adam and the schedules."""
    config = {"update_epochs": 2, "learning_rate": 0.05, "gamma": 0.9, "gae_lambda": 0.7, "num_steps": 6, **config}
    ppo = tiny_ppo(scripted_envs(**env), **config)
    reference.randomise(ppo.policy, scale=0.4)
    numpy_ppo, updates = NumpyPPO(ppo), []
    intercept(lambda rollout, sequences: updates.append((numpy_ppo.flat_weights(), rollout)))
    metrics, total = [], 45
    ppo.learn(total, lambda of_one: metrics.append(of_one) or len(metrics) < 2)
    after = [*(weights for weights, _ in updates[1:]), numpy_ppo.flat_weights()]

    frames = 0
    for (before, rollout), got, weights in zip(updates, metrics, after, strict=True):
        remaining = 1 - frames / total
        frames += rollout.valid.sum()
        learning_rate = ppo.config.learning_rate * (remaining if ppo.config.anneal_lr else 1)
        clip = ppo.config.clip_coef * (remaining if ppo.config.anneal_clip else 1)
        expected, expected_weights, returns = numpy_ppo.update(before, rollout, learning_rate, clip)
        for name in LOSSES:
            assert got[f"train/{name}"] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name
        # Adam's step magnifies the rounding of gradients that are as small as its epsilon.
        np.testing.assert_allclose(weights, expected_weights, atol=3e-4)
        explained = 1 - np.var(returns - rollout.values[rollout.valid]) / np.var(returns)
        assert got["train/explained_variance"] == pytest.approx(explained, abs=1e-5)
        assert got["train/learning_rate"] == pytest.approx(learning_rate)

    # Check that the cases test what their names say.
    assert any(of_one["train/clip_fraction"] > 0.05 for of_one in metrics)
    if ppo.config.target_kl is not None:
        assert 2 <= numpy_ppo.steps < 2 * ppo.config.update_epochs
    clipped = np.array(numpy_ppo.gradient_norms) > ppo.config.max_grad_norm
    assert not clipped.any() if ppo.config.max_grad_norm == 100 else clipped.any()


@pytest.mark.parametrize("vtrace", [False, True])
def test_transitions_that_never_happened_have_no_influence(intercept, vtrace):
    """Changing final observations, rewards at resets and all invalid entries gives bitwise the same training.

    Episodes terminate here, because a truncated episode uses its final observation.
    """

    class RewardsAtResets(VectorWrapper):
        before = np.zeros(len(TERMINATED), bool)

        def step(self, actions):
            observations, rewards, terminations, truncations, infos = self.env.step(actions)
            rewards = np.where(self.before, 50.0, rewards)
            self.before = terminations | truncations
            return observations, rewards, terminations, truncations, infos

    def garbage(rollout, sequences):
        rng, never = np.random.default_rng(0), sequences.valid == 0
        replaced = {"actions": np.where(never, rng.integers(3, size=never.shape), sequences.actions)}
        for name in ("log_probs", "values", "advantages", "returns"):
            column = getattr(sequences, name)
            replaced[name] = np.where(never, rng.normal(0, 10, never.shape).astype(column.dtype), column)
        for column in (rollout.log_probs, rollout.values, rollout.next_values):
            column[~rollout.valid] = rng.normal(0, 10, (~rollout.valid).sum())
        return sequences._replace(**replaced)

    def train(envs, see):
        config = {"update_epochs": 3, "num_minibatches": 2, "learning_rate": 0.01, "clip_vloss": True, "ent_coef": 0.1}
        config["vtrace"] = vtrace
        intercept(see)
        ppo = tiny_ppo(envs, normalize_observations=True, normalize_rewards=True, **config)
        metrics = iterate(ppo, 3)
        assert metrics[-1]["time/total_timesteps"] < 3 * 12 * 4
        return untimed(metrics), ppo.policy.get_weights()

    expected_metrics, expected = train(scripted_envs(scripts=TERMINATED), lambda rollout, sequences: None)
    envs = RewardsAtResets(scripted_envs(scripts=TERMINATED, final_mark=70.0))
    metrics, weights = train(envs, garbage)
    assert metrics == expected_metrics
    for one, two in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, two)
