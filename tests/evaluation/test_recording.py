"""Recorded episodes contain what happened, and replaying them gives the same actions."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

from rl_lnlstm import UserError, evaluate_policy, record_episodes
from rl_lnlstm.envs import make_vec
from rl_lnlstm.evaluation.record import save_episode
from rl_lnlstm.policies import MlpLnLstmPolicy, MultiInputLnLstmPolicy
from tests.failing_env import SURVIVED, episode_length, failing_envs
from tests.policies import reference
from tests.policies.card_env import CardEnv
from tests.policies.scripted_env import MODES, scripted_envs

SMALL = {"units": 4, "head_layers": (5,), "seed": 0}
STATE = "h", "c", "last_action_reward"


def small_policy(envs, policy_class=MlpLnLstmPolicy, **arguments):
    policy = policy_class(envs.single_observation_space, envs.single_action_space, **SMALL, **arguments)
    return reference.randomise(policy)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("deterministic", [True, False])
def test_they_are_what_happened(mode, deterministic):
    envs = scripted_envs(mode, copy=False)  # writes into the arrays that it returned before
    episodes = record_episodes(small_policy(envs), envs, 12, deterministic)
    logs = {tuple(log.rewards): log for env in envs.envs for log in env.log[:3]}
    assert {tuple(episode["rewards"]) for episode in episodes} == set(logs)
    for episode in episodes:
        log = logs[tuple(episode["rewards"])]
        np.testing.assert_array_equal([*episode["observations"], episode["final_observation"]], log.observations)
        np.testing.assert_array_equal(episode["actions"], log.actions)
        assert episode["terminated"] == log.terminated
        assert episode["truncated"] == (log.ending in ("truncated", "both"))


def card_envs(mode):
    return SyncVectorEnv([CardEnv] * 3, autoreset_mode=mode)


def cart_poles(mode):
    return make_vec("CartPole-v1", 3, autoreset_mode=mode)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("make_envs", "arguments"),
    [
        (cart_poles, {}),
        (cart_poles, {"previous_action": True, "previous_reward": True}),
        (cart_poles, {"shared_lstm": False, "num_layers": 2}),
        (card_envs, {}),
        (scripted_envs, {}),
    ],
    ids=["plain", "last action and reward", "four LSTM layers", "action masks", "episodes of one step"],
)
def test_the_policy_repeats_every_recorded_action(mode, make_envs, arguments):
    envs = make_envs(mode)
    policy = small_policy(envs, **arguments)
    episodes = record_episodes(policy, envs, 8, seed=1)
    assert len(episodes) == 8
    for episode in episodes:
        state = [episode[name] for name in STATE if name in episode]
        assert len(state) == 2 + ("previous_action" in arguments)
        assert all((part[0] == 0).all() for part in state)
        masks = episode.get("action_masks")
        assert (masks is not None) == (make_envs is card_envs)
        actions, after = policy.predict(episode["observations"], tuple(state), deterministic=True, action_masks=masks)
        np.testing.assert_array_equal(actions, episode["actions"])
        after = policy.rewarded(after, episode["rewards"])
        for part, recorded in zip(after, state, strict=True):
            np.testing.assert_allclose(part[:-1], recorded[1:], atol=1e-6)
        values = policy.value(episode["observations"], state, np.zeros(len(actions), bool))
        np.testing.assert_allclose(values, episode["values"], atol=1e-6)


def test_they_are_the_episodes_of_the_evaluation():
    envs = make_vec("Pendulum-v1", 3)
    policy = small_policy(envs)
    policy.seed(3)
    returns, lengths = evaluate_policy(policy, envs, 4, False, seed=2, return_episode_rewards=True)
    policy.seed(3)
    episodes = record_episodes(policy, envs, 4, False, seed=2)
    np.testing.assert_allclose([episode["rewards"].sum() for episode in episodes], returns)
    assert [len(episode["observations"]) for episode in episodes] == lengths


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_nothing_is_left_of_an_episode_that_broke_off(mode):
    envs = failing_envs(SURVIVED, mode=mode)
    episodes = record_episodes(small_policy(envs), envs, 5 * len(SURVIVED), seed=0)
    assert envs.failures == len(SURVIVED) - 1
    for episode in episodes:
        seeds, numbers, times = np.transpose([*episode["observations"], episode["final_observation"]])
        assert len(set(zip(seeds, numbers, strict=True))) == 1
        np.testing.assert_allclose(times, np.arange(len(times)) / 10)
        assert len(episode["rewards"]) == episode_length(int(seeds[0]), int(numbers[0]))


class Signals(gym.Env):
    """Nested observations, which are the numbers of steps, and nested actions."""

    observation_space = gym.spaces.Dict(
        {"x": gym.spaces.Box(-9, 9, (2,)), "pair": gym.spaces.Tuple([gym.spaces.Discrete(9), gym.spaces.Discrete(9)])}
    )
    action_space = gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(-1, 1, (2,))])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.taken = 0
        return self._observation(), {}

    def step(self, action):
        self.taken += 1
        return self._observation(), 1.0, self.taken == 4, False, {}

    def _observation(self):
        return {"x": np.full(2, self.taken, np.float32), "pair": (self.taken, 8 - self.taken)}


def test_entries_have_names_and_files_need_no_pickle(tmp_path):
    envs = make_vec(Signals, 2)
    *_, episode = record_episodes(small_policy(envs, MultiInputLnLstmPolicy), envs, 3)
    save_episode(episode, tmp_path / "new" / "folder" / "episode.npz")
    with np.load(tmp_path / "new" / "folder" / "episode.npz", allow_pickle=False) as arrays:
        assert set(arrays) == set(episode)
        np.testing.assert_array_equal(arrays["observations/x"][:, 0], [0, 1, 2, 3])
        np.testing.assert_array_equal(arrays["observations/pair/1"], [8, 7, 6, 5])
        np.testing.assert_array_equal(arrays["final_observation/x"], [4, 4])
        assert arrays["final_observation/pair/1"] == 4
        assert arrays["actions/0"].shape == (4,)
        assert arrays["actions/1"].shape == (4, 2)
        np.testing.assert_array_equal(arrays["rewards"], [1, 1, 1, 1])
        assert arrays["h"].shape == arrays["c"].shape == (4, 4)
        assert arrays["terminated"]
        assert not arrays["truncated"]


class Foreign:
    """A policy as of Stable-Baselines3, whose state is its own affair."""

    observation_space, action_space = Signals.observation_space, Signals.action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        count = len(episode_start)
        return (np.zeros(count, int), np.zeros((count, 2), np.float32)), "a state"


def test_of_other_policies_what_they_saw_and_did_is_recorded():
    (episode,) = record_episodes(Foreign(), Signals, 1)
    assert len(episode["rewards"]) == 4
    assert not {"h", "c", "values"} & set(episode)


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be recorded in"):
        save_episode({"rewards": np.zeros(1)}, tmp_path / "file" / "episode.npz")
