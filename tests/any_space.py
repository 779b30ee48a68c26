"""An environment for any spaces, and the spaces to test it with."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBSERVATION_SPACES = {
    "vector": spaces.Box(-1, 1, (3,)),
    "scalar": spaces.Box(-np.inf, np.inf, ()),
    "matrix of float64": spaces.Box(-1, 1, (2, 3), np.float64),
    "half precision": spaces.Box(-1, 1, (2,), np.float16),
    "integers": spaces.Box(-5, 5, (2, 2), np.int8),
    "bools": spaces.Box(0, 1, (4,), bool),
    "bytes": spaces.Box(0, 255, (8,), np.uint8),
    "image": spaces.Box(0, 255, (17, 16, 3), np.uint8),
    "channels first": spaces.Box(0, 255, (3, 16, 17), np.uint8),
    "grayscale": spaces.Box(0, 255, (16, 18), np.uint8),
    "stacked": spaces.Box(0, 255, (4, 16, 16), np.uint8),
    "stacked colours": spaces.Box(0, 255, (2, 16, 17, 3), np.uint8),
    "symbols": spaces.Box(0, 255, (7, 7, 3), np.uint8),
    "image of floats": spaces.Box(0, 1, (16, 16, 1), np.float32),
    "discrete": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 3], start=[1, -1]),
    "multi-discrete of rank 2": spaces.MultiDiscrete([[2, 3], [4, 5]], dtype=np.int32),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary of rank 2": spaces.MultiBinary([2, 2]),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (2,))]),
    "nested": spaces.Dict(
        z=spaces.Box(-1, 1, (2, 2), np.float64),
        a=spaces.Tuple([spaces.Discrete(3), spaces.Dict({"im/age": spaces.Box(0, 255, (7, 7, 1), np.uint8)})]),
        flags=spaces.MultiBinary(2),
    ),
}


class AnyEnv(gym.Env):
    """Random observations, episodes of a fixed length, and rewards that tell the action."""

    def __init__(self, observation_space, action_space=None, length=5):
        self.observation_space = observation_space
        self.action_space = spaces.Discrete(3) if action_space is None else action_space
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        flat = spaces.flatten(self.action_space, action)
        reward = float(np.sum(flat * np.arange(1, 1 + flat.size))) - 2.0
        return self.observation_space.sample(), reward, False, self.steps == self.length, {}
