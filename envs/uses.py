"""Counts how often an environment that is handed in is stepped and reset, by any code."""

from __future__ import annotations

import contextlib
import types
import weakref
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from rl_lnlstm.envs.wrappers import layers


class Uses:
    """The number of steps and resets of an environment."""

    def __init__(self) -> None:
        self.count = 0


class _Counted:
    """A method of an environment that counts its calls. It is put into the attributes of the object."""

    def __init__(self, env: gym.Env | VectorEnv, name: str, uses: Uses) -> None:
        self._env, self._name, self.uses = weakref.ref(env), name, uses

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.uses.count += 1
        return self._method()(*args, **kwargs)

    def _method(self) -> Any:
        env = self._env()
        return getattr(type(env), self._name).__get__(env)

    def __reduce__(self) -> Any:  # a copy of the environment counts nothing until it gets a guard
        return getattr, (self._env(), self._name)


def attributes_of(env: VectorEnv) -> dict[str, Any]:
    """The attributes of an environment, without what `uses_of` adds to them."""
    return {name: value for name, value in vars(env).items() if not isinstance(value, _Counted)}


def uses_of(env: gym.Env | VectorEnv) -> Uses:
    """Counts the calls of `env` from now on; returns the same counter for the same environment."""
    names = ("step_async", "reset_async") if isinstance(env, AsyncVectorEnv) else ("step", "reset")
    own = getattr(env, "__dict__", {})
    uses = next((own[name].uses for name in names if isinstance(own.get(name), _Counted)), Uses())
    for name in names:
        # Leave a method alone that other code put into the object, and objects without attributes of their own. A copy
        # has the method of its class as an attribute; see `_Counted.__reduce__`.
        method = getattr(type(env), name, None)
        if callable(method) and (name not in own or own[name] == types.MethodType(method, env)):
            with contextlib.suppress(AttributeError, TypeError):
                setattr(env, name, _Counted(env, name, uses))
    return uses


def uses_inside(envs: VectorEnv) -> list[Uses]:
    """The counters of the environment objects inside of a vector environment, where `uses_of` counts them."""
    inside = [layer for env in getattr(envs, "envs", ()) for layer in layers(env)]
    methods = [getattr(layer, "__dict__", {}).get("step") for layer in inside]
    return [method.uses for method in methods if isinstance(method, _Counted)]
