"""The door through which a single environment is let in: `Guard` goes around each of them, in whatever process.

`GuardedVectorEnv`, in `vector_guard.py`, is the door for a whole vector environment.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState
from gymnasium.vector.utils import batch_space, create_empty_array, iterate

from rl_lnlstm.envs import snapshot
from rl_lnlstm.envs.action_masks import KEY, flat_mask, mask_sizes
from rl_lnlstm.envs.checks import (
    as_element,
    checked_end,
    checked_info,
    checked_observation,
    checked_reward,
    unpacked,
)
from rl_lnlstm.envs.faults import FAULT, Fault, raised
from rl_lnlstm.envs.scores import SCORE, find_score


class Guard(gym.Wrapper):
    """Lets an environment share nothing, checks what it returns, and answers also when it raises.

    - The environment is given a copy of the action, an element of its action space.
    - It returns a copy of its observation, in the shapes and dtypes of its observation space, a float as the reward,
      and bools as the ends.
    - Of its info only what somebody reads gets out: the action mask and, at an episode's end, the numbers that
      `info_keys` ask for. (And what the reward was before a wrapper clipped it.)
    - If it raises, or breaks one of these rules, the answer is empty, and the `Fault` is in the info.

    It also takes and restores snapshots.

    Args:
        env: the environment.
        info_keys: which numbers of its info are wanted at an episode's end.
    """

    to_restore: bytes = b""

    def __init__(self, env: gym.Env, info_keys: tuple[str, ...] = ()) -> None:
        super().__init__(env)
        self._spaces = env.observation_space, env.action_space
        self._mask_sizes = mask_sizes(env.action_space)
        self._info_keys = info_keys
        self._score = find_score(env)
        self._ended = False  # the episode: the vector environment keeps it to itself
        self._reset_next = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, but what it returns is checked, and a failure is an answer."""
        if self._reset_next:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        observation_space, action_space = self._spaces
        try:
            answer = self.env.step(as_element(action_space, action))
            observation, reward, terminated, truncated, info = unpacked(answer, 5, "step")
            terminated, truncated = checked_end(terminated, "termination"), checked_end(truncated, "truncation")
            self._ended = terminated or truncated
            info = self._read(info)
            if self._score is not None:
                info[SCORE] = self._score.reward
            return (
                checked_observation(observation_space, observation),
                checked_reward(reward),
                terminated,
                truncated,
                info,
            )
        except Fault as fault:
            return self._nothing(), 0.0, False, False, {FAULT: fault}
        except Exception as error:
            return self._nothing(), 0.0, False, False, {FAULT: Fault(raised(error), error)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's, but what it returns is checked, and a failure is an answer."""
        self._ended = self._reset_next = False
        try:
            observation, info = unpacked(self.env.reset(seed=seed, options=options), 2, "reset")
            return checked_observation(self._spaces[0], observation), self._read(info)
        except Fault as fault:
            return self._nothing(), {FAULT: fault}
        except Exception as error:
            return self._nothing(), {FAULT: Fault(raised(error, " in reset"), error)}

    def _read(self, info: Any) -> dict[str, Any]:
        """What is read of an info. Nothing else reaches Gymnasium, whose infos must not change from step to step."""
        if not info or not isinstance(info, Mapping):
            return {}
        if self._ended:
            return dict(checked_info(info, self._info_keys)) if self._info_keys else {}
        mask = info.get(KEY)
        if mask is None:
            return {}
        return {KEY: True if self._mask_sizes is None else flat_mask(mask, self._mask_sizes)}

    def take_snapshot(self) -> bytes | str:
        """The environment as bytes, or why there are none."""
        try:
            return snapshot.to_bytes((self._ended, self.env))
        except ValueError as error:
            return str(error)

    def restore_snapshot(self) -> str | None:
        """Takes up the environment that `to_restore` holds, or says why it cannot."""
        try:
            self._ended, self.env = snapshot.from_bytes(self.to_restore)
            self._score = find_score(self.env)
        except ValueError as error:
            return str(error)
        self._reset_next = self._ended
        return None

    def call_unless_ended(self, method: str) -> Any:
        """What that method of the environment returns; None, and it is not called, once the episode has ended."""
        return None if self._ended else self.env.get_wrapper_attr(method)()

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The environment's: the guard is no part of what `gymnasium.make` has to make again."""
        return self.env.spec

    def _nothing(self) -> Any:
        space = self._spaces[0]
        return next(iterate(batch_space(space, 1), create_empty_array(space, 1)))


class Copies(gym.Wrapper):
    """Goes around an environment that somebody else put into a `SyncVectorEnv`.

    It makes copies and checks as `Guard` does, but lets infos and errors pass, and raises a `Fault` that knows the
    environment's index.

    Args:
        env: the environment.
        index: of the environment in its vector environment.

    Attributes:
        calls: of `step` and `reset`, whoever made them.
    """

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.calls = 0
        self._index = index
        self._spaces = env.observation_space, env.action_space
        self._score = find_score(env)

    def __getattr__(self, name: str) -> Any:
        # Whoever made the vector environment finds in it what was there before.
        if name.startswith("__") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's, with copies of the action and of the observation."""
        self.calls += 1
        observation_space, action_space = self._spaces
        answer = self.env.step(as_element(action_space, action))
        with self._indexed():
            observation, reward, terminated, truncated, info = unpacked(answer, 5, "step")
            return (
                checked_observation(observation_space, observation),
                checked_reward(reward),
                checked_end(terminated, "termination"),
                checked_end(truncated, "truncation"),
                _without_gymnasiums(info) | ({} if self._score is None else {SCORE: self._score.reward}),
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's, with a copy of the observation."""
        self.calls += 1
        answer = self.env.reset(seed=seed, options=options)
        with self._indexed():
            observation, info = unpacked(answer, 2, "reset")
            return checked_observation(self._spaces[0], observation), _without_gymnasiums(info)

    @contextlib.contextmanager
    def _indexed(self) -> Iterator[None]:
        try:
            yield
        except Fault as fault:
            fault.index = self._index
            raise


def _without_gymnasiums(info: Any) -> dict[str, Any]:
    """An info without the entries that the vector environment itself writes; empty if it is no dict."""
    if not isinstance(info, Mapping):
        return {}
    return {key: value for key, value in info.items() if key not in ("final_obs", "final_info")}


def guard_environments_of(envs: VectorEnv) -> None:
    """Puts `Copies` around the environments in a vector environment that somebody else made, where it can be done.

    In a `SyncVectorEnv` it can. In an `AsyncVectorEnv` they are in other processes. In both, infos that change their
    types between environments, which make Gymnasium's fail, become arrays of objects.
    """
    if not isinstance(envs, SyncVectorEnv | AsyncVectorEnv):
        return
    if isinstance(envs, SyncVectorEnv):
        envs.envs = [
            env if isinstance(env, Guard | Copies) else Copies(env, index) for index, env in enumerate(envs.envs)
        ]
    if "_add_info" not in vars(envs):
        envs._add_info = functools.partial(_add_any_info, envs._add_info, envs.num_envs)  # type: ignore[method-assign]


def resynchronise(envs: VectorEnv) -> None:
    """Takes the answers to an interrupted call out of the pipes of Gymnasium's `AsyncVectorEnv`.

    Some workers' answers may have been read before the interrupt. So each is asked something that it answers with a
    bool, and whatever comes before that is thrown away.
    """
    if type(envs) is not AsyncVectorEnv or envs._state is AsyncState.DEFAULT:
        return
    for pipe in envs.parent_pipes:
        pipe.send(("_call", ("has_wrapper_attr", ("reset",), {})))
        while not isinstance(pipe.recv()[0], bool):
            pass
    envs._state = AsyncState.DEFAULT


def _add_any_info(
    add_info: Callable[..., dict[str, Any]], num_envs: int, infos: dict[str, Any], info: dict[str, Any], index: int
) -> dict[str, Any]:
    """Gymnasium's `_add_info`, but where it fails the values are put into an array of objects."""
    for key, value in info.items():
        try:
            infos = add_info(infos, {key: value}, index)
        except Exception:
            values, mask = np.full(num_envs, None, object), np.zeros(num_envs, bool)
            for earlier in np.flatnonzero(infos.get(f"_{key}", mask)):
                values[earlier] = None if isinstance(infos[key], dict) else infos[key][earlier]
                mask[earlier] = True
            values[index], mask[index] = value, True
            infos = {**infos, key: values, f"_{key}": mask}
    return infos
