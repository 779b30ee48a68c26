"""Counts how often an environment object that other code made is stepped and reset, by any code."""

from __future__ import annotations

import contextlib
import types
import weakref
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from rl_lnlstm.envs.wrappers import layers


class CallCounter:
    """The number of steps and resets of an environment, since `count_calls` was called for it."""

    def __init__(self) -> None:
        self.count = 0


class _CountedMethod:
    """A method of an environment that counts its calls. It is put into the attributes of the object."""

    def __init__(self, env: gym.Env | VectorEnv, name: str, counter: CallCounter) -> None:
        self._env, self._name, self.counter = weakref.ref(env), name, counter

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.counter.count += 1
        return self._method()(*args, **kwargs)

    def _method(self) -> Any:
        env = self._env()
        return getattr(type(env), self._name).__get__(env)

    def __reduce__(self) -> Any:  # a copy of the environment counts nothing until it gets a guard
        return getattr, (self._env(), self._name)


def attributes_without_counters(env: VectorEnv) -> dict[str, Any]:
    """The attributes of an environment, without what `count_calls` adds to them."""
    return {name: value for name, value in vars(env).items() if not isinstance(value, _CountedMethod)}


def count_calls(env: gym.Env | VectorEnv) -> CallCounter:
    """Counts the calls of `env` from now on, with methods that it puts into the object.

    Returns the same counter for the same environment.
    """
    names = ("step_async", "reset_async") if isinstance(env, AsyncVectorEnv) else ("step", "reset")
    own = getattr(env, "__dict__", {})
    counter = next((own[name].counter for name in names if isinstance(own.get(name), _CountedMethod)), CallCounter())
    for name in names:
        # Leave a method alone that other code put into the object, and objects without attributes of their own. A copy
        # has the method of its class as an attribute; see `_CountedMethod.__reduce__`.
        method = getattr(type(env), name, None)
        if callable(method) and (name not in own or own[name] == types.MethodType(method, env)):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(env, name, _CountedMethod(env, name, counter))
    return counter


def counters_inside(envs: VectorEnv) -> list[CallCounter]:
    """The counters of the environment objects inside of a vector environment, where `count_calls` counts them."""
    inside = [layer for env in getattr(envs, "envs", ()) for layer in layers(env)]
    methods = [getattr(layer, "__dict__", {}).get("step") for layer in inside]
    return [method.counter for method in methods if isinstance(method, _CountedMethod)]
