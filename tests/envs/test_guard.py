"""Checks of environments: forbidden behaviour raises a clear error, and allowed behaviour does no harm.

`test_conformance` checks that rollouts record what really happened.
"""

import contextlib
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import ClipReward, NormalizeObservation, NormalizeReward
from gymnasium.wrappers.vector import NormalizeObservation as VectorNormalizeObservation

from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.envs.checks import checked_parts
from rl_lnlstm.errors import EnvironmentFailure, UserError
from tests.envs.told_env import BOTH, MODES, Told, episodes_of, play, told

NESTED = spaces.Dict(a=spaces.Tuple([spaces.Discrete(3), spaces.Box(0, 255, (2,), np.uint8)]))
# -------------------------------------------------------------------------------------------------------- refused


REFUSED = [
    ({"observation": np.zeros(3, np.float32)}, r"returned observation of shape \[3\], expected \[2\]"),
    ({"observation": np.zeros((1, 2), np.float32)}, r"observation of shape \[1, 2\], expected \[2\]"),
    ({"observation": np.zeros(2, complex)}, r"observation of complex128, expected float32"),
    ({"observation": "left"}, r"observation of shape \[\], expected \[2\]"),
    ({"observation": [[1.0], [1.0, 2.0]]}, r"as observation, which"),
    ({"space": spaces.Box(0, 255, (2,), np.uint8), "observation": np.array([7, 256])}, r"256 in observation, .* uint8"),
    ({"space": spaces.Box(0, 255, (2,), np.uint8), "observation": np.zeros(2)}, r"float64, expected uint8"),
    ({"space": spaces.Discrete(3), "observation": 3}, r"returned 3 in observation, expected 0\.\.2"),
    ({"space": spaces.Discrete(3), "observation": 1.0}, r"observation of float64, expected int64"),
    ({"space": spaces.MultiDiscrete([2, 2]), "observation": [0, 2]}, r"returned 2 in observation\[1\], outside"),
    ({"space": spaces.MultiBinary(2), "observation": [0, -1]}, r"returned -1 in observation\[1\], expected 0\.\.1"),
    ({"space": NESTED, "observation": {"b": 1}}, r"returned observation without 'a'"),
    ({"space": NESTED, "observation": {"a": (1,)}}, r"as observation\['a'\], expected a tuple of 2"),
    ({"space": NESTED, "observation": {"a": (1, np.zeros(3, np.uint8))}}, r"observation\['a'\]\[1\] of shape \[3\]"),
    ({"space": NESTED, "observation": (1, 2)}, r"as observation, expected a dict"),
    ({"reward": np.zeros(2)}, r"returned reward of shape \[2\], expected a number"),
    ({"reward": None}, r"returned None as reward, expected a number"),
    ({"reward": "1"}, r"returned '1' as reward, expected a number"),
    ({"terminated": np.zeros(2, bool)}, r"returned termination of shape \[2\], expected a bool"),
    ({"truncated": None}, r"returned None as truncation, expected a bool"),
    ({"terminated": np.nan}, r"returned nan as termination, expected a bool"),
    ({"info": {"won": "yes"}}, r"returned 'yes' as info\['won'\], expected a number"),
]


@pytest.mark.parametrize(("arguments", "expected"), REFUSED)
def test_what_breaks_a_rule_is_named(arguments, expected):
    with pytest.raises(EnvironmentFailure, match=rf"\(environment 0 in 0\.\.1\) .*{expected}") as failure:
        play(make_vec(told(**arguments), 2, vectorization="sync", max_failures=10, info_keys=["won"]))
    assert "in a row" not in str(failure.value), "a new environment would do the same"


@pytest.mark.parametrize(("arguments", "expected"), REFUSED[:1] + REFUSED[5:6] + REFUSED[7:8] + REFUSED[13:18])
def test_what_breaks_a_rule_is_named_in_workers_and_in_a_vector_env_that_is_handed_in(arguments, expected):
    with pytest.raises(EnvironmentFailure, match=expected):
        play(make_vec(told(**arguments), 2, vectorization="async", max_failures=10))
    with pytest.raises(EnvironmentFailure, match=rf"environment 0 in 0\.\.1\) .*{expected}"):
        play(make_vec(SyncVectorEnv([told(**arguments)] * 2)))


@pytest.mark.parametrize("answer", [None, (1, 2, 3, 4), 7])
def test_a_step_that_returns_something_else_is_named(answer):
    class Short(Told):
        def step(self, action):
            return answer

    with pytest.raises(EnvironmentFailure, match=r"from step, expected 5 values"):
        play(make_vec(Short))


class Own(VectorEnv):
    """A vector environment that returns given values."""

    def __init__(self, mode=AutoresetMode.NEXT_STEP, infos=None, **answers):
        self.metadata, self.num_envs = {"autoreset_mode": mode}, 3
        self.single_observation_space, self.single_action_space = spaces.Box(-9, 9, (2,)), spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, 3)
        self.action_space = batch_space(self.single_action_space, 3)
        self.infos = infos or {}
        self.answers = {"rewards": np.ones(3), "terminations": np.ones(3, bool), "truncations": np.zeros(3, bool)}
        self.answers |= answers

    def reset(self, *, seed=None, options=None):
        return np.zeros((3, 2), np.float32), {}

    def step(self, actions):
        observations = self.answers.get("observations", np.zeros((3, 2), np.float32))
        return observations, *(self.answers[name] for name in ("rewards", "terminations", "truncations")), self.infos


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"observations": np.zeros((3, 4), np.float32)}, r"observation of shape \[3, 4\], expected \[3, 2\]"),
        ({"observations": np.zeros((3, 2), complex)}, r"observation of complex128"),
        ({"rewards": np.ones(2)}, r"rewards of shape \[2\], expected \[3\]"),
        ({"rewards": ["a", "b", "c"]}, r"rewards of text, expected numbers"),
        ({"terminations": [None] * 3}, r"None as terminations, expected numbers"),
        ({"truncations": np.full(3, np.nan)}, r"nan in truncations"),
        ({"infos": 7}, r"infos of type int, expected a dict"),
        ({"infos": [{}, {}]}, r"infos of type list, expected a dict"),
        ({"mode": AutoresetMode.SAME_STEP}, r"\(environment 0 in 0\.\.2\) gave no info\['final_obs'\]"),
        (
            {"mode": AutoresetMode.SAME_STEP, "infos": {"final_obs": [np.zeros(2), None, None]}},
            r"\(environment 1 in 0\.\.2\) gave no info\['final_obs'\]",
        ),
        (
            {"mode": AutoresetMode.SAME_STEP, "infos": {"final_obs": np.zeros((3, 5), np.float32)}},
            r"info\['final_obs'\] of shape \[3, 5\], expected \[3, 2\]",
        ),
    ],
)
def test_a_vector_environment_that_breaks_a_rule_is_named(arguments, expected):
    with pytest.raises(EnvironmentFailure, match=rf"^Own .*{expected}.* \(at step 1\)$"):
        play(make_vec(Own(**arguments)))


@pytest.mark.parametrize("ends", [[True, False, False], [1, 0, 0], np.array([1.0, 0, 0]), np.array([[1], [0], [0]])])
@pytest.mark.parametrize(
    "rewards", [[1, 2, 3], np.array([[1], [2], [3]]), (1.0, 2.0, 3.0), np.arange(1, 4, dtype="f4")]
)
def test_a_vector_environments_numbers_are_taken_for_what_they_are(ends, rewards):
    step = play(make_vec(Own(terminations=ends, rewards=rewards)), steps=1)[0]
    assert step.terminations.dtype == bool
    assert step.terminations.tolist() == [True, False, False]
    assert step.rewards.tolist() == [1, 2, 3]
    assert step.valid.all()


# ---------------------------------------------------------------------------------------------------------- infos


class Winner(Told):
    """Its infos change from step to step; the last one of an episode has numbers."""

    def step(self, action):
        *answer, _ = super().step(action)
        if not answer[2]:
            return *answer, {"is_success": "not yet", "score": None, "episode": [self.time]}
        return *answer, {"is_success": self.np_random_seed == 1, "score": np.array([2.5]), "episode": {"r": 4, "l": 3}}


KEYS = ("is_success", "score", "episode", "absent")


@MODES
@BOTH
def test_numbers_of_infos_that_are_asked_for(vectorization, mode):
    envs = make_vec(Winner, 2, vectorization=vectorization, autoreset_mode=mode, info_keys=KEYS)
    episodes = episodes_of(play(envs))
    assert len(episodes) >= 4
    for episode in episodes:
        success = float(episode.environment == 1)
        assert episode.info == {"is_success": success, "score": 2.5, "episode/r": 4.0, "episode/l": 3.0}
    assert all(episode.info == {} for episode in episodes_of(play(make_vec(Winner, 2, autoreset_mode=mode))))


def test_a_vector_environment_without_the_space_of_one_environment_is_named():
    envs = Own()
    del envs.single_action_space
    with pytest.raises(UserError, match="Own: single_action_space must be a "):
        make_vec(envs)


@BOTH
def test_a_reset_without_options_gets_none(vectorization):
    class Picky(Told):
        def reset(self, *, seed=None, options=None):
            assert options is None
            return super().reset(seed=seed)

    assert episodes_of(play(make_vec(Picky, 2, vectorization=vectorization, autoreset_mode="DISABLED")))


def test_the_bounds_of_narrow_integers_do_not_overflow():
    space = spaces.Discrete(255, start=1, dtype=np.uint8)
    with warnings.catch_warnings(action="error"):
        (part,) = checked_parts(space)
    assert part.bounds == (1, 255)


@MODES
def test_numbers_of_the_infos_of_a_vector_environment_that_is_handed_in(mode):
    class Plain(Told):
        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, {"is_success": bool(answer[2]), "inner": {"x": 0.5}}

    envs = make_vec(SyncVectorEnv([Plain] * 2, autoreset_mode=mode), info_keys=["is_success", "inner"])
    episodes = episodes_of(play(envs))
    assert len(episodes) >= 4
    assert all(episode.info == {"is_success": 1.0, "inner/x": 0.5} for episode in episodes)


@BOTH
@pytest.mark.parametrize("handed_in", [False, True])
def test_a_key_may_contain_a_slash(vectorization, handed_in):
    class Slash(Told):
        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, {"metrics/success": 1.0, "metrics": 2.0, "a/b": {"c": 3}}

    kinds = {"sync": SyncVectorEnv, "async": AsyncVectorEnv}
    made = kinds[vectorization]([Slash] * 2) if handed_in else Slash
    envs = make_vec(made, 2, vectorization=vectorization, info_keys=["metrics/success", "a/b"])
    assert all(episode.info == {"metrics/success": 1.0, "a/b/c": 3.0} for episode in episodes_of(play(envs)))


@MODES
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_numbers_of_different_types_are_not_rounded(kind, mode):
    class Mixed(Told):
        def step(self, action):
            *answer, _ = super().step(action)
            first = self.np_random_seed == 0
            vector = np.array([1]) if first else np.array([0.7])
            inner = {"bool": True if first else 3, "int": np.int64(1) if first else np.float32(0.5)}
            return *answer, {"x": 1 if first else 0.7, "array": vector, "inner": inner}

    envs = make_vec(kind([Mixed] * 2, autoreset_mode=mode), info_keys=["x", "array", "inner"])
    for episode in episodes_of(play(envs)):
        expected = (1, 1, 1, 1) if episode.environment == 0 else (0.7, 0.7, 3, 0.5)
        assert tuple(episode.info.values()) == pytest.approx(expected)


@pytest.mark.parametrize("keys", ["is_success", [3], ["final_obs"]])
def test_info_keys_are_names_of_numbers(keys):
    with pytest.raises(UserError, match="info_keys"):
        make_vec("CartPole-v1", info_keys=keys)


def test_keys_are_given_to_the_call_that_makes_the_environments():
    envs = make_vec(Winner, info_keys=KEYS)
    assert make_vec(envs) is make_vec(envs, info_keys=KEYS) is envs
    with pytest.raises(UserError, match="to the call of make_vec that made"):
        make_vec(envs, info_keys=["other"])


# ----------------------------------------------------------------------------------------------- learning wrappers


def normalized(wrapper, frozen=False):
    def make():
        env = wrapper(gym.make("CartPole-v1"))
        env.update_running_mean = not frozen
        return gym.wrappers.FlattenObservation(env)

    return make


LEARNING = [(NormalizeObservation, "--normalize-observations"), (NormalizeReward, "--normalize-rewards")]


@pytest.mark.parametrize(("wrapper", "advice"), LEARNING)
def test_wrappers_that_learn_are_refused_with_advice(wrapper, advice):
    with pytest.raises(UserError, match=rf"CartPole-v1.*{wrapper.__name__}.*{advice}"):
        make_vec("CartPole-v1", wrappers=[wrapper.__name__])
    with pytest.raises(UserError, match=advice):
        make_vec(normalized(wrapper), vectorization="async")
    with pytest.raises(UserError, match=advice):
        make_vec(SyncVectorEnv([normalized(wrapper)]))
    with contextlib.closing(AsyncVectorEnv([normalized(wrapper)])) as envs, pytest.raises(UserError, match=advice):
        make_vec(envs)
    for frozen in (
        make_vec(normalized(wrapper, frozen=True)),
        make_vec(SyncVectorEnv([normalized(wrapper, frozen=True)])),
    ):
        frozen.reset(seed=0)
    with contextlib.closing(AsyncVectorEnv([normalized(wrapper, frozen=True)])) as envs:
        make_vec(envs).reset(seed=0)


def test_vector_wrappers_that_learn_are_refused_with_advice():
    envs = VectorNormalizeObservation(gym.make_vec("CartPole-v1", 2))
    with pytest.raises(UserError, match="--normalize-observations"):
        Stepper(envs)
    envs.update_running_mean = False
    Stepper(envs)


def test_a_running_mean_in_a_wrapper_of_ones_own_is_found():
    class RunningMean:
        mean, var, count = 0.0, 1.0, 0

        def update(self, values):
            self.count += 1

    class Scaled(gym.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.statistics = RunningMean()

    with pytest.raises(UserError, match="Scaled learns statistics"):
        make_vec("CartPole-v1", wrappers=[Scaled])


# --------------------------------------------------------------------------------------------------------- scores


@MODES
@BOTH
def test_returns_are_of_the_rewards_before_they_are_clipped(vectorization, mode):
    def make():
        return gym.wrappers.FlattenObservation(ClipReward(Told(reward=10.0), -1, 1))

    steps = play(make_vec(make, 2, vectorization=vectorization, autoreset_mode=mode))
    assert max(step.rewards.max() for step in steps) == 1
    assert {episode.episode_return for episode in episodes_of(steps)} == {31.0}  # the first step's reward is 1
    if vectorization == "sync":
        handed_in = play(make_vec(SyncVectorEnv([make] * 2, autoreset_mode=mode)))
        assert {episode.episode_return for episode in episodes_of(handed_in)} == {31.0}


@pytest.mark.peers
def test_ataris_vector_implementation_gives_whole_games_and_their_scores():
    pytest.importorskip("ale_py")
    for kwargs, pellet in (({}, 10), ({"reward_clipping": True}, 1)):
        with contextlib.closing(make_vec("ALE/MsPacman-v5", 2, env_kwargs=kwargs)) as envs:
            envs.action_space.seed(0)
            envs.reset(seed=0)
            steps = [envs.step(envs.action_space.sample()) for _ in range(400)]
        assert (np.concatenate([rewards for _, rewards, *_ in steps]) == pellet).any()
        lives = np.array([infos["lives"] for *_, infos in steps])
        ends = np.array([terminated for _, _, terminated, *_ in steps])
        assert (np.diff(lives, axis=0) < 0).any()
        assert not ends[lives > 0].any(), "an episode does not end with a life"
