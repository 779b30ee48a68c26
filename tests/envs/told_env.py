"""An environment that returns what a test tells it to."""

import contextlib
import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rl_lnlstm.envs.autoreset import Stepper

BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=[mode.name for mode in AutoresetMode])


class Told(gym.Env):
    """Returns given values from the second step on. An episode has `length` steps."""

    def __init__(self, space=None, observation=None, reward=1.0, terminated=None, truncated=False, info=None, length=4):
        self.observation_space = spaces.Box(-9, 9, (2,), np.float32) if space is None else space
        self.action_space = spaces.Discrete(2)
        self.told = observation, reward, terminated, truncated, info
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self._fine(), {}

    def _fine(self):
        if isinstance(self.observation_space, spaces.Dict):
            return {"a": (1, np.full(2, self.time, np.uint8))}
        return np.full(self.observation_space.shape, self.time, self.observation_space.dtype)[()]

    def step(self, action):
        self.time += 1
        observation, reward, terminated, truncated, info = self.told
        over = self.time == self.length
        if self.time == 1:
            return self._fine(), 1.0, over, False, {}
        observation = self._fine() if observation is None else observation
        info = info if over and info is not None else {}
        return observation, reward, over if terminated is None else terminated, truncated, info


def told(**arguments):
    return functools.partial(Told, **arguments)


def play(envs, steps=12):
    """Steps with action 0; closes the environments whatever happens."""
    with contextlib.closing(envs):
        stepper = Stepper(envs, 0)
        return [stepper.step(np.zeros(envs.num_envs, int)) for _ in range(steps)]


def episodes_of(steps):
    return [episode for step in steps for episode in step.episodes]
