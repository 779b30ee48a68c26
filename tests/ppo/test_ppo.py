"""PPO: the update reproduces acting exactly and equals a float64 NumPy update, and runs keep their promises.

Trainers here are tiny and mostly not compiled by XLA, which costs seconds for each; one test compares the two.
"""

import functools
import itertools

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import AutoresetMode, VectorWrapper

from rl_lnlstm import PPO, UserError
from rl_lnlstm.lstm.equations import State
from rl_lnlstm.policies import MlpLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.ppo import train as ppo_module
from rl_lnlstm.ppo.rollout import Rollout, cut_sequences
from tests.policies import reference
from tests.policies.scripted_env import MODES, SCRIPTS, ScriptedEnv, scripted_envs
from tests.reference import central_differences

TINY = {
    **{"num_steps": 12, "num_minibatches": 1, "update_epochs": 1, "anneal_lr": False, "seed": 3, "jit_compile": False},
}
SMALL = {"units": 3, "encoder_layers": (3,), "head_layers": (3,)}
TERMINATED = [[(3, "terminated"), (1, "terminated")], [(1, "terminated")], [(7, "terminated")], [(2, "terminated")]]
NEXT_STEP, SAME_STEP, DISABLED = MODES
LOSSES = ["loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"]


def tiny_ppo(envs="CartPole-v1", **config):
    return PPO("MlpLnLstmPolicy", envs, **{**TINY, **SMALL, **config})


def iterate(ppo, iterations):
    """Train for some iterations, and return their metrics."""
    metrics = []
    ppo.learn(10**9, lambda of_one: metrics.append(of_one) or len(metrics) < iterations)
    return metrics


def untimed(metrics):
    timed = ("time/time_elapsed", "time/fps")
    return [{name: value for name, value in of_one.items() if name not in timed} for of_one in metrics]


@pytest.fixture
def intercept(monkeypatch):
    """Hand a function what each update is about to get: `see(rollout, sequences) -> sequences to take instead`."""

    def install(see):
        def cut_and_see(rollout, advantages, returns, length):
            sequences = cut_sequences(rollout, advantages, returns, length)
            return see(rollout, sequences) or sequences

        monkeypatch.setattr(ppo_module, "cut_sequences", cut_and_see)

    return install


# ---------------------------------------------------------------------------------------- reproduction of acting


@pytest.mark.parametrize(
    ("mode", "action_space", "config"),
    [
        (NEXT_STEP, gym.spaces.Discrete(3, start=2), {}),
        (NEXT_STEP, gym.spaces.Box(-0.5, 0.5, (2,), np.float32), {"sequence_length": 4, "shared_lstm": False}),
        (SAME_STEP, gym.spaces.Box(-1, 1, (1, 2), np.float32), {"shared_lstm": False}),
        (SAME_STEP, gym.spaces.Discrete(2, start=-1), {"sequence_length": 1}),
        (DISABLED, gym.spaces.Discrete(4), {"sequence_length": 6, "shared_lstm": False}),
        (DISABLED, gym.spaces.Box(-0.5, 0.5, (), np.float32), {"sequence_length": 3}),
    ],
    ids=lambda given: given.name if isinstance(given, AutoresetMode) else None,
)
def test_the_update_reproduces_acting(mode, action_space, config, intercept):
    """Before the first gradient step, log-probabilities and values equal the recorded ones, so ratios are 1.

    This also holds after updates of weights and observation statistics, which are large here.
    """
    ppo = tiny_ppo(
        scripted_envs(mode, action_space=action_space), normalize_observations=True, learning_rate=0.1, **config
    )
    reference.randomise(ppo.policy)
    seen = []

    def see(rollout, sequences):
        log_probs, _, values = ppo.policy.evaluate_actions(
            sequences.observations, sequences.actions, sequences.state, sequences.episode_starts
        )
        np.testing.assert_allclose(log_probs, sequences.log_probs, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(values, sequences.values, atol=1e-5, rtol=1e-5)
        seen.append((np.array(log_probs), ppo.policy.observation_statistics.mean.numpy()))

    intercept(see)
    for metrics in iterate(ppo, 3):
        assert abs(metrics["train/approx_kl"]) < 1e-9
        assert metrics["train/clip_fraction"] == 0
        assert metrics["train/policy_gradient_loss"] == pytest.approx(0, abs=1e-5)  # advantages are centred
    assert len(seen) == 3
    for earlier, later in itertools.pairwise(seen):
        assert all(np.abs(one - two).max() > 0.01 for one, two in zip(earlier, later, strict=True))


# ----------------------------------------------------------------------------------------------------- sequences


def numbered_rollout(num_steps, num_envs, length):
    """A rollout whose entries contain their step, `[..., 0]`, and environment, `[..., 1]`."""
    steps, envs = np.indices((num_steps, num_envs))
    number = (1000 * steps + envs).astype(np.float32)
    rng = np.random.default_rng(0)
    columns = {name: number + 0.1 * i for i, name in enumerate(Rollout._fields)}
    columns["observations"] = np.stack([steps, envs], -1).astype(np.float32)
    columns["actions"] = np.stack([steps, envs, steps], -1)
    for name in ("episode_starts", "valid", "terminations", "episode_ends"):
        columns[name] = rng.random((num_steps, num_envs)) < 0.4
    states = np.stack([steps, envs], -1)[::length].astype(np.float32)
    return Rollout(**{**columns, "sequence_states": State(states, states + 0.5), "episodes": []})


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 12])
def test_sequences_are_pieces_of_one_environments_steps(length):
    rollout = numbered_rollout(12, 5, length)
    advantages, returns = rollout.rewards + 0.5, rollout.rewards + 0.7
    sequences = cut_sequences(rollout, advantages, returns, length)
    expected_columns = {
        "observations": rollout.observations,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "values": rollout.values,
        "advantages": advantages,
        "returns": returns,
        "rewards": rollout.rewards,
        "episode_starts": rollout.episode_starts,
        "valid": rollout.valid,
        "action_masks": rollout.action_masks,
    }
    assert set(expected_columns) == set(sequences._fields) - {"state"}
    found = set()
    for index, piece in enumerate(sequences.observations):
        first, env = (int(number) for number in piece[0])
        assert first % length == 0
        found.add((first, env))
        for name, column in expected_columns.items():
            got = np.asarray(getattr(sequences, name))[index]
            expected = np.stack([column[t, env] for t in range(first, first + length)])
            np.testing.assert_allclose(got, expected, err_msg=name)
        np.testing.assert_array_equal(sequences.state.h[index], [first, env])
        np.testing.assert_array_equal(sequences.state.c[index], [first + 0.5, env + 0.5])
    assert len(sequences.observations) == len(found) == 12 // length * 5


class Ticker(ScriptedEnv):
    """Observations contain the number of the environment and of its observations so far."""

    ticks = -1

    def _observation(self, step, signal):
        self.ticks += 1
        return np.array([self.number, self.ticks, 0, 0], np.float32)


def test_every_epoch_takes_every_sequence_once_and_whole():
    makers = [lambda n=n, script=script: Ticker(script, number=n) for n, script in enumerate(SCRIPTS)]
    envs = gym.vector.SyncVectorEnv(makers)
    ppo = tiny_ppo(envs, sequence_length=3, num_minibatches=4, update_epochs=3)
    evaluate, minibatches = ppo.policy.evaluate_actions, []

    def evaluate_and_see(observations, *rest):
        minibatches.append(np.array(observations))
        return evaluate(observations, *rest)

    ppo.policy.evaluate_actions = evaluate_and_see
    tf.config.run_functions_eagerly(True)
    try:
        iterate(ppo, 1)
    finally:
        tf.config.run_functions_eagerly(False)

    assert [minibatch.shape for minibatch in minibatches] == [(4, 3, 4)] * 12
    epochs = [np.concatenate(minibatches[first : first + 4])[..., :2] for first in (0, 4, 8)]
    for epoch in epochs:
        assert (epoch[:, :, 0] == epoch[:, :1, 0]).all()  # of one environment
        np.testing.assert_array_equal(np.diff(epoch[..., 1], axis=1), np.ones((16, 2)))  # steps in order
        assert {tuple(step) for step in epoch.reshape(-1, 2)} == {(n, t) for n in range(4) for t in range(12)}
    assert any((epoch != epochs[0]).any() for epoch in epochs[1:])  # shuffled anew


# ------------------------------------------------------------------------------------- the update, in float64 NumPy


class NumpyPPO:
    """Recurrent PPO as in the papers, with full batches. Invalid transitions are removed instead of weighted with 0."""

    def __init__(self, ppo):
        self.policy, self.config = ppo.policy, ppo.config
        self.moment, self.square, self.steps = 0.0, 0.0, 0  # Adam's
        self.running, self.sums = np.zeros(ppo.config.num_envs), []  # discounted sums of rewards, and all so far
        self.gradient_norms = []

    def flat_weights(self):
        """The current weights of the policy, in one float64 vector."""
        return np.concatenate([weights.ravel() for weights in reference.weights_of(self.policy).values()])

    def unflat(self, flat):
        weights = reference.weights_of(self.policy)
        parts = np.split(flat, np.cumsum([each.size for each in weights.values()])[:-1])
        return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}

    def advantages(self, rollout):
        """Sums of discounted temporal differences within episodes, NaN where nothing happened."""
        config, rewards = self.config, rollout.rewards.astype(np.float64)
        if config.normalize_rewards:
            for t, env in np.ndindex(rewards.shape):
                if rollout.valid[t, env]:
                    self.running[env] = config.gamma * self.running[env] + rewards[t, env]
                    self.sums.append(self.running[env])
                    self.running[env] *= not rollout.episode_ends[t, env]
            rewards = np.clip(rewards / np.sqrt(np.var(self.sums) + 1e-8), -10, 10)
        bootstraps = np.where(rollout.terminations, 0.0, rollout.next_values)
        deltas = rewards + config.gamma * bootstraps - rollout.values
        advantages = np.full(deltas.shape, np.nan)
        for start, env in np.argwhere(rollout.valid):
            advantages[start, env], weight = 0.0, 1.0
            for t in range(start, len(deltas)):
                advantages[start, env] += weight * deltas[t, env]
                weight *= config.gamma * config.gae_lambda
                if rollout.episode_ends[t, env]:
                    break
        return advantages

    def losses(self, flat, rollout, advantages, clip):
        config, length = self.config, self.config.bptt_steps
        log_probs, entropies, values = np.empty((3, *rollout.rewards.shape))
        for piece in range(len(rollout.rewards) // length):
            steps = slice(piece * length, (piece + 1) * length)
            run = reference.run(
                self.policy,
                rollout.observations[steps].swapaxes(0, 1),
                1.0 - rollout.episode_starts[steps].T,
                [part[piece] for part in rollout.sequence_states],
                self.unflat(flat),
            )
            actions = rollout.actions[steps].swapaxes(0, 1)
            if run.log_std is None:
                actions = actions - self.policy.action_space.start
            log_probs[steps], entropies[steps] = run.log_probs(actions).T, run.entropies().T
            values[steps] = run.values.T
        happened = rollout.valid
        advantage, targets = advantages[happened], (advantages + rollout.values)[happened]
        if config.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_ratio = (log_probs - rollout.log_probs)[happened]
        ratio = np.exp(log_ratio)
        objective = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
        errors = (values[happened] - targets) ** 2
        if config.clip_vloss:
            old = rollout.values[happened]
            clipped = np.clip(values[happened], old - clip, old + clip)
            errors = np.maximum(errors, (clipped - targets) ** 2)
        policy_loss, value_loss, entropy_loss = -objective.mean(), errors.mean() / 2, -entropies[happened].mean()
        return {
            "loss": policy_loss + config.vf_coef * value_loss + config.ent_coef * entropy_loss,
            "policy_gradient_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            "approx_kl": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": (np.abs(ratio - 1) > clip).mean(),
        }

    def update(self, weights, rollout, learning_rate, clip):
        """All epochs: the means of the losses over the steps taken or refused, the new weights, and the returns."""
        config, advantages, history = self.config, self.advantages(rollout), []

        def loss(weights):
            return self.losses(weights, rollout, advantages, clip)["loss"]

        for _ in range(config.update_epochs):
            history.append(self.losses(weights, rollout, advantages, clip))
            if config.target_kl is not None and history[-1]["approx_kl"] > 1.5 * config.target_kl:
                break
            gradient = central_differences(loss, weights)
            self.gradient_norms.append(np.linalg.norm(gradient))
            gradient *= min(1.0, config.max_grad_norm / self.gradient_norms[-1])
            weights = weights - self.adam(gradient, learning_rate)
        means = {name: np.mean([losses[name] for losses in history]) for name in LOSSES}
        return means, weights, (advantages + rollout.values)[rollout.valid]

    def adam(self, gradient, learning_rate):
        """Kingma and Ba (2015), section 2, in the efficient order of its last paragraph."""
        self.steps += 1
        self.moment = 0.9 * self.moment + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        rate = learning_rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        return rate * self.moment / (np.sqrt(self.square) + 1e-5)


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


def test_transitions_that_never_happened_have_no_influence(intercept):
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
        return sequences._replace(**replaced)

    def train(envs, see):
        config = {"update_epochs": 3, "num_minibatches": 2, "learning_rate": 0.01, "clip_vloss": True, "ent_coef": 0.1}
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


def test_a_minibatch_of_nothing_but_resets_changes_nothing():
    """With one environment and sequences of one step, every other minibatch contains only a reset transition."""
    envs = scripted_envs(scripts=[[(1, "terminated")]])
    ppo = tiny_ppo(envs, num_steps=8, sequence_length=1, num_minibatches=8)
    metrics = iterate(ppo, 2)
    assert all(np.isfinite(weights).all() for weights in ppo.policy.get_weights())
    assert all(np.isfinite(metrics[-1][f"train/{name}"]) for name in LOSSES)


# ------------------------------------------------------------------------------------------- what a run promises


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
    kernels = [ppo.policy.get_weights()[0] for ppo in ppos]
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


class RecallEnv(gym.Env):
    """The first observation says which action the last step will reward. Observations in between say nothing."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        self.time += 1
        reward = float(action == self.cue) if self.time == 3 else 0.0
        return np.array([0, self.time / 3], np.float32), reward, self.time == 3, False, {}


def test_it_learns_what_needs_memory():
    """Chance, and the best a policy without memory can do, is 0.5.

    Training stops when the task is learnt. Afterwards all advantages are close to 0, normalising them amplifies noise,
    and on some seeds and processors the policy gets worse again.
    """
    config = {"num_envs": 16, "num_steps": 16, "update_epochs": 4, "num_minibatches": 4, "learning_rate": 0.003}
    ppo = tiny_ppo(RecallEnv, units=16, encoder_layers=(16,), head_layers=(16,), **config | {"seed": 0})
    returns = []

    def until_learnt(metrics):
        returns.append(metrics["rollout/ep_rew_mean"])
        return returns[-1] <= 0.95

    ppo.learn(10_000, until_learnt)
    assert returns[0] < 0.7
    assert returns[-1] > 0.95
