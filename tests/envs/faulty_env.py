"""An environment with a fault that a test chooses."""

import contextlib
import os

import gymnasium as gym
import numpy as np
import pytest

BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])


def faulty(fault, at_step=3, space=None):
    """A function that makes environments. The one that is reset with seed 2 has the fault, in the given step."""

    # A class of the function's own, so that it travels to a worker by value, as one of a user's script does.
    class Faulty(gym.Env):
        observation_space = space or gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return self.answer(np.zeros(2, np.float32)), {}

        def answer(self, vector):
            if isinstance(self.observation_space, gym.spaces.Dict):
                return {"image": np.zeros((2, 2), np.uint8), "sensors": (0, vector)}
            return vector

        def step(self, action):
            self.time += 1
            vector, reward = np.full(2, 1e30, np.float32), 1.0  # finite, but its square is not
            if self.np_random_seed == 2 and self.time == at_step:
                if fault == "raise":
                    raise ZeroDivisionError("a bug of mine")
                if fault == "exit":
                    os._exit(3)
                if fault.startswith("reward"):
                    reward = float(fault.split()[1])
                else:
                    vector[1] = float(fault)
            return self.answer(vector), reward, self.time == 3, False, {}

    return Faulty


def run(vector_env, steps=10):
    """Steps a vector environment with seed 0 and hands back what it returned; closes it whatever happens."""
    rng = np.random.default_rng(0)
    with contextlib.closing(vector_env):
        history = [vector_env.reset(seed=0)]
        history += [
            vector_env.step(rng.integers(vector_env.single_action_space.n, size=vector_env.num_envs))
            for _ in range(steps)
        ]
    return history
