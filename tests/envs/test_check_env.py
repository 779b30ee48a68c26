"""Faulty environments are found before a run, and the message says what is wrong."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rl_lnlstm import UserError
from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.check_env import check_env
from rl_lnlstm.envs.faults import user_frames
from rl_lnlstm.errors import EnvironmentFailure, RunWarning
from tests.envs.masked_env import Cards
from tests.policies.card_env import CardEnv


class Good(gym.Env):
    observation_space = gym.spaces.Dict({"x": gym.spaces.Box(-1, 1, (2,)), "cue": gym.spaces.Discrete(3)})
    action_space = gym.spaces.Discrete(2)
    observation = property(lambda self: {"x": np.zeros(2, np.float32), "cue": 1})
    answer = property(lambda self: (self.observation, 0.0, False, False, {}))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation, {}

    def step(self, action):
        return self.answer


def bug(self, *_, **__):
    return 1 / 0


X = np.zeros(2, np.float32)
WRONG = {
    "reset gives text": ({"reset": lambda self, **_: "hello"}, ["a str from reset", "(observation, info)"]),
    "reset gives an observation": ({"reset": lambda self, **_: self.observation}, ["a dict from reset"]),
    "reset takes no seed": ({"reset": lambda self: 0}, ["'seed'", "reset(self, *, seed=None, options=None)"]),
    "step takes no action": ({"step": lambda self: 0}, ["step(self, action)"]),
    "the step of the old Gym": ({"step": lambda self, _: (self.observation, 0.0, False, {})}, ["4 values", "5 values"]),
    "step gives nothing": ({"step": lambda self, _: None}, ["from step", "5 values"]),
    "an entry is missing": ({"observation": {"x": X}}, ["without 'cue'"]),
    "outside of a Discrete": ({"observation": {"x": X, "cue": 7}}, ["7 in observation['cue']", "0..2"]),
    "another shape": ({"observation": {"x": np.zeros(3), "cue": 1}}, ["observation['x']", "[3]", "[2]"]),
    "not a number": ({"observation": {"x": X + np.nan, "cue": 1}}, ["nan in observation['x']"]),
    "a list for a Dict": ({"observation": [X, 1]}, ["expected a dict"]),
    "a reward of text": ({"answer": ({"x": X, "cue": 1}, "much", False, False, {})}, ["'much' as reward"]),
    "a reward of None": ({"answer": ({"x": X, "cue": 1}, None, False, False, {})}, ["None as reward"]),
    "an end of text": ({"answer": ({"x": X, "cue": 1}, 0.0, "no", False, {})}, ["'no' as termination", "bool"]),
    "an info of None": (
        {"answer": ({"x": X, "cue": 1}, 0.0, False, False, None)},
        ["None as info from step", "a dict"],
    ),
    "another entry": ({"observation": {"x": X, "cue": 1, "Cue": 2}}, ["observation with 'Cue' from reset"]),
    "a bug": ({"step": bug}, ["ZeroDivisionError"]),
    "a bug in the constructor": ({"__init__": bug}, ["could not be made", "ZeroDivisionError"]),
    "no observation space": ({"observation_space": None}, ["observation_space must be a gymnasium.Space, got None"]),
    "no action space": ({"action_space": "left"}, ["action_space must be a gymnasium.Space, got 'left'"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_in_plain_words(wrong):
    attributes, words = WRONG[wrong]
    with pytest.raises((EnvironmentFailure, UserError)) as raised:
        check_env(type("Mine", (Good,), attributes))
    assert "Mine" in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_good_environments_pass():
    for env in (Good, CardEnv, lambda: CardEnv("method"), "CartPole-v1", "Blackjack-v1", "TMaze-v0"):
        check_env(env)


@pytest.mark.parametrize(
    "space",
    [spaces.MultiBinary(3), spaces.MultiDiscrete([3]), spaces.MultiDiscrete([[2, 2]]), spaces.Discrete(4, start=-1)],
    ids=str,
)
def test_the_action_that_is_tried_is_legal(space):
    """`Cards` raises if an action is illegal. It numbers actions from 0."""

    class Mine(Cards):
        def __init__(self):
            super().__init__(space)

        def step(self, action):
            assert action in space
            return super().step(action - getattr(space, "start", 0))

    check_env(Mine, mask_key="action_mask")


def test_an_observation_out_of_bounds_is_a_warning():
    with pytest.warns(RunWarning, match="returned 5 in an observation, .* bounds of its space, -1 to 1"):
        check_env(type("Mine", (Good,), {"observation": {"x": X + 5, "cue": 1}}))
    single = {"observation_space": spaces.Box(-1, 1, ()), "observation": np.float32(5)}
    with pytest.warns(RunWarning, match="returned 5 in an observation"):
        check_env(type("Mine", (Good,), single))


@pytest.mark.peers
def test_what_only_a_vector_implementation_takes_is_not_tried_with_single_environments():
    """ALE's vector implementation stacks frames, its single environments do not."""
    pytest.importorskip("ale_py")
    for vectorization in ("auto", "vector_entry_point"):
        check_env("ALE/Pong-v5", vectorization=vectorization, env_kwargs={"stack_num": 1})
    with pytest.raises(UserError, match=r"does not take env_kwargs.*stack_num"):
        check_env("ALE/Pong-v5", vectorization="sync", env_kwargs={"stack_num": 1})


class Breaking(Good):
    def step(self, action):
        return self.deeper()

    def deeper(self):
        raise KeyError("a bug of mine")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_first_failure_shows_the_users_lines_and_all_failing_at_once_ends(vectorization):
    envs = make_vec(Breaking, 2, vectorization=vectorization, max_failures=10)
    envs.reset(seed=0)
    with pytest.raises(EnvironmentFailure, match="so does every environment in its first step") as raised:
        envs.step(np.zeros(2, int))
    envs.close()
    frames = user_frames(raised.value.__cause__)
    assert "in deeper" in frames
    assert "in step" in frames
    assert __file__ in frames
    assert "guard.py" not in frames
    assert 'raise KeyError("a bug of mine")' in frames
    assert envs.failures == 1


def test_a_module_for_an_id_and_an_environment_without_pictures_are_named(tmp_path, monkeypatch):
    (tmp_path / "my_corridor.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="it is a module, so write my_corridor:ID"):
        make_vec("my_corridor")
    gym.register("NoPictures-v0", Good)
    with pytest.raises(UserError, match=r"does not take render_mode='rgb_array', which videos need.*RGB array"):
        make_vec("NoPictures-v0", render_mode="rgb_array")
    gym.registry.pop("NoPictures-v0")


class Custom(gym.Space):
    """A space that Gymnasium does not know."""

    def sample(self, mask=None, probability=None):
        return 0

    def contains(self, x):
        return True


@pytest.mark.parametrize(
    "space",
    [
        spaces.Sequence(spaces.Box(0, 1)),
        spaces.Dict(x=spaces.Discrete(2), graph=spaces.Graph(spaces.Box(0, 1), None)),
        Custom((), np.float32),
    ],
    ids=["sequence", "graph", "custom"],
)
def test_spaces_that_are_not_supported_are_named(space):
    made = type("Other", (Good,), {"observation_space": space})
    for try_ in (check_env, lambda env: make_vec(env, 2, vectorization="async")):
        with pytest.raises(UserError, match=r"observation space must be Box, Discrete.*got (Sequence|Graph|.*Custom)"):
            try_(made)
