"""Vector environments and wrappers that other code made: what they hide is noticed, mended or named."""

import contextlib
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import ClipReward, TimeLimit, TransformReward
from gymnasium.wrappers import vector as vector_wrappers

from rl_lnlstm.envs import TMazeVectorEnv, make_vec
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.envs.foreign_envs import ExistingEnv
from rl_lnlstm.envs.vector_guard import GuardedVectorEnv
from rl_lnlstm.errors import EnvironmentFailure, RunWarning

MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=[mode.name for mode in AutoresetMode])
NOTHING = np.zeros(2, int)


class Three(gym.Env):
    """Episodes of three steps; the observation is the time and a number of the episode, the reward is ten."""

    observation_space, action_space = spaces.Box(-9, 99, (2,), np.float32), spaces.Discrete(2)

    def __init__(self, reuses=False):
        self.reuses, self.episode = reuses, 0
        self.array = np.zeros(2, np.float32)

    def _observation(self):
        if not self.reuses:
            self.array = np.zeros(2, np.float32)
        self.array[:] = self.time, self.episode
        return self.array

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.episode = 0, self.episode + 1
        return self._observation(), {}

    def step(self, action):
        self.time += 1
        return self._observation(), 10.0, False, self.time == 3, {}


class Vector(VectorEnv):
    """Two such environments that are stepped together, in autoreset mode NEXT_STEP."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self):
        self.num_envs, self.single_observation_space, self.single_action_space = 2, spaces.Box(0, 9, ()), NOT_MANY
        self.observation_space, self.action_space = spaces.Box(0, 9, (2,)), batch_space(NOT_MANY, 2)

    def reset(self, *, seed=None, options=None):
        self.time = np.zeros(2, np.float32)
        return self.time, {}

    def step(self, actions):
        self.time = np.where(self.time == 3, 0, self.time + 1).astype(np.float32)
        return self.time, np.full(2, 10.0), self.time == 3, np.zeros(2, bool), {}


NOT_MANY = spaces.Discrete(2)


def episodes_of(stepper, steps=12):
    return [episode for _ in range(steps) for episode in stepper.step(NOTHING).episodes]


def test_an_error_in_close_of_a_vector_environment_is_a_warning():
    class Fails(Vector):
        def close_extras(self, **kwargs):
            raise RuntimeError("already gone")

    with pytest.warns(RunWarning, match="Fails raised RuntimeError in close: already gone"):
        make_vec(Fails()).close()


# ------------------------------------------------------------------------------------------------- used by others


@pytest.mark.parametrize(
    "make",
    [Vector, lambda: AsyncVectorEnv([Three] * 2), lambda: make_vec(Three, 2), lambda: SyncVectorEnv([Three] * 2)],
    ids=["own", "async", "made", "sync"],
)
@pytest.mark.parametrize("how", ["reset", "step"])
def test_calls_of_the_raw_environments_are_noticed(make, how):
    with contextlib.closing(make()) as envs:
        stepper = Stepper(envs, 0)
        raw = envs.unwrapped
        assert stepper.step(NOTHING).aborted is None
        raw.reset() if how == "reset" else raw.step(NOTHING)
        with pytest.warns(RunWarning, match="other code used the training environments"):
            assert stepper.step(NOTHING).aborted.all()
        episodes = episodes_of(stepper)
        assert len(episodes) >= 4
        assert {(episode.length, episode.episode_return) for episode in episodes} == {(3, 30.0)}


@pytest.mark.parametrize("how", ["reset", "step", "evaluation"])
def test_calls_of_an_environment_object_are_noticed(how):
    env = gym.wrappers.RecordEpisodeStatistics(Three())
    envs = make_vec(ExistingEnv(env), 1)
    stepper = Stepper(envs, 0)
    assert stepper.step(NOTHING[:1]).aborted is None
    if how == "evaluation":
        Stepper(make_vec(ExistingEnv(env), 1), 0)
    else:
        env.reset() if how == "reset" else env.step(0)
    with pytest.warns(RunWarning, match="other code used the training environments"):
        assert stepper.step(NOTHING[:1]).aborted.all()
    assert [stepper.step(NOTHING[:1]).episodes for _ in range(3)][-1][0][1:3] == (30.0, 3)

    state, counters, parts = stepper.get_state(), envs.get_state(), envs.take_snapshot()
    stepper.step(NOTHING[:1])
    envs.restore_snapshot(parts)
    envs.set_state(counters)
    stepper.set_state(state)
    stepper.step(NOTHING[:1])
    env.reset()  # which is now another environment
    assert stepper.step(NOTHING[:1]).aborted is None


def test_a_restored_copy_is_counted_too():
    envs = make_vec(Vector())
    stepper = Stepper(envs, 0)
    stepper.step(NOTHING)
    state, counters, parts = stepper.get_state(), envs.get_state(), envs.take_snapshot()
    stepper.step(NOTHING)
    envs.restore_snapshot(parts)
    envs.set_state(counters)
    stepper.set_state(state)
    assert stepper.step(NOTHING).aborted is None
    np.testing.assert_array_equal(stepper.observations, [2, 2])
    envs.unwrapped.step(NOTHING)
    with pytest.warns(RunWarning, match="other code"):
        assert stepper.step(NOTHING).aborted.all()


def test_a_snapshot_of_a_single_environment_is_refused_and_changes_nothing():
    single, envs = make_vec(Three, 1), make_vec("TMaze-v0", 1)
    assert isinstance(envs.unwrapped, TMazeVectorEnv)
    Stepper(single, 0)
    stepper = Stepper(envs, 0)
    with pytest.raises(ValueError, match="of single environments"):
        envs.restore_snapshot(single.take_snapshot())
    assert stepper.step(NOTHING[:1]).aborted is None


def test_a_restored_copy_of_a_wrapped_environment_is_counted_and_scored():
    envs = make_vec(vector_wrappers.ClipReward(Vector(), -1, 1))
    stepper = Stepper(envs, 0)
    envs.restore_snapshot(envs.take_snapshot())
    stepper.restart(0)
    assert {episode.episode_return for episode in episodes_of(stepper)} == {30.0}
    envs.unwrapped.step(NOTHING)
    with pytest.warns(RunWarning, match="other code"):
        assert stepper.step(NOTHING).aborted.all()


# --------------------------------------------------------------------------------------------- final observations


@pytest.mark.parametrize("reuses", [True, False])
def test_final_observations_that_are_overwritten_are_named(reuses):
    envs = AsyncVectorEnv([lambda: Three(reuses)] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
    with contextlib.closing(make_vec(envs)) as envs, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stepper = Stepper(envs, 0)
        finals = [stepper.step(NOTHING).final_observations for _ in range(33)]
    named = [text for text in map(str, (warning.message for warning in caught)) if "the last observations of" in text]
    assert len(named) == reuses
    if not reuses:
        np.testing.assert_array_equal(finals[2], [[3, 1], [3, 1]])


@pytest.mark.parametrize(
    "set_level",
    [
        lambda envs, name: envs.set_attr(name, 3),
        lambda envs, name: [setattr(env, name, 3) for env in envs.envs],
    ],
    ids=["set_attr", "setattr"],
)
@pytest.mark.parametrize("name", ["level", "_max_episode_steps"])
def test_attributes_that_other_code_sets_reach_the_environments(set_level, name):
    inner = [TimeLimit(Three(), 9), TimeLimit(Three(), 9)]
    for env in inner:
        env.level = 0
    envs = SyncVectorEnv([ExistingEnv(env) for env in inner])
    make_vec(envs)
    set_level(envs, name)
    assert [getattr(env, name) for env in inner] == [3, 3]
    envs.set_attr("brightness", 5)
    assert envs.get_attr("brightness") == (5, 5)


# --------------------------------------------------------------------------------------------------------- scores


@MODES
@pytest.mark.parametrize(
    "wrap",
    [
        lambda envs: vector_wrappers.ClipReward(envs, -1, 1),
        lambda envs: vector_wrappers.TransformReward(envs, np.sign),
        lambda envs: vector_wrappers.RecordEpisodeStatistics(
            vector_wrappers.ClipReward(vector_wrappers.TransformReward(envs, lambda rewards: rewards / 5), -1, 1)
        ),
    ],
    ids=["clipped", "transformed", "both"],
)
@pytest.mark.parametrize("inner", [Three, lambda: ClipReward(Three(), -5, 5)], ids=["", "clipped inside"])
def test_scores_are_from_before_vector_wrappers_change_rewards(mode, wrap, inner):
    envs = wrap(SyncVectorEnv([inner] * 2, autoreset_mode=mode))
    stepper = Stepper(make_vec(envs), 0)
    assert stepper.step(NOTHING).rewards.max() == 1
    episodes = episodes_of(stepper)
    assert len(episodes) >= 4
    assert {episode.episode_return for episode in episodes} == {30.0}


def test_scores_are_from_before_a_wrapper_transforms_rewards():
    stepper = Stepper(make_vec(lambda: TransformReward(Three(), lambda reward: reward / 10), 2), 0)
    assert stepper.step(NOTHING).rewards.tolist() == [1, 1]
    assert {episode.episode_return for episode in episodes_of(stepper)} == {30.0}


class _Irregular:
    """Outside of the wrapper that clips: it steps twice, then twice not at all, then once."""

    calls = 0

    def step(self, action):
        self.calls += 1
        if self.calls % 4 in (2, 3):
            return (*self.last[:1], 0 * self.last[1], *self.last[2:])
        rewards = 0.0
        for _ in range(2 if self.calls % 4 == 1 else 1):
            self.last = self.env.step(action)
            rewards = rewards + self.last[1]
        return (self.last[0], rewards, *self.last[2:])


class Irregular(_Irregular, gym.Wrapper):
    """Of a single environment."""


class VectorIrregular(_Irregular, VectorWrapper):
    """Of a vector environment."""


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_vec(lambda: Irregular(ClipReward(Three(), -1, 1)), 2),
        lambda: make_vec(SyncVectorEnv([lambda: Irregular(ClipReward(Three(), -1, 1))] * 2)),
        lambda: make_vec(VectorIrregular(vector_wrappers.ClipReward(Vector(), -1, 1))),
    ],
    ids=["made", "sync", "vector"],
)
def test_scores_are_sums_where_an_outer_wrapper_steps_several_times_or_not_at_all(make):
    stepper = Stepper(make(), 0)
    assert [episode[1:3] for episode in episodes_of(stepper, 4)] == [(30.0, 4), (30.0, 4)]


def test_changed_rewards_in_processes_of_other_code_are_named():
    with pytest.warns(RunWarning, match="ClipReward changes rewards in the processes of an AsyncVectorEnv"):
        make_vec(AsyncVectorEnv([lambda: gym.wrappers.FlattenObservation(ClipReward(Three(), -1, 1))] * 2)).close()


class AtariPreprocessing(gym.Wrapper):
    """Has the attribute of Gymnasium's wrapper of this name."""

    def __init__(self, env, terminal_on_life_loss):
        super().__init__(env)
        self.terminal_on_life_loss = terminal_on_life_loss


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("how", ["sync", "async", "SyncVectorEnv", "AsyncVectorEnv"])
def test_episodes_of_single_lives_are_named(how, lives):
    def make():
        return gym.wrappers.FlattenObservation(AtariPreprocessing(Three(), lives))

    kinds = {"SyncVectorEnv": SyncVectorEnv, "AsyncVectorEnv": AsyncVectorEnv}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        envs = make_vec(kinds[how]([make] * 2)) if how in kinds else make_vec(make, 2, vectorization=how)
        envs.close()
    told = {str(warning.message) for warning in caught if issubclass(warning.category, RunWarning)}
    assert len(told) == lives
    assert all("AtariPreprocessing ends an episode with each life" in message for message in told)


@pytest.mark.peers
def test_what_ataris_vector_implementation_reports_is_named():
    pytest.importorskip("ale_py")
    for kwargs, expected in (
        ({"reward_clipping": True}, "clips rewards"),
        ({"reward_clipping": False, "episodic_life": True}, "episodic_life=True ends an episode with each life"),
    ):
        with pytest.warns(RunWarning, match=expected):
            make_vec(gym.make_vec("ale_py:ALE/Pong-v5", 2, vectorization_mode="vector_entry_point", **kwargs)).close()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RunWarning)
        make_vec("ale_py:ALE/Pong-v5", 2, vectorization="vector_entry_point").close()


# ---------------------------------------------------------------------------------------------------------- reset


class OfOldGym(Three):
    def reset(self):
        return np.zeros(2, np.float32), {}


@pytest.mark.parametrize("how", ["sync", "async", "SyncVectorEnv"])
def test_a_reset_without_seed_and_options_is_named_at_once(how):
    made = (
        SyncVectorEnv([OfOldGym]) if how == "SyncVectorEnv" else make_vec(OfOldGym, vectorization=how, max_failures=10)
    )
    with contextlib.closing(made):
        envs = made if isinstance(made, GuardedVectorEnv) else make_vec(made)
        with pytest.raises(EnvironmentFailure, match=r"has a reset without the arguments .*seed=None, options=None"):
            envs.reset(seed=0)
        assert envs.failures <= 1


class Legal(Three):
    """Only action 1 is legal."""

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset()
        return observation, {"action_mask": np.array([0, 1])}

    def step(self, action):
        *answer, _ = super().step(action)
        return *answer, {"action_mask": np.array([0, 1]), "won": self.time / 3}


@MODES
def test_infos_may_be_a_list(mode):
    inner = SyncVectorEnv([lambda: ClipReward(Legal(), -1, 1)] * 2, autoreset_mode=mode)
    stepper = Stepper(make_vec(vector_wrappers.DictInfoToList(inner), info_keys=["won"]), 0)
    episodes = []
    for _ in range(9):
        assert stepper.action_masks[:, 1].all()
        assert not (stepper.action_masks[:, 0] & ~stepper._resetting).any()
        episodes += stepper.step(NOTHING + 1).episodes
    assert len(episodes) >= 4
    assert {(episode.episode_return, episode.info["won"]) for episode in episodes} == {(30, 1)}
