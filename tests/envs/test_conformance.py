"""Rollouts record what really happened, even if an environment changes its arguments or reuses its arrays.

Environments are generated (`generated_env`). A `Stepper` and a `RolloutRunner` record several of them, in every
vectorization and autoreset mode. The records must equal those of a plain loop over one environment at a time.
"""

import contextlib
import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.spaces import flatten, map_leaves
from tests.envs.generated_env import (
    ACTIONS,
    ENDS,
    INFOS,
    OBSERVATIONS,
    REWARDS,
    GeneratedEnv,
    GeneratedVectorEnv,
    Plan,
    content,
    reward_of,
)

NUM_ENVS, STEPS, SEED = 3, 14, 5
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=[mode.name for mode in AutoresetMode])

episodes = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4).map(tuple)
plans = st.builds(
    Plan,
    episodes,
    st.sampled_from(["nothing", "own", "class"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(sorted(ENDS)),
    st.sampled_from(sorted(REWARDS)),
    st.sampled_from(sorted(INFOS)),
)
kinds = st.tuples(st.sampled_from(sorted(OBSERVATIONS)), st.sampled_from(sorted(ACTIONS)))


def plain_loop(observation_space, action_space, plan, seed, actions):
    """Runs one environment. Returns a row for each action: observation, reward, ends, start, final observation."""
    rows, episode, time = [], 0, 0
    for action in actions:
        length, truncates = plan.episodes[episode % len(plan.episodes)]
        before, after = (content(observation_space, seed, episode, moment) for moment in (time, time + 1))
        over = time + 1 == length
        reward = reward_of(action_space, action, time + 1)
        ends = over and not truncates, over and truncates
        rows.append((before, reward, *ends, time == 0, after if over else None))
        episode, time = (episode + 1, 0) if over else (episode, time + 1)
    return rows


def assert_same(space, got, expected):
    for leaf, one, other in zip(flatten_leaves(space), flatten(space, got), flatten(space, expected), strict=True):
        assert np.asarray(one).dtype == leaf.dtype
        np.testing.assert_array_equal(one, other)


def flatten_leaves(space):
    found = []
    map_leaves(found.append, space)
    return found


def row_of(space, batch, index):
    return map_leaves(lambda _, part: np.copy(part[index]), space, batch)


def random_actions(envs):
    space = batch_space(envs.single_action_space, envs.num_envs)
    space.seed(3)
    return [space.sample() for _ in range(STEPS)]


def check_stepper(envs, plan):
    """Steps the environments with random actions, and compares each one with the plain loop."""
    spaces = envs.single_observation_space, envs.single_action_space
    stepper, told = Stepper(envs, SEED), [[] for _ in range(envs.num_envs)]
    steps, counted = [], []
    for actions in random_actions(envs):
        before, starts = stepper.observations, stepper.episode_starts
        steps.append((before, starts, actions, stepper.step(actions), stepper.observations))
        counted += steps[-1][3].episodes
    # Only now, because what was told must not have changed since.
    for index in range(envs.num_envs):
        for before, starts, actions, step, after in steps:
            if not step.valid[index]:
                continue
            ends = bool(step.terminations[index]), bool(step.truncations[index])
            final = after if step.final_observations is None else step.final_observations
            told[index].append(
                (
                    row_of(spaces[0], before, index),
                    row_of(spaces[1], actions, index),
                    (step.rewards[index], *ends, bool(starts[index])),
                    row_of(spaces[0], final, index) if any(ends) else None,
                )
            )
        expected = plain_loop(*spaces, plan, SEED + index, [action for _, action, _, _ in told[index]])
        assert len(expected) >= STEPS // 2
        for (before, _, numbers, final), row in zip(told[index], expected, strict=True):
            assert_same(spaces[0], before, row[0])
            assert numbers == row[1:5]
            assert (final is None) == (row[5] is None)
            if final is not None:
                assert_same(spaces[0], final, row[5])
        lengths = [episode.length for episode in counted if episode.environment == index]
        assert lengths == [plan.episodes[i % len(plan.episodes)][0] for i in range(len(lengths))]
    assert sum(episode.episode_return for episode in counted) == pytest.approx(
        sum(step[2][0] for rows in told for step in rows[: last_end(rows)])
    )


def last_end(rows):
    return max([i + 1 for i, row in enumerate(rows) if row[3] is not None], default=0)


@MODES
@settings(max_examples=40, deadline=None)
@given(kind=kinds, plan=plans)
def test_one_after_the_other(mode, kind, plan):
    GeneratedEnv.buffer = None
    envs = make_vec(functools.partial(GeneratedEnv, *kind, plan), NUM_ENVS, vectorization="sync", autoreset_mode=mode)
    check_stepper(envs, plan)


@MODES
@settings(max_examples=25, deadline=None)
@given(kind=kinds, plan=plans)
def test_a_sync_vector_env_that_is_handed_in(mode, kind, plan):
    GeneratedEnv.buffer = None
    envs = SyncVectorEnv([functools.partial(GeneratedEnv, *kind, plan)] * NUM_ENVS, autoreset_mode=mode)
    check_stepper(make_vec(envs), plan)


@MODES
@settings(max_examples=25, deadline=None)
@given(kind=kinds, plan=plans)
def test_a_vector_environment_of_ones_own(mode, kind, plan):
    check_stepper(make_vec(GeneratedVectorEnv(NUM_ENVS, *kind, plan, mode)), plan)


@MODES
def test_an_id_with_a_vector_entry_point(mode):
    plan = Plan(episodes=((2, False), (1, True)), spoils=True, end="one", info="ragged")
    gym.register(
        "Generated-v0",
        vector_entry_point=lambda num_envs, autoreset_mode: GeneratedVectorEnv(
            num_envs, "nested", "multi-discrete", plan, autoreset_mode
        ),
    )
    try:
        check_stepper(make_vec("Generated-v0", NUM_ENVS, autoreset_mode=mode), plan)
    finally:
        del gym.registry["Generated-v0"]


@MODES
def test_in_processes_of_their_own(mode):
    """The workers are the same for all plans, which are sent to them."""
    kind = "nested", "multi-discrete"
    with contextlib.closing(
        make_vec(functools.partial(GeneratedEnv, *kind), NUM_ENVS, vectorization="async", autoreset_mode=mode)
    ) as envs:

        @settings(max_examples=15, deadline=None)
        @given(plan=plans)
        def check(plan):
            envs.set_attr("plan", [plan] * NUM_ENVS)
            check_stepper(envs, plan)

        check()


class Scripted:
    """A policy that takes random actions, and has no state to speak of."""

    def __init__(self, envs):
        self.actions = iter(random_actions(envs))
        self.num_envs, self.values = envs.num_envs, np.zeros(envs.num_envs, np.float32)

    def initial_state(self, batch_size):
        return (np.zeros((batch_size, 1), np.float32),)

    def step(self, observations, state, episode_starts, *action_masks):
        return next(self.actions), self.values, self.values, state

    def value(self, observations, state, episode_starts):
        return self.values

    def clip_actions(self, actions):
        return actions


@MODES
@settings(max_examples=20, deadline=None)
@given(kind=kinds, plan=plans)
def test_a_rollout_records_what_happened(mode, kind, plan):
    GeneratedEnv.buffer = None
    envs = make_vec(functools.partial(GeneratedEnv, *kind, plan), NUM_ENVS, vectorization="sync", autoreset_mode=mode)
    spaces = envs.single_observation_space, envs.single_action_space
    rollout = RolloutRunner(Scripted(envs), envs, STEPS, STEPS, seed=SEED).run()
    for index in range(NUM_ENVS):
        valid = np.flatnonzero(rollout.valid[:, index])
        actions = [row_of(spaces[1], rollout.actions, (t, index)) for t in valid]
        expected = plain_loop(*spaces, plan, SEED + index, actions)
        for t, (before, reward, terminated, truncated, start, _) in zip(valid, expected, strict=True):
            assert_same(spaces[0], row_of(spaces[0], rollout.observations, (t, index)), before)
            assert rollout.rewards[t, index] == reward
            assert rollout.terminations[t, index] == terminated
            assert rollout.episode_ends[t, index] == (terminated or truncated)
            assert rollout.episode_starts[t, index] == start
