"""Environments that fail according to a plan. Their observations contain seed, episode and step."""

import os
import signal
import time
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from rl_lnlstm.envs import make_vec


class Failure(NamedTuple):
    """In a step of an episode, step 0 is the reset; -1 is the last one."""

    way: str
    episode: int
    step: int


SURVIVED = [
    None,
    Failure("raise", 1, 2),
    Failure("nan", 0, 2),
    Failure("reward", 2, 3),
    Failure("raise", 3, -1),
    Failure("nan", 1, -1),
    Failure("raise", 2, 0),
    Failure("nan", 3, 0),
]
SURVIVED_IN_WORKERS = [*SURVIVED, Failure("exit", 1, 2), Failure("kill", 3, 1), Failure("hang", 1, 2)]


class FailingEnv(gym.Env):
    """What happens depends on the last seed, episode and step alone, not on actions."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, plan):
        self.plan = dict(plan if isinstance(plan, dict) else enumerate(plan))  # by seed; later ones are larger
        assert len(plan) < 100

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.time = 0
        return self._observation(self._fails()), {"episode": self.episode}

    def step(self, action):
        self.time += 1
        fails = self._fails()
        reward = np.inf if fails == "reward" else float(np.sin(self.seed + 7 * self.episode + 3 * self.time))
        over = self.time == episode_length(self.seed, self.episode)
        terminated = over and self.episode % 2 == 0
        return self._observation(fails), reward, terminated, over and not terminated, {"time": self.time}

    def _observation(self, fails):
        number = np.nan if fails == "nan" else self.time / 10
        return np.array([self.seed % 99991, self.episode, number], np.float32)

    def _fails(self):
        failure = self.plan.get(self.seed)
        if failure is None or failure.episode != self.episode:
            return None
        length = episode_length(self.seed, self.episode)
        if self.time != (length if failure.step == -1 else failure.step):
            return None
        if failure.way == "raise":
            raise ZeroDivisionError("a bug of mine")
        if failure.way == "exit":
            os._exit(3)
        if failure.way == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if failure.way == "hang":
            time.sleep(1000)
        return failure.way


def episode_length(seed, episode):
    return 3 + (seed % 99991 + episode) % 3


def failing_envs(plan, vectorization="sync", mode=AutoresetMode.NEXT_STEP, max_failures=1, timeout=3.0):
    return make_vec(
        FailingEnv,
        len(plan),
        vectorization=vectorization,
        autoreset_mode=mode,
        env_kwargs={"plan": plan},
        max_failures=max_failures,
        timeout=timeout,
    )
