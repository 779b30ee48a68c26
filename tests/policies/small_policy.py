"""Small policies for each kind of action space."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm.policies import MlpLnLstmPolicy

OBSERVATIONS = gym.spaces.Box(-2, 2, (3,), np.float32)
ACTION_SPACES = {
    "discrete": gym.spaces.Discrete(4),
    "discrete from 2": gym.spaces.Discrete(3, start=2),
    "box": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "bounded box": gym.spaces.Box(np.array([-0.1, 0.0]), np.array([0.1, 0.3]), dtype=np.float64),
    "scalar box": gym.spaces.Box(-1, 1, (), np.float32),
    "box of rank 2": gym.spaces.Box(-1, 1, (2, 3), np.float32),
}
SMALL = {"units": 5, "encoder_layers": (6,), "head_layers": (4,), "seed": 0}


def policy_for(observation_space=OBSERVATIONS, action_space=ACTION_SPACES["discrete"], **arguments):
    return MlpLnLstmPolicy(observation_space, action_space, **{**SMALL, **arguments})


def observations_of(space, *leading, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-2, 2, (*leading, *space.shape)).astype(space.dtype)


def flat(actions, leading):
    return np.reshape(actions, (*leading, -1)).astype(np.float64)


each_action_space = pytest.mark.parametrize("action_space", ACTION_SPACES.values(), ids=ACTION_SPACES)
