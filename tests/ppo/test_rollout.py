"""Rollouts against what the environments themselves saw, in every autoreset mode.

The environments log their episodes. A float64 NumPy policy runs over each logged episode, from its first observation
to its final one, from a state of zeros: what it says of values and states needs no masks, no carrying over and no
knowledge of autoreset modes.
"""

import functools
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorRewardWrapper
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from rl_lnlstm import UserError
from rl_lnlstm.policies import MlpLnLstmPolicy
from rl_lnlstm.ppo.advantages import generalized_advantages
from rl_lnlstm.ppo.collect import RolloutRunner
from tests.policies import reference
from tests.policies.scripted_env import MODES, SCRIPTS, scripted_envs

ROLLOUTS, NUM_STEPS, SEQUENCE_LENGTH = 3, 12, 4
BOX = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
ACTION_SPACES = {"discrete": gym.spaces.Discrete(3), "box": BOX}


class Play(NamedTuple):
    """Consecutive rollouts and the environments' logs. `runs` holds the reference's results for each log."""

    policy: MlpLnLstmPolicy
    rollouts: list
    logs: list
    runs: list

    def column(self, name):
        return np.concatenate([getattr(rollout, name) for rollout in self.rollouts])

    def happened(self, name, env):
        """A column of the valid transitions of one environment."""
        return self.column(name)[self.column("valid")[:, env], env]


def policy_for(kind="discrete"):
    space, options = gym.spaces.Box(-100, 100, (4,), np.float32), {"encoder_layers": (6,), "head_layers": (4,)}
    options["rescale_actions"] = False  # so that sent actions can be compared with sampled ones
    return reference.randomise(MlpLnLstmPolicy(space, ACTION_SPACES[kind], units=5, seed=1, **options))


@functools.cache
def play(mode, kind="discrete"):
    policy, envs = policy_for(kind), scripted_envs(mode, action_space=ACTION_SPACES[kind])
    runner = RolloutRunner(policy, envs, NUM_STEPS, SEQUENCE_LENGTH, seed=0)
    rollouts = [runner.run() for _ in range(ROLLOUTS)]
    # If an episode has only begun, its log contains only its first observation.
    logs = [env.log for env in envs.envs]
    runs = [[reference.run(policy, np.array(log.observations)[None]) for log in of_env] for of_env in logs]
    return Play(policy, rollouts, logs, runs)


class Greedy:
    """A real policy that acts deterministically, so that it acts in the same way in every mode."""

    def __init__(self, policy):
        self.policy, self.initial_state, self.value = policy, policy.initial_state, policy.value

    def step(self, observations, state, episode_starts):
        _, values, log_probs, after = self.policy.step(observations, state, episode_starts)
        actions, _ = self.policy.predict(observations, state, episode_starts, deterministic=True)
        return actions, values, log_probs, after

    def clip_actions(self, actions):
        return actions


each_mode = pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
each_env = pytest.mark.parametrize("env", range(len(SCRIPTS)))


@each_mode
@each_env
def test_what_is_valid_is_what_happened(mode, env):
    played, logs = play(mode), play(mode).logs[env]
    observations = [observation for log in logs for observation in log.observations[: len(log)]]
    np.testing.assert_array_equal(played.happened("observations", env), observations)
    np.testing.assert_array_equal(played.happened("actions", env), [a for log in logs for a in log.actions])
    np.testing.assert_array_equal(played.happened("rewards", env), [r for log in logs for r in log.rewards])
    starts = [t == 0 for log in logs for t in range(len(log))]
    np.testing.assert_array_equal(played.happened("episode_starts", env), starts)
    last = [(log, t == len(log) - 1) for log in logs for t in range(len(log))]
    np.testing.assert_array_equal(played.happened("episode_ends", env), [end and bool(log.ending) for log, end in last])
    np.testing.assert_array_equal(played.happened("terminations", env), [end and log.terminated for log, end in last])


@each_mode
def test_only_the_steps_after_an_episodes_end_are_invalid_and_only_in_next_step(mode):
    played = play(mode)
    ends = np.concatenate([np.zeros((1, len(SCRIPTS)), bool), played.column("episode_ends")])
    expected = ~ends[:-1] if mode is AutoresetMode.NEXT_STEP else np.ones_like(ends[:-1])
    np.testing.assert_array_equal(played.column("valid"), expected)
    assert sum(map(len, (log for of_env in played.logs for log in of_env))) == played.column("valid").sum()
    assert ends[-1].any() or ends[NUM_STEPS].any()  # an episode's end at a rollout's end is among the cases


@each_mode
@pytest.mark.parametrize("kind", ["discrete", "box"])
@each_env
def test_acting_carries_the_state_through_an_episode_and_no_further(mode, kind, env):
    """Also from one rollout to the next, which all but the last environment's episodes reach across."""
    played = play(mode, kind)
    logs, runs = played.logs[env], played.runs[env]
    values = [run.values[0, : len(log)] for log, run in zip(logs, runs, strict=True)]
    np.testing.assert_allclose(played.happened("values", env), np.concatenate(values), atol=1e-5)
    actor = np.concatenate([run.actor[0, : len(log)] for log, run in zip(logs, runs, strict=True)])
    actions = played.happened("actions", env)
    log_probs = runs[0]._replace(actor=actor).log_probs(actions)
    np.testing.assert_allclose(played.happened("log_probs", env), log_probs, atol=1e-5)
    if kind == "box":  # the probabilities are of what was sampled, the environment gets what it allows
        received = [action for log in logs for action in log.actions]
        np.testing.assert_array_equal(np.clip(actions, BOX.low, BOX.high), received)
        assert (actions != received).any()


@each_mode
@each_env
def test_truncation_bootstraps_from_the_final_observation_and_termination_counts_as_0(mode, env):
    """`next_values` of every transition but the terminal ones, which `terminations` takes out."""
    played = play(mode)
    logs, runs = played.logs[env], played.runs[env]
    expected = np.concatenate([run.values[0, 1 : len(log) + 1] for log, run in zip(logs, runs, strict=True)])
    counts = ~played.happened("terminations", env)
    np.testing.assert_allclose(played.happened("next_values", env)[counts], expected[counts], atol=1e-5)
    # With a reset state the values must differ, otherwise this test could not fail.
    for log, run in zip(logs, runs, strict=True):
        if log.ending == "truncated":
            from_zeros = reference.run(played.policy, log.observations[-1][None, None]).values[0, 0]
            assert abs(run.values[0, -1] - from_zeros) > 1e-4


@each_mode
@each_env
def test_advantages_are_those_of_the_episodes(mode, env):
    played, gamma, gae_lambda = play(mode), 0.9, 0.8
    advantages = np.concatenate(
        [
            generalized_advantages(
                rollout.rewards,
                rollout.values,
                rollout.next_values,
                rollout.terminations,
                rollout.episode_ends,
                gamma,
                gae_lambda,
            )
            for rollout in played.rollouts
        ]
    )[played.column("valid")[:, env], env]
    # Rollouts cut episodes, and estimates use only the steps of their own rollout.
    rollout_of = np.repeat(np.arange(ROLLOUTS), NUM_STEPS)[played.column("valid")[:, env]]
    expected, position = [], 0
    for log, run in zip(played.logs[env], played.runs[env], strict=True):
        for t in range(len(log)):
            total = 0.0
            for k in range(t, len(log)):
                if rollout_of[position + k] != rollout_of[position + t]:
                    break
                following = 0.0 if log.terminated and k == len(log) - 1 else run.values[0, k + 1]
                total += (gamma * gae_lambda) ** (k - t) * (log.rewards[k] + gamma * following - run.values[0, k])
            expected.append(total)
        position += len(log)
    np.testing.assert_allclose(advantages, expected, atol=1e-4)


@each_mode
def test_recorded_states_are_those_before_each_sequence(mode):
    played = play(mode)
    h = np.concatenate([rollout.sequence_states.h for rollout in played.rollouts])
    assert h.shape == (ROLLOUTS * NUM_STEPS // SEQUENCE_LENGTH, len(SCRIPTS), 5)
    starts, valid, checked = played.column("episode_starts"), played.column("valid"), 0
    for env, step in ((env, step) for env in range(len(SCRIPTS)) for step in range(0, len(valid), SEQUENCE_LENGTH)):
        if step == 0:
            np.testing.assert_array_equal(h[0, env], np.zeros(5))
        elif valid[step, env] and not starts[step, env]:
            happened = valid[:step, env].sum()  # transitions before; find the episode and step that follow them
            episode = next(e for e in range(100) if sum(map(len, played.logs[env][: e + 1])) > happened)
            t = happened - sum(map(len, played.logs[env][:episode]))
            expected = played.runs[env][episode].hs[0, t - 1]
            np.testing.assert_allclose(h[step // SEQUENCE_LENGTH, env], expected, atol=1e-5)
            checked += 1
    assert checked >= 10


@each_mode
def test_episodes_are_the_environments_own(mode):
    played = play(mode)
    got = [episode for rollout in played.rollouts for episode in rollout.episodes]
    ended = [(sum(log.rewards), len(log)) for of_env in played.logs for log in of_env if log.ending]
    np.testing.assert_allclose(sorted((e.episode_return, e.length) for e in got), sorted(ended), rtol=1e-9)
    assert len(got) == played.column("episode_ends").sum()
    for rollout in played.rollouts:  # each is told by the rollout in which it ended
        assert len(rollout.episodes) == rollout.episode_ends.sum()


def test_the_three_modes_tell_the_same_story():
    """Deterministic environments and actions: whole episodes have the same returns and advantages in every mode."""
    advantages, returns, policy = {}, {}, Greedy(policy_for())
    for mode in MODES:
        rollout = RolloutRunner(policy, scripted_envs(mode), 60, 60, seed=0).run()
        ends = rollout.terminations, rollout.episode_ends
        estimates = generalized_advantages(rollout.rewards, rollout.values, rollout.next_values, *ends, 0.95, 0.9)
        for env in (0, 2, 3):
            valid = rollout.valid[:, env]
            whole = np.flatnonzero(rollout.episode_ends[valid, env])[4] + 1  # five episodes of each
            advantages[mode, env] = estimates[valid, env][:whole]
            returns[mode, env] = (advantages[mode, env] + rollout.values[valid, env][:whole]).sum()
    for (mode, env), expected in advantages.items():
        np.testing.assert_allclose(advantages[AutoresetMode.NEXT_STEP, env], expected, atol=1e-5)
        assert returns[AutoresetMode.NEXT_STEP, env] == pytest.approx(returns[mode, env], abs=1e-4)


class Countdown(gym.Env):
    """Observes 0, 1 and 2, and earns 1 with each of two steps, after which it ends."""

    observation_space, action_space = gym.spaces.Box(0, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, truncated):
        self.truncated = truncated

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        end = self.time == 2
        return np.float32([self.time]), 1.0, end and not self.truncated, end and self.truncated, {}


class ValuesWhatItSees:
    """A policy whose value of an observation x is 10 + x."""

    def __init__(self, policy):
        self.policy, self.initial_state, self.clip_actions = policy, policy.initial_state, policy.clip_actions

    def step(self, observations, state, episode_starts):
        actions, _, log_probs, after = self.policy.step(observations, state, episode_starts)
        return actions, self.value(observations, state, episode_starts), log_probs, after

    def value(self, observations, state, episode_starts):
        return 10 + observations[:, 0]


@each_mode
@pytest.mark.parametrize("truncated", [False, True])
def test_an_episode_worked_by_hand(mode, truncated):
    """gamma = lambda = 0.5, values 10, 11 and, of the final observation, 12 or, if that is terminal, 0.

    The last step's advantage is 1 + 0.5 * 12 - 11 = -4, or 1 - 11 = -10; the first one's is 1 + 0.5 * 11 - 10 = -3.5
    and a quarter of the last one's.
    """
    envs = SyncVectorEnv([lambda: Countdown(truncated)], autoreset_mode=mode)
    policy = MlpLnLstmPolicy(envs.single_observation_space, envs.single_action_space, units=2, seed=0)
    rollout = RolloutRunner(ValuesWhatItSees(policy), envs, 6, 6, seed=0).run()
    ends = rollout.terminations, rollout.episode_ends
    advantages = generalized_advantages(rollout.rewards, rollout.values, rollout.next_values, *ends, 0.5, 0.5)
    last = -4.0 if truncated else -10.0
    episodes = 2 if mode is AutoresetMode.NEXT_STEP else 3
    np.testing.assert_array_equal(advantages[rollout.valid], [-3.5 + last / 4, last] * episodes)
    returns = (advantages + rollout.values)[rollout.valid]
    np.testing.assert_array_equal(returns, [6.5 + last / 4, 11 + last] * episodes)


@pytest.mark.parametrize(
    ("vectorization", "mode"),
    [
        ("sync", AutoresetMode.NEXT_STEP),
        ("sync", AutoresetMode.SAME_STEP),
        ("vector_entry_point", AutoresetMode.NEXT_STEP),
    ],
)
def test_episodes_are_gymnasiums(vectorization, mode):
    """On CartPole, where sampled actions decide, against Gymnasium's `RecordEpisodeStatistics`."""
    options = {"vector_kwargs": {"autoreset_mode": mode}} if vectorization == "sync" else {}
    envs = gym.make_vec("CartPole-v1", 5, vectorization_mode=vectorization, **options)
    assert envs.metadata["autoreset_mode"] is mode
    recorded = RecordEpisodeStatistics(envs, buffer_length=10_000)
    policy = MlpLnLstmPolicy(envs.single_observation_space, envs.single_action_space, units=4, seed=0)
    runner = RolloutRunner(policy, recorded, 100, 100, seed=0)
    rollouts = [runner.run(), runner.run()]
    episodes = [episode for rollout in rollouts for episode in rollout.episodes]
    assert len(episodes) > 10
    np.testing.assert_allclose([episode.length for episode in episodes], recorded.length_queue)
    np.testing.assert_allclose([episode.episode_return for episode in episodes], recorded.return_queue)
    still_open = sum(recorded.episode_lengths[~rollouts[-1].episode_ends[-1]])
    assert sum(rollout.valid.sum() for rollout in rollouts) == sum(recorded.length_queue) + still_open


@each_mode
def test_environments_may_reuse_their_arrays(mode):
    """`copy=False`: the array that a step returns is the one that the next step overwrites."""
    rollouts, policy = [], Greedy(policy_for())
    for copy in (True, False):
        runner = RolloutRunner(policy, scripted_envs(mode, copy=copy), NUM_STEPS, NUM_STEPS, seed=0)
        rollouts.append([runner.run(), runner.run()])
    for with_copy, without in zip(*rollouts, strict=True):
        for name in ("observations", "actions", "rewards", "values", "next_values", "episode_starts"):
            np.testing.assert_array_equal(getattr(with_copy, name), getattr(without, name), err_msg=name)


def test_a_reset_step_earns_nothing_even_if_a_wrapper_says_so():
    class Costly(VectorRewardWrapper):
        def rewards(self, rewards):
            return rewards - 5.0

    envs = Costly(scripted_envs())
    rollout = RolloutRunner(Greedy(policy_for()), envs, NUM_STEPS, NUM_STEPS, seed=0).run()
    logs = [log for env in envs.env.envs for log in env.log if log.ending]
    expected = [(sum(log.rewards) - 5.0 * len(log), len(log)) for log in logs]
    np.testing.assert_allclose(
        sorted((e.episode_return, e.length) for e in rollout.episodes), sorted(expected), rtol=1e-6
    )


def test_the_first_reset_is_seeded():
    def first_observations(seed):
        envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")
        policy = MlpLnLstmPolicy(envs.single_observation_space, envs.single_action_space, units=2, seed=0)
        return RolloutRunner(policy, envs, 1, 1, seed=seed).run().observations[0]

    expected, _ = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync").reset(seed=7)
    np.testing.assert_array_equal(first_observations(7), expected)
    assert not np.array_equal(first_observations(8), expected)


def test_an_environment_that_does_not_tell_its_mode():
    envs = scripted_envs()
    envs.metadata = {}
    with pytest.raises(UserError, match=r"autoreset_mode.*got None"):
        RolloutRunner(policy_for(), envs, 4, 4)
