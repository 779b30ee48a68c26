"""Stepping a vector environment: the one place that knows Gymnasium's autoreset modes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs.action_masks import KEY, ActionMasks
from rl_lnlstm.envs.faults import ABORTED, environment_name
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
        info: the numbers that `make_vec(info_keys=...)` asked for, if the info of the last step had them.
    """

    environment: int
    episode_return: float
    length: int
    info: dict[str, float] = {}  # noqa: RUF012


class Step(NamedTuple):
    """The result of a step in all environments; arrays are `[num_envs]`.

    Attributes:
        rewards: 0 where `valid` is false.
        terminations, truncations: which episodes ended in this step, and how.
        valid: false where there was no transition, because the step only reset the environment or aborted its episode.
        aborted: true where the environment failed, or other code reset it. Its episode is over, does not count, and is
            not in `episodes`. None if there is no such environment.
        final_observations: the last observations of the episodes that ended; undefined for other environments. None if
            no episode ended, or if the next step returns these observations anyway (NEXT_STEP mode).
        episodes: the episodes that ended.
    """

    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    valid: np.ndarray
    aborted: np.ndarray | None
    final_observations: Any
    episodes: list[Episode]


class Stepper:
    """Steps environments, and keeps what acting needs between steps.

    It notices if other code stepped or reset the environments in between (for example an evaluation), or if Ctrl-C
    interrupted a step. The next step then begins new episodes and reports all old ones as aborted.

    Args:
        envs: a vector environment. It gets the checks of `make_vec`, unless it has them already.
        seed: the seed of the first reset, or a list with one for each environment.
        reset_seeds: only for autoreset mode DISABLED. Called before new episodes begin, with a bool array `[num_envs]`
            of where they begin; returns a seed for every environment. None lets the environments choose.

    Attributes:
        envs: the guarded environments.
        observations: the current observations, a structure of arrays `[num_envs, ...]`.
        episode_starts: `[num_envs]` bool, true where the observation is the first of an episode.
        action_masks: which actions are legal, `[num_envs, size]` bool; None if the environments have no masks.

    Raises:
        UserError: `envs` does not state its autoreset mode.
        EnvironmentFailure: an environment failed, or an action mask has the wrong shape or allows no action.
    """

    _STATE = ("observations", "episode_starts", "action_masks", "_resetting", "_returns", "_lengths")
    _calls_seen: int | None  # `num_calls` of the environments after our last call; None after `set_state`: not known

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
        """Begins new episodes in all environments. You may call it at any time, even after an interrupted step."""
        self._in_call = True  # it stays true if the call is interrupted
        self.observations, infos = self.envs.reset(seed=seed)
        self.episode_starts = np.ones(self.envs.num_envs, bool)
        self._masks = ActionMasks.find(self.envs, infos)
        self.action_masks = self._masks.read((infos, self.episode_starts)) if self._masks else None
        self._resetting = np.zeros(self.envs.num_envs, bool)
        self._returns, self._lengths = np.zeros(self.envs.num_envs), np.zeros(self.envs.num_envs, int)
        self._end_call()

    @property
    def lengths(self) -> np.ndarray:
        """The number of frames so far in each running episode, `[num_envs]`."""
        return self._lengths.copy()

    @property
    def returns(self) -> np.ndarray:
        """The return so far of each running episode, `[num_envs]`, as in `Episode.episode_return`."""
        return self._returns.copy()

    def get_state(self) -> dict[str, Any]:
        """Returns all state except the environments, for `set_state`."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self._STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called. The environments must be as they were then."""
        for name in self._STATE:
            setattr(self, name, copy.deepcopy(state[name]))
        self._in_call, self._calls_seen = False, None

    def step(self, actions: Any) -> Step:
        """Takes a step with `actions`, which must be elements of the action space."""
        used_by_others = self._calls_seen not in (None, self.envs.num_calls)
        if self._in_call or used_by_others:
            return self._begin_again(interrupted=self._in_call)
        self._in_call = True
        observations, rewards, terminations, truncations, infos = self.envs.step(actions)
        ends = terminations | truncations
        aborted = infos.get(ABORTED)
        valid = ~(self._resetting if aborted is None else self._resetting | aborted)
        rewards = np.where(valid, rewards, 0.0)  # a wrapper may have given a reset step a reward
        final_observations, mask_sources = None, [(infos, np.ones_like(ends))]
        if self._mode is AutoresetMode.NEXT_STEP:
            # The next step gets the final observation, ignores the action, and resets.
            self.episode_starts, self._resetting = self._resetting, ends
            mask_sources = [(infos, ~ends)]
        else:
            self.episode_starts = ends
            if ends.any():
                final_observations = copy.deepcopy(observations)
                if self._mode is AutoresetMode.DISABLED:
                    observations, reset_infos = self._reset(ends)
                    mask_sources = [(infos, ~ends), (reset_infos, ends)]
                else:
                    space = self.envs.single_observation_space
                    _put_final(space, final_observations, infos["final_obs"], np.flatnonzero(ends))
        self.observations = observations
        if self._masks is not None:
            self.action_masks = self._masks.read(*mask_sources)
        elif KEY in infos:
            name = environment_name(self.envs)
            raise EnvironmentFailure(f"{name} gave info[{KEY!r}] in a step, but not in the reset")
        if aborted is not None:  # in every mode, the observation is already the first of the next episode
            self.episode_starts = self.episode_starts | aborted
            self._returns[aborted], self._lengths[aborted] = 0.0, 0
        episodes = self._ended_episodes(np.where(valid, scores(rewards, infos), 0.0), valid, ends, infos)
        self._end_call()
        return Step(rewards, terminations, truncations, valid, aborted, final_observations, episodes)

    def _end_call(self) -> None:
        self._calls_seen = self.envs.num_calls
        self._in_call = False  # only now, because `num_calls` may be interrupted too

    def _begin_again(self, interrupted: bool) -> Step:
        """A step that only begins new episodes, because it was interrupted or other code changed the environments."""
        if not interrupted:
            cause = "other code used the training environments, for example an evaluation"
            if getattr(self.envs, "unreset", False):
                cause = "a worker process was replaced, because a snapshot was interrupted or failed"
            name = environment_name(self.envs)
            warn(f"{name}: {cause}. The running episodes are left out, and new ones begin")
        self.restart()
        nothing, everywhere = np.zeros(self.envs.num_envs, bool), np.ones(self.envs.num_envs, bool)
        return Step(np.zeros(self.envs.num_envs), nothing, nothing.copy(), nothing.copy(), everywhere, None, [])

    def begin_episodes(self, rows: np.ndarray) -> None:
        """Begins new episodes where `rows` `[num_envs]` is true. Only for autoreset mode DISABLED."""
        self._in_call = True
        self.observations, infos = self._reset(rows)
        self.episode_starts = self.episode_starts | rows
        if self._masks is not None and self.action_masks is not None:
            self.action_masks = np.where(rows[:, np.newaxis], self._masks.read((infos, rows)), self.action_masks)
        self._returns[rows], self._lengths[rows] = 0.0, 0
        self._end_call()

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
    """The numbers named `key` or "key/..." in a vector environment's infos, for one environment.

    Raises:
        EnvironmentFailure: the infos have something else there.
    """
    if not keys or not isinstance(infos, dict):
        return {}
    numbers: dict[str, float] = {}
    for key, value in infos.items():
        if key not in keys and not key.startswith(tuple(f"{asked}/" for asked in keys)):
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
    """The arrays under a key of the infos, with their names and masks of which environments gave them."""
    if not isinstance(value, dict):
        return [(key, value, given)]
    inner = [name for name in value if not (name.startswith("_") and name[1:] in value)]
    return [found for name in inner for found in _arrays(f"{key}/{name}", value[name], value.get(f"_{name}", given))]


def _put_final(space: gym.Space, observations: Any, final: Any, ended: np.ndarray) -> None:
    """Writes final observations, given as one object for each environment, into a batch of observations."""
    for index in ended:

        def put(_: gym.Space, part: np.ndarray, value: Any, index: int = index) -> None:
            part[index] = value

        map_leaves(put, space, observations, final[index])
