"""A padded batch of recorded episodes is the episodes, and nothing else."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import MaskedLNLSTM, UserError, load_episodes, pad_episodes, record_episodes
from rl_lnlstm.commands import main
from rl_lnlstm.evaluation.record import save_episode
from rl_lnlstm.files import replacing_file
from rl_lnlstm.policies import MlpLnLstmPolicy, policy_for
from tests.policies import reference
from tests.policies.card_env import CardEnv

SMALL = {"units": 4, "head_layers": (5,), "seed": 0}


class Nested(gym.Env):
    """Nested spaces, integers that do not begin at 0, and episodes of different lengths."""

    observation_space = gym.spaces.Dict(
        {
            "picture": gym.spaces.Box(0, 255, (2, 3), np.uint8),
            "pair": gym.spaces.Tuple([gym.spaces.Discrete(9, start=1), gym.spaces.Dict(x=gym.spaces.Box(-1, 1, (2,)))]),
        }
    )
    action_space = gym.spaces.Tuple([gym.spaces.Discrete(2, start=3), gym.spaces.Box(-1, 1, (2,))])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(1, 6))
        return self.observation_space.sample(), {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.sample(), float(self.left + 1), self.left == 0, False, {}


def made(env_class, count=6):
    env = env_class()
    policy = policy_for(env.observation_space)(env.observation_space, env.action_space, **SMALL)
    return reference.randomise(policy), record_episodes(policy, env_class, count, False, seed=1)


def test_every_step_is_in_its_place_and_nothing_else():
    _, episodes = made(Nested)
    batch = pad_episodes(episodes)
    assert len(set(batch.lengths.tolist())) > 1
    np.testing.assert_array_equal(batch.lengths, [len(episode["rewards"]) for episode in episodes])
    np.testing.assert_array_equal(batch.mask.sum(axis=1), batch.lengths)
    np.testing.assert_array_equal(batch.episode_starts.sum(axis=1), 1)
    assert batch.episode_starts[:, 0].all()
    columns = {
        "observations/picture": batch.observations["picture"],
        "observations/pair/0": batch.observations["pair"][0],
        "observations/pair/1/x": batch.observations["pair"][1]["x"],
        "actions/0": batch.actions[0],
        "actions/1": batch.actions[1],
        "rewards": batch.rewards,
        "values": batch.values,
        "h": batch.state[0],
        "c": batch.state[1],
    }
    for row, episode in enumerate(episodes):
        assert {name for name, array in episode.items() if array.ndim and "final" not in name} == columns.keys()
        for name, column in columns.items():
            assert column.dtype == episode[name].dtype, name
            np.testing.assert_array_equal(column[row][batch.mask[row]], episode[name], err_msg=name)
        np.testing.assert_array_equal(batch.final_observation["picture"][row], episode["final_observation/picture"])
        assert batch.seeds[row] == episode["seed"]
        assert batch.terminated[row] == episode["terminated"]
        assert batch.truncated[row] == episode["truncated"]
    assert (batch.rewards[~batch.mask] == 0).all()


def test_the_batch_can_be_recomputed_padding_included():
    """Padding stays in the spaces. Actions 3 and 4 include no 0, and zeros would allow no card."""
    for env_class in (Nested, CardEnv):
        policy, episodes = made(env_class)
        batch = pad_episodes(episodes)
        assert (batch.action_masks is not None) == (env_class is CardEnv)
        log_probs, _, values = policy.evaluate_actions(
            batch.observations, batch.actions, None, batch.episode_starts, batch.action_masks
        )
        np.testing.assert_allclose(values.numpy()[batch.mask], batch.values[batch.mask], atol=1e-5)
        assert np.isfinite(log_probs).all()


def test_mask_is_the_padding_mask_of_the_layer():
    _, episodes = made(CardEnv)
    batch = pad_episodes(episodes)
    layer = MaskedLNLSTM(3)
    inputs = batch.state[0]
    outputs = layer(inputs, masks=1 - batch.episode_starts, mask=batch.mask)
    for row, length in enumerate(batch.lengths):
        np.testing.assert_allclose(outputs[row : row + 1], layer(inputs[row : row + 1, :length]), atol=1e-6)


def test_the_unfinished_file_of_a_killed_recording_is_left_out(tmp_path):
    episode = {"rewards": np.ones(3)}
    save_episode(episode, tmp_path / "episode-00000.npz")
    with replacing_file(tmp_path / "episode-00001.npz") as unfinished:
        unfinished.write_bytes(b"PK")
        (loaded,) = load_episodes(tmp_path)
    assert loaded.keys() == episode.keys()


def test_what_the_command_recorded_is_loaded_in_order(tmp_path):
    policy = MlpLnLstmPolicy(gym.make("CartPole-v1").observation_space, gym.spaces.Discrete(2), **SMALL)
    policy.save(tmp_path / "policy")
    record = ["--record", str(tmp_path / "episodes"), "--seed", "1"]
    assert main(["evaluate", str(tmp_path / "policy"), "--env-id", "CartPole-v1", "--episodes", "12", *record]) == 0
    episodes = load_episodes(tmp_path / "episodes")
    expected = record_episodes(policy, "CartPole-v1", 12, seed=1)
    assert len(episodes) == 12
    for one, other in zip(episodes, expected, strict=True):
        assert one.keys() == other.keys()
        assert one["seed"] == other["seed"]
        np.testing.assert_allclose(one["observations"], other["observations"], atol=1e-5)


def test_keys_that_look_like_those_of_a_tuple_need_the_space():
    space = gym.spaces.Dict({"0": gym.spaces.Discrete(3), "a/b": gym.spaces.Discrete(3)})
    given = {f"{name}/{key}": np.ones(4) for name in ("observations", "final_observation") for key in space}
    ends = {"terminated": np.True_, "truncated": np.False_}
    episode = {**given, "actions": np.zeros(4), "rewards": np.zeros(4), **ends}
    assert pad_episodes([episode], space).observations.keys() == space.keys()
    with pytest.raises(UserError, match="no observations/2, which the space has"):
        pad_episodes([episode], gym.spaces.Dict({"2": gym.spaces.Discrete(3)}))


def test_what_is_no_batch_of_episodes_is_named(tmp_path):
    _, episodes = made(CardEnv, 3)
    with pytest.raises(UserError, match="no episodes to pad"):
        pad_episodes([])
    with pytest.raises(UserError, match="episode 0 is not one of record_episodes: it has no rewards"):
        pad_episodes([{"observations": np.zeros(3)}])
    with pytest.raises(UserError, match="episodes 0 and 1 do not have the same arrays: more"):
        pad_episodes([episodes[0], {**episodes[1], "more": episodes[1]["rewards"]}])
    with pytest.raises(UserError, match="episode 0: its arrays must have the same number of steps"):
        pad_episodes([{**episodes[0], "rewards": np.zeros(99)}])
    with pytest.raises(UserError, match="episode 0: success must be an array with a row for each step"):
        pad_episodes([{**episode, "success": np.True_} for episode in episodes])
    with pytest.raises(UserError, match="h differs in shape from episode to episode"):
        pad_episodes([episodes[0], {**episodes[1], "h": episodes[1]["h"][:, :2]}])
    with pytest.raises(UserError, match="holds no episodes"):
        load_episodes(tmp_path)
    save_episode(episodes[0], tmp_path / "episode-00000.npz")
    (tmp_path / "episode-00001.npz").write_bytes((tmp_path / "episode-00000.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"episode-00001\.npz is not a recorded episode"):
        load_episodes(tmp_path)
    np.savez(tmp_path / "episode-00001.npz", rewards=np.array([print], object))
    with pytest.raises(UserError, match=r"episode-00001\.npz is not a recorded episode"):
        load_episodes(tmp_path)
