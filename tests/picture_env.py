"""An environment with images."""

import gymnasium as gym
import numpy as np


class Picture(gym.ObservationWrapper):
    """Repeats the numbers of an observation as the bytes of an image, `[side, side, 3]`."""

    def __init__(self, env, side):
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (side, side, 3), np.uint8)

    def observation(self, observation):
        return np.resize((100 * observation).astype(np.int64) % 256, self.observation_space.shape).astype(np.uint8)
