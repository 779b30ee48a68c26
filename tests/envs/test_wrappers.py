"""Wrappers by name, with arguments, in every vectorization that makes single environments."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import FrameStackObservation, TimeLimit

from rl_lnlstm import UserError
from rl_lnlstm.envs import make_vec

WITHOUT_ARRAY_API = pytest.mark.skipif(
    importlib.util.find_spec("array_api_compat") is not None, reason="its absence is what is tested"
)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_names_make_gymnasiums_wrappers(vectorization):
    names = ["FrameStackObservation(4)", "gymnasium.wrappers:TimeLimit(max_episode_steps=3)", "FlattenObservation"]
    envs = make_vec("CartPole-v1", 2, wrappers=names, vectorization=vectorization)
    try:
        assert envs.single_observation_space.shape == (16,)
        envs.reset(seed=0)
        ended = [envs.step(np.zeros(2, int))[3].all() for _ in range(3)]
        assert ended == [False, False, True]
    finally:
        envs.close()


def test_names_and_functions_mix_and_the_first_is_innermost():
    envs = make_vec("CartPole-v1", 1, wrappers=["FrameStackObservation(2)", lambda env: TimeLimit(env, 5)])
    env = envs.envs[0].env
    assert isinstance(env, TimeLimit)
    assert isinstance(env.env, FrameStackObservation)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoSuchWrapper", "gymnasium.wrappers has no 'NoSuchWrapper'"),
        ("no_such_module:Wrapper", "cannot be imported, ModuleNotFoundError: No module named 'no_such_module'"),
        pytest.param("NumpyToTorch", "cannot be imported, ModuleNotFoundError", marks=WITHOUT_ARRAY_API),
        ("FrameStackObservation(", "expected a name"),
        ("FrameStackObservation(4)(5)", "expected a name"),
        ("FrameStackObservation(print('executed'))", "expected a name"),
        ("FrameStackObservation(**{'stack_size': 4})", "expected a name"),
        ("FrameStackObservation", "FrameStackObservation.*stack_size"),
    ],
)
def test_a_mistake_is_explained(name, message, capsys):
    with pytest.raises(UserError, match=message) as caught:
        make_vec("CartPole-v1", 1, wrappers=[name])
    assert repr(name) in str(caught.value)
    assert capsys.readouterr().out == ""


def test_environments_with_an_entry_point_of_their_own_have_none():
    with pytest.raises(UserError, match="wrappers"):
        make_vec("CartPole-v1", 2, vectorization="vector_entry_point", wrappers=["FlattenObservation"])
    assert gym.registry["CartPole-v1"].vector_entry_point is not None


class Frame:
    """Has the methods of a DataFrame of pandas."""

    def mean(self): ...
    def var(self): ...
    def count(self): ...
    def update(self): ...


class Statistics(Frame):
    mean, var, count = np.zeros(2), np.ones(2), 1.0


@pytest.mark.parametrize(("learns", "attribute"), [(False, Frame()), (True, Statistics())])
def test_what_learns_statistics_is_refused_and_a_table_is_not(learns, attribute):
    class Trading(CartPoleEnv):
        def __init__(self):
            super().__init__()
            self.df = attribute

    if learns:
        with pytest.raises(UserError, match="learns statistics"):
            make_vec(Trading, 1)
    else:
        make_vec(Trading, 1).reset()
