"""Environments with action masks, in a module that worker processes import fast."""

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.action_masks import mask_sizes


class Cards(gym.Env):
    """Its mask is an entry of the observation, as in PettingZoo and RLlib. An illegal action raises."""

    def __init__(self, action_space=None, key="action_mask"):
        self.action_space = gym.spaces.Discrete(4) if action_space is None else action_space
        self.size, self.key = int(mask_sizes(self.action_space).sum()), key
        self.observation_space = gym.spaces.Dict(
            {"observation": gym.spaces.Box(0, 1, (self.size,)), key: gym.spaces.MultiBinary(self.size)}
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observation(), {}

    def observation(self):
        self.legal = self.np_random.random(self.size) < 0.5
        for start in np.cumsum(sizes := mask_sizes(self.action_space)) - sizes:
            self.legal[start + self.np_random.integers(sizes[0])] = True
        return {"observation": self.legal.astype(np.float32), self.key: self.legal.astype(np.int8)}

    def step(self, action):
        chosen = np.ravel(action)
        assert self.legal.reshape(len(chosen), -1)[np.arange(len(chosen)), chosen].all(), "illegal"
        self.time += 1
        return self.observation(), 1.0, self.time == 3, False, {}


class Switches(gym.Env):
    """Each of three switches may be forbidden to be off, or on. The mask has one of the shapes `[6]` and `[3, 2]`."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.MultiBinary(3)

    def __init__(self, shape, tells):
        self.shape, self.tells = shape, tells

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._told()

    def _told(self):
        self.legal = np.ones((3, 2), bool)
        self.legal[np.arange(3), self.np_random.integers(0, 2, 3)] = self.np_random.random(3) < 0.5
        return np.zeros(1, np.float32), {"action_mask": self.legal.reshape(self.shape)} if self.tells else {}

    def step(self, action):
        assert self.legal[np.arange(3), action].all(), "illegal"
        observation, info = self._told()
        return observation, 1.0, False, False, info


class SwitchesWithMethod(Switches):
    """Tells its masks by the method of sb3-contrib."""

    def action_masks(self):
        return self.legal.reshape(self.shape)
