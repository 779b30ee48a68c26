"""Refuses wrappers that learn statistics while they are stepped, because these are not saved with a policy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper

from rl_lnlstm.envs.wrappers import layers
from rl_lnlstm.errors import UserError

# Attributes of Gymnasium's wrappers that hold running means -> what to use instead of these wrappers
ADVICE = {
    "obs_rms": "--normalize-observations (normalize_observations=True)",
    "return_rms": "--normalize-rewards (normalize_rewards=True)",
}
SWITCHES = "update_running_mean", "training"  # attributes; false means that the wrapper has stopped learning


def refuse_learning_wrappers(env: gym.Env, name: str) -> None:
    """Raises `UserError` if a wrapper of the environment, or the environment itself, updates a running mean."""
    for layer in layers(env):
        _refuse(layer, name)


def refuse_learning_vector_wrappers(envs: VectorEnv, name: str) -> None:
    """Like `refuse_learning_wrappers`, for a vector environment and the environments in it, if they are accessible."""
    for layer in layers(envs, VectorWrapper):
        _refuse(layer, name)
    *_, innermost = layers(envs, VectorWrapper)
    if isinstance(innermost, SyncVectorEnv):
        for env in innermost.envs:
            refuse_learning_wrappers(env, name)
    elif isinstance(innermost, AsyncVectorEnv):
        for attribute, advice in ADVICE.items():
            if not any(innermost.call("has_wrapper_attr", attribute)):
                continue
            frozen = all(innermost.call("has_wrapper_attr", SWITCHES[0])) and not any(innermost.get_attr(SWITCHES[0]))
            if not frozen:
                raise UserError(_message(name, f"a wrapper with {attribute}", advice))


def _refuse(layer: Any, name: str) -> None:
    attributes = getattr(layer, "__dict__", {})
    running = [key for key, value in attributes.items() if _is_running_mean(value)]
    if running and all(getattr(layer, switch, True) for switch in SWITCHES):
        advice = ADVICE.get(running[0], " and ".join(ADVICE.values()))
        raise UserError(_message(name, type(layer).__name__, advice))


def _is_running_mean(value: Any) -> bool:
    """Whether an object looks like `RunningMeanStd` of Gymnasium, Stable-Baselines3 and similar code."""
    if type(value).__name__ == "RunningMeanStd":
        return True
    # They are methods in a DataFrame of pandas.
    values = [getattr(value, attribute, None) for attribute in ("mean", "var", "count")]
    return hasattr(value, "update") and not any(found is None or callable(found) for found in values)


def _message(name: str, what: str, advice: str) -> str:
    return (
        f"{name}: {what} learns statistics that are not saved with the policy, so the policy would see other numbers "
        f"in evaluation; use {advice} instead, or freeze its statistics (update_running_mean=False)"
    )
