"""An environment whose episodes end according to a script, and which logs what really happened."""

import dataclasses

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

MODES = list(AutoresetMode)
# Lengths and endings; the last environment is done after every step, the third ends with the first rollout's last step.
SCRIPTS = [
    [(4, "truncated"), (1, "terminated"), (1, "truncated"), (1, "both"), (6, "terminated"), (2, "truncated")],
    [(100, "terminated")],
    [(12, "truncated"), (3, "terminated"), (7, "truncated")],
    [(1, "truncated")],
]


@dataclasses.dataclass
class EpisodeLog:
    """T transitions, T + 1 observations; `ending` is None while the episode goes on."""

    observations: list[np.ndarray]
    actions: list = dataclasses.field(default_factory=list)
    rewards: list[float] = dataclasses.field(default_factory=list)
    ending: str | None = None

    def __len__(self):
        return len(self.rewards)

    @property
    def terminated(self):
        return self.ending in ("terminated", "both")


class ScriptedEnv(gym.Env):
    """Deterministic: observations tell episode, step and last action; rewards depend on all of them.

    A final observation is marked in its last entry.
    """

    def __init__(self, script, action_space=None, final_mark=1.0, number=0):
        self.observation_space = gym.spaces.Box(-100, 100, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(3) if action_space is None else action_space
        self.script, self.final_mark, self.number = script, final_mark, number
        self.log: list[EpisodeLog] = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.log.append(EpisodeLog([self._observation(0, 0.0)]))
        return self.log[-1].observations[0].copy(), {}

    def step(self, action):
        episode = self.log[-1]
        assert episode.ending is None, "a step after the episode's end"
        assert self.action_space.contains(action)
        episode.actions.append(np.array(action))
        signal = float(np.sum(np.asarray(action, np.float64)))
        length, ending = self.script[(len(self.log) - 1) % len(self.script)]
        episode.rewards.append(float(np.sin(3 * len(episode) + len(self.log)) + 0.3 * signal + self.number))
        observation = self._observation(len(episode), signal)
        if len(episode) == length:
            episode.ending = ending
            observation[-1] = self.final_mark
        episode.observations.append(observation)
        ended = episode.ending is not None
        return (
            observation.copy(),
            episode.rewards[-1],
            ended and ending in ("terminated", "both"),
            ended and ending in ("truncated", "both"),
            {},
        )

    def _observation(self, step, signal):
        episode = len(self.log) + (0 if step else 1)
        return np.array([np.cos(episode + self.number), np.sin(step), signal / 3, 0.0], np.float32)


def scripted_envs(mode=AutoresetMode.NEXT_STEP, scripts=SCRIPTS, action_space=None, final_mark=1.0, **kwargs):
    """A vector environment of them, in an autoreset mode."""
    makers = [
        lambda number=number, script=script: ScriptedEnv(script, action_space, final_mark, number)
        for number, script in enumerate(scripts)
    ]
    return SyncVectorEnv(makers, autoreset_mode=mode, **kwargs)
