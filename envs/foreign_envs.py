"""Support for environments that other code made: copies, checks, and infos in one form.

Environments that `make_vec` makes need none of this: each is in a `Guard`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.vector.async_vector_env import AsyncState

from rl_lnlstm.envs.call_counter import count_calls
from rl_lnlstm.envs.checks import (
    NUMBERS,
    as_element,
    checked_end,
    checked_observation,
    checked_reward,
    unpacked,
)
from rl_lnlstm.envs.faults import Fault
from rl_lnlstm.envs.guard import EndAware, Guard, reset_env
from rl_lnlstm.envs.scores import SCORE, insert_score_wrapper


class ExistingEnv:
    """A function object that returns an environment that other code made. It has the name of the environment's class.

    Steps and resets of the environment are counted from now on.
    """

    def __init__(self, env: gym.Env) -> None:
        count_calls(env)
        self.env, self.__name__ = env, type(env.unwrapped).__name__

    def __call__(self) -> gym.Env:
        """Returns the same environment each time."""
        return self.env


class CopyingWrapper(EndAware):
    """Wraps an environment in a `SyncVectorEnv` that was not made by `make_vec`.

    It copies and checks as `Guard` does, but passes infos and errors on. Its `Fault`s know the environment's index.
    Other code that reads or sets attributes through the vector environment still reaches those of the environment.

    Args:
        env: the environment.
        index: of the environment in its vector environment.

    Attributes:
        calls: number of calls of `step` and `reset`, by any code.
    """

    # The names of its own attributes, and of those that `gym.Wrapper` sets; others are those of the environment.
    _OWN = frozenset({"env", "calls", "_index", "_spaces", "_score", "_ended"}) | frozenset(
        {"_action_space", "_observation_space", "_metadata", "_cached_spec"}
    )

    def __init__(self, env: gym.Env, index: int) -> None:
        super().__init__(env)
        self.calls = 0
        self._index = index
        self._spaces = env.observation_space, env.action_space
        self._score = insert_score_wrapper(env)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN or hasattr(type(self), name):
            super().__setattr__(name, value)
        else:
            setattr(self.env, name, value)

    def set_wrapper_attr(self, name: str, value: Any, **options: Any) -> Any:
        """Sets the attribute where it is without this wrapper, which Gymnasium would take for its owner."""
        return self.env.set_wrapper_attr(name, value, **options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment with a copy of the action, and returns a copy of the observation."""
        self.calls += 1
        observation_space, action_space = self._spaces
        if self._score is not None:
            self._score.begin()
        answer = self.env.step(as_element(action_space, action))
        with self._indexed():
            observation, reward, terminated, truncated, info = unpacked(answer, 5, "step")
            terminated, truncated = checked_end(terminated, "termination"), checked_end(truncated, "truncation")
            self._ended = terminated or truncated
            return (
                checked_observation(observation_space, observation),
                checked_reward(reward),
                terminated,
                truncated,
                _without_gymnasiums(info) | ({} if self._score is None else {SCORE: self._score.reward}),
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment, and returns a copy of the observation."""
        self.calls += 1
        self._ended = False
        with self._indexed():
            observation, info = unpacked(reset_env(self.env, seed, options), 2, "reset")
            return checked_observation(self._spaces[0], observation), _without_gymnasiums(info)

    @contextlib.contextmanager
    def _indexed(self) -> Iterator[None]:
        try:
            yield
        except Fault as fault:
            fault.index = self._index
            raise


def _without_gymnasiums(info: Any) -> dict[str, Any]:
    """An info without the entries that the vector environment itself writes; empty if it is not a dict."""
    if not isinstance(info, Mapping):
        return {}
    return {key: value for key, value in info.items() if key not in ("final_obs", "final_info")}


def prepare_foreign_vector_env(envs: VectorEnv) -> None:
    """Prepares a vector environment that was not made by `make_vec`.

    In a `SyncVectorEnv`, it wraps the environments in `CopyingWrapper`. It cannot do so in an `AsyncVectorEnv`, whose
    environments are in other processes. In both, infos whose types differ between environments become arrays of
    objects, because Gymnasium would raise an error.
    """
    if not isinstance(envs, SyncVectorEnv | AsyncVectorEnv):
        return
    if isinstance(envs, SyncVectorEnv):
        envs.envs = [
            env if isinstance(env, Guard | CopyingWrapper) else CopyingWrapper(env, index)
            for index, env in enumerate(envs.envs)
        ]
    if "_add_info" not in vars(envs):
        envs._add_info = functools.partial(_add_any_info, envs._add_info, envs.num_envs)  # type: ignore[method-assign]


def clear_async_pipes(envs: VectorEnv) -> None:
    """Clears the pipes of Gymnasium's `AsyncVectorEnv` after an interrupted call.

    Some answers may have been read before the interrupt. So each worker gets a question that it answers with a bool,
    and everything that arrives before this answer is discarded.
    """
    if type(envs) is not AsyncVectorEnv or envs._state is AsyncState.DEFAULT:
        return
    for pipe in envs.parent_pipes:
        pipe.send(("_call", ("has_wrapper_attr", ("reset",), {})))
        while not isinstance(pipe.recv()[0], bool):
            pass
    envs._state = AsyncState.DEFAULT


def infos_as_dict(envs: VectorEnv, infos: Any) -> dict[str, Any]:
    """The infos of a vector environment as Gymnasium's dict of arrays.

    Some vector environments, and Gymnasium's wrapper `DictInfoToList`, return a list with an info for each environment.

    Raises:
        Fault: the infos are neither.
    """
    if isinstance(infos, dict):
        return infos
    if not isinstance(infos, list | tuple) or [isinstance(info, Mapping) for info in infos] != [True] * envs.num_envs:
        raise Fault(f"returned infos of type {type(infos).__name__}, expected a dict", lasting=True)
    joined: dict[str, Any] = {}
    for index, info in enumerate(infos):
        joined = _add_any_info(functools.partial(VectorEnv._add_info, envs), envs.num_envs, joined, dict(info), index)
    return joined


def _add_any_info(
    add_info: Callable[..., dict[str, Any]], num_envs: int, infos: dict[str, Any], info: dict[str, Any], index: int
) -> dict[str, Any]:
    """Gymnasium's `_add_info`; where that fails, puts the values into an array of objects.

    Gymnasium makes an array for the first value. If it is an integer, fractions of later ones would be cut off.
    """
    for key, value in info.items():
        array = infos.get(key)
        if isinstance(array, np.ndarray) and isinstance(value, bool | int | float | np.generic | np.ndarray):
            dtype = np.asarray(value).dtype
            if array.dtype.kind in NUMBERS and dtype.kind in NUMBERS:
                infos[key] = array.astype(np.result_type(array, dtype), copy=False)
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
