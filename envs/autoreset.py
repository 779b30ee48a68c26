"""Stepping a vector environment: the one place that knows Gymnasium's autoreset modes."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs.action_masks import KEY, ActionMasks, environment_name
from rl_lnlstm.envs.faults import ABORTED
from rl_lnlstm.errors import EnvironmentFailure, UserError
from rl_lnlstm.spaces import map_leaves


class Episode(NamedTuple):
    """An episode that ended: which environment's, what it earned (undiscounted), and its length in frames."""

    environment: int
    episode_return: float
    length: int


class Step(NamedTuple):
    """What a step of all environments did, each `[num_envs]`."""

    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    valid: np.ndarray  # false: the step only reset this environment, or broke off; the transition never happened
    aborted: np.ndarray | None  # the environment failed: its episode is over, does not count, and is no Episode
    final_observations: Any  # or None: where an episode ended, if no later step will see it; garbage elsewhere
    episodes: list[Episode]


class Stepper:
    """Holds what acting has to know between steps.

    Attributes:
        observations: what to act on next, a structure of arrays `[num_envs, ...]`.
        episode_starts: those that are an episode's first, `[num_envs]` bool.
        action_masks: which actions are legal, bool `[num_envs, size]`; None if the environments do not say so.

    Raises:
        UserError: `envs` does not state its autoreset mode.
        EnvironmentFailure: an action mask that is wrong or allows nothing.
    """

    _STATE = ("observations", "episode_starts", "action_masks", "_resetting", "_returns", "_lengths")

    def __init__(self, envs: VectorEnv, seed: int | None = None) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise UserError(
                "a vector environment's metadata['autoreset_mode'] must be a gymnasium.vector.AutoresetMode, "
                f"got {mode!r} from {envs}"
            )
        self.envs, self._mode = envs, mode
        self.restart(seed)

    def restart(self, seed: int | None = None) -> None:
        """Begins new episodes in all environments."""
        self.observations, infos = self.envs.reset(seed=seed)
        self.episode_starts = np.ones(self.envs.num_envs, bool)
        self._masks = ActionMasks.find(self.envs, infos)
        self.action_masks = self._masks.read((infos, self.episode_starts)) if self._masks else None
        self._resetting = np.zeros(self.envs.num_envs, bool)
        self._returns, self._lengths = np.zeros(self.envs.num_envs), np.zeros(self.envs.num_envs, int)

    def get_state(self) -> dict[str, Any]:
        """All but the environments, for `set_state` when these are what they are now."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from where `get_state` was called."""
        for name in self._STATE:
            setattr(self, name, state[name])

    def step(self, actions: Any) -> Step:
        """Takes `actions`, as the environments take them."""
        observations, rewards, terminations, truncations, infos = self.envs.step(actions)
        ends = terminations | truncations
        aborted = infos.get(ABORTED)
        valid = ~(self._resetting if aborted is None else self._resetting | aborted)
        rewards = np.where(valid, rewards, 0.0)  # a wrapper may have given a reset step a reward
        final_observations, told = None, [(infos, np.ones_like(ends))]
        if self._mode is AutoresetMode.NEXT_STEP:
            # The next step will see the final observation, its action will be ignored, and it will reset.
            self.episode_starts, self._resetting = self._resetting, ends
            told = [(infos, ~ends)]
        else:
            self.episode_starts = ends
            if ends.any():
                final_observations = copy.deepcopy(observations)
                if self._mode is AutoresetMode.DISABLED:
                    observations, reset_infos = self.envs.reset(options={"reset_mask": ends})
                    told = [(infos, ~ends), (reset_infos, ends)]
                else:
                    space = self.envs.single_observation_space
                    _put_final(space, final_observations, infos["final_obs"], np.flatnonzero(ends))
        self.observations = observations
        if self._masks is not None:
            self.action_masks = self._masks.read(*told)
        elif KEY in infos:
            name = environment_name(self.envs)
            raise EnvironmentFailure(f"{name} gave info[{KEY!r}] in a step, but not in the reset")
        if aborted is not None:  # the observation is already the next episode's first, in every mode
            self.episode_starts = self.episode_starts | aborted
            self._returns[aborted], self._lengths[aborted] = 0.0, 0
        episodes = self._ended_episodes(rewards, valid, ends)
        return Step(rewards, terminations, truncations, valid, aborted, final_observations, episodes)

    def _ended_episodes(self, rewards: np.ndarray, valid: np.ndarray, ends: np.ndarray) -> list[Episode]:
        self._returns += rewards
        self._lengths += valid
        if not ends.any():
            return []
        ended = np.flatnonzero(ends)
        episodes = [Episode(int(i), float(self._returns[i]), int(self._lengths[i])) for i in ended]
        self._returns[ended], self._lengths[ended] = 0.0, 0
        return episodes


def _put_final(space: gym.Space, observations: Any, final: Any, ended: np.ndarray) -> None:
    """Writes final observations, one object for each environment or a batch like `observations`, where they belong."""
    if isinstance(final, np.ndarray) and final.dtype == object:
        for index in ended:

            def put(_: gym.Space, part: np.ndarray, value: Any, index: int = index) -> None:
                part[index] = value

            map_leaves(put, space, observations, final[index])
    else:

        def put_all(_: gym.Space, part: np.ndarray, values: np.ndarray) -> None:
            part[ended] = values[ended]

        map_leaves(put_all, space, observations, final)
