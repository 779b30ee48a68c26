"""Stepping a vector environment: the one place that knows Gymnasium's autoreset modes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs.action_masks import KEY, ActionMasks, environment_name
from rl_lnlstm.envs.faults import ABORTED
from rl_lnlstm.envs.scores import scores
from rl_lnlstm.envs.vector_guard import guarded
from rl_lnlstm.errors import EnvironmentFailure, UserError, warn
from rl_lnlstm.spaces import map_leaves


class Episode(NamedTuple):
    """An episode that ended.

    Attributes:
        environment: the index of its environment.
        episode_return: the undiscounted sum of its rewards, before a wrapper such as `ClipReward` clipped them.
        length: in frames.
        info: the numbers that `make_vec(info_keys=...)` asked for, as far as the info of its last step had them.
    """

    environment: int
    episode_return: float
    length: int
    info: dict[str, float] = {}  # noqa: RUF012


class Step(NamedTuple):
    """What a step of all environments did; arrays are `[num_envs]`.

    Attributes:
        rewards: 0 where `valid` is false.
        terminations, truncations: which episodes ended in this step, and how.
        valid: false where the step only reset the environment, or aborted its episode: there was no transition.
        aborted: where the environment failed, or somebody else reset it. Its episode is over, does not count, and is
            no `Episode`. None if there is no such environment.
        final_observations: what ended the episodes, if no later step will see it; elsewhere it means nothing. None if
            no episode ended, or a later step will see it.
        episodes: those that ended.
    """

    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    valid: np.ndarray
    aborted: np.ndarray | None
    final_observations: Any
    episodes: list[Episode]


class Stepper:
    """Steps environments, and holds what acting has to know between steps.

    Environments that somebody else steps or resets in between (an evaluation in the same environments), or in which a
    step was interrupted (by Ctrl-C), are noticed: the next step begins new episodes and reports all as aborted.

    Args:
        envs: a vector environment; it is guarded, as by `make_vec`, unless it is already.
        seed: of the first reset, or a seed for each environment.
        reset_seeds: called in autoreset mode DISABLED with the rows `[num_envs]` that are about to begin new episodes;
            returns the seeds of all environments. None leaves it to the environments.

    Attributes:
        envs: the guarded environments.
        observations: what to act on next, a structure of arrays `[num_envs, ...]`.
        episode_starts: those that are an episode's first, `[num_envs]` bool.
        action_masks: which actions are legal, bool `[num_envs, size]`; None if the environments do not say so.

    Raises:
        UserError: `envs` does not state its autoreset mode.
        EnvironmentFailure: an environment failed, or an action mask is wrong or allows nothing.
    """

    _STATE = ("observations", "episode_starts", "action_masks", "_resetting", "_returns", "_lengths")

    def __init__(
        self,
        envs: VectorEnv,
        seed: int | Sequence[int] | None = None,
        reset_seeds: Callable[[np.ndarray], Sequence[int]] | None = None,
    ) -> None:
        mode = envs.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise UserError(
                "a vector environment's metadata['autoreset_mode'] must be a gymnasium.vector.AutoresetMode, "
                f"got {mode!r} from {envs}"
            )
        self.envs, self._mode, self._reset_seeds = guarded(envs), mode, reset_seeds
        self.restart(seed)

    def restart(self, seed: int | Sequence[int] | None = None) -> None:
        """Begins new episodes in all environments. It may be called at any time, also after an interrupted step."""
        self._uses: int | None = -1  # of the environments when they were last used here; -1: this use is not over
        self.observations, infos = self.envs.reset(seed=seed)
        self.episode_starts = np.ones(self.envs.num_envs, bool)
        self._masks = ActionMasks.find(self.envs, infos)
        self.action_masks = self._masks.read((infos, self.episode_starts)) if self._masks else None
        self._resetting = np.zeros(self.envs.num_envs, bool)
        self._returns, self._lengths = np.zeros(self.envs.num_envs), np.zeros(self.envs.num_envs, int)
        self._uses = self.envs.uses

    @property
    def lengths(self) -> np.ndarray:
        """Frames of the episodes that are running, `[num_envs]`."""
        return self._lengths.copy()

    def get_state(self) -> dict[str, Any]:
        """All but the environments, for `set_state` when these are what they are now."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from where `get_state` was called."""
        for name in self._STATE:
            setattr(self, name, copy.deepcopy(state[name]))
        self._uses = None  # unknown until the next step

    def step(self, actions: Any) -> Step:
        """Takes `actions`, as the environments take them."""
        if self._uses not in (None, self.envs.uses):
            return self._begin_again()
        self._uses = -1
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
                    observations, reset_infos = self._reset(ends)
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
        episodes = self._ended_episodes(np.where(valid, scores(rewards, infos), 0.0), valid, ends, infos)
        self._uses = self.envs.uses
        return Step(rewards, terminations, truncations, valid, aborted, final_observations, episodes)

    def _begin_again(self) -> Step:
        """The step that begins new episodes, because those that were running are not what they were."""
        if self._uses != -1:
            warn(
                f"{environment_name(self.envs)}: somebody else used the environments, such as an evaluation in those "
                "that are trained in; the episodes that were running are left out, and new ones begin"
            )
        self.restart()
        nothing, everywhere = np.zeros(self.envs.num_envs, bool), np.ones(self.envs.num_envs, bool)
        return Step(np.zeros(self.envs.num_envs), nothing, nothing.copy(), nothing.copy(), everywhere, None, [])

    def begin_episodes(self, rows: np.ndarray) -> None:
        """Begins new episodes where `rows` `[num_envs]` is true, in autoreset mode DISABLED only."""
        self._uses = -1
        self.observations, infos = self._reset(rows)
        self.episode_starts = self.episode_starts | rows
        if self._masks is not None and self.action_masks is not None:
            self.action_masks = np.where(rows[:, np.newaxis], self._masks.read((infos, rows)), self.action_masks)
        self._returns[rows], self._lengths[rows] = 0.0, 0
        self._uses = self.envs.uses

    def _reset(self, rows: np.ndarray) -> tuple[Any, dict[str, Any]]:
        seeds = None if self._reset_seeds is None else list(self._reset_seeds(rows))
        return self.envs.reset(seed=seeds, options={"reset_mask": rows.copy()})

    def _ended_episodes(
        self, earned: np.ndarray, valid: np.ndarray, ends: np.ndarray, infos: dict[str, Any]
    ) -> list[Episode]:
        self._returns += earned
        self._lengths += valid
        if not ends.any():
            return []
        ended = np.flatnonzero(ends)
        last_infos = infos.get("final_info", {}) if self._mode is AutoresetMode.SAME_STEP else infos
        episodes = [
            Episode(
                int(i),
                float(self._returns[i]),
                int(self._lengths[i]),
                _numbers(last_infos, self.envs.info_keys, int(i)),
            )
            for i in ended
        ]
        self._returns[ended], self._lengths[ended] = 0.0, 0
        return episodes


def _numbers(infos: Any, keys: tuple[str, ...], index: int) -> dict[str, float]:
    """The numbers named `key` or "key/..." that a vector environment's infos have of one environment.

    Raises:
        EnvironmentFailure: what they have there is no number.
    """
    if not keys or not isinstance(infos, dict):
        return {}
    numbers: dict[str, float] = {}
    for key, value in infos.items():
        if key.partition("/")[0] not in keys:
            continue
        for name, values, given in _arrays(key, value, infos.get(f"_{key}")):
            if given is not None and not np.asarray(given)[index]:
                continue
            number = values[index]
            if number is not None:
                try:
                    numbers[name] = float(np.asarray(number).item())
                except (TypeError, ValueError) as error:
                    raise EnvironmentFailure(f"info[{name!r}] is {number!r}, expected a number") from error
    return numbers


def _arrays(key: str, value: Any, given: Any) -> list[tuple[str, Any, Any]]:
    """The arrays, with their names and with the masks of who gave them, that are under a key of the infos."""
    if not isinstance(value, dict):
        return [(key, value, given)]
    inner = [name for name in value if not (name.startswith("_") and name[1:] in value)]
    return [found for name in inner for found in _arrays(f"{key}/{name}", value[name], value.get(f"_{name}", given))]


def _put_final(space: gym.Space, observations: Any, final: Any, ended: np.ndarray) -> None:
    """Writes final observations, one object for each environment, into a batch of observations."""
    for index in ended:

        def put(_: gym.Space, part: np.ndarray, value: Any, index: int = index) -> None:
            part[index] = value

        map_leaves(put, space, observations, final[index])
