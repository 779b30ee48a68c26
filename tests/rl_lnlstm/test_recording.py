"""Recorded episodes are those of the evaluation, and the policy acts in them as it did."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rl_lnlstm import UserError, evaluate_policy, record_episodes
from rl_lnlstm.envs import make_vec
from rl_lnlstm.policies import MlpLnLstmPolicy, MultiInputLnLstmPolicy
from rl_lnlstm.recording import save_episodes
from tests.policies import reference

SMALL = {"units": 4, "head_layers": (5,), "seed": 0}


def small_policy(envs, policy_class=MlpLnLstmPolicy, **arguments):
    policy = policy_class(envs.single_observation_space, envs.single_action_space, **SMALL, **arguments)
    return reference.randomise(policy)


@pytest.mark.parametrize("mode", AutoresetMode, ids=lambda mode: mode.name)
@pytest.mark.parametrize("arguments", [{}, {"previous_action": True}], ids=["plain", "feedback"])
def test_the_policy_repeats_every_recorded_action(mode, arguments):
    envs = make_vec("CartPole-v1", 3, autoreset_mode=mode)
    policy = small_policy(envs, **arguments)
    episodes = record_episodes(policy, envs, 5, seed=1)
    assert len(episodes) == 5
    for episode in episodes:
        state = [episode[name] for name in ("h", "c", "feedback") if name in episode]
        assert all((part[0] == 0).all() for part in state)
        assert all((part[1:] != 0).any() for part in state)
        actions, after = policy.predict(episode["observations"], tuple(state), deterministic=True)
        np.testing.assert_array_equal(actions, episode["actions"])
        for part, name in zip(after, ("h", "c", "feedback"), strict=False):
            np.testing.assert_allclose(part[:-1], episode[name][1:], atol=1e-6)
        assert bool(episode["terminated"]) != bool(episode["truncated"])


def test_they_are_the_episodes_of_the_evaluation():
    envs = make_vec("CartPole-v1", 3)
    policy = small_policy(envs)
    returns, lengths = evaluate_policy(policy, envs, 7, seed=2, return_episode_rewards=True)
    episodes = record_episodes(policy, envs, 7, seed=2)
    assert [episode["rewards"].sum() for episode in episodes] == returns
    assert [len(episode["observations"]) for episode in episodes] == lengths


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
    episodes = record_episodes(small_policy(envs, MultiInputLnLstmPolicy), envs, 3)
    save_episodes(episodes, tmp_path / "new" / "folder")
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        f"episode-00{number}.npz" for number in range(3)
    ]
    with np.load(tmp_path / "new" / "folder" / "episode-002.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["observations/x"][:, 0], [0, 1, 2, 3])
        np.testing.assert_array_equal(arrays["observations/pair/1"], [8, 7, 6, 5])
        assert arrays["actions/0"].shape == (4,)
        assert arrays["actions/1"].shape == (4, 2)
        np.testing.assert_array_equal(arrays["rewards"], [1, 1, 1, 1])
        assert arrays["h"].shape == arrays["c"].shape == (4, 4)
        assert arrays["terminated"]


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be recorded in"):
        save_episodes([{"rewards": np.zeros(1)}], tmp_path / "file")
