"""Trying an environment once before a run."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs.action_masks import environment_name
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.envs.make_vec import make_vec
from rl_lnlstm.errors import EnvironmentFailure, warn
from rl_lnlstm.spaces import map_leaves


def check_env(env: Any, **arguments: Any) -> None:
    """Makes an environment, resets it, takes one step with a random action, and checks what it returns.

    A `VectorEnv`, and an id that has only a vector implementation, are not tried.

    Args:
        env: as for `make_vec`.
        **arguments: of `make_vec`, apart from the number of environments and how they are vectorised.

    Raises:
        UserError: there is no such environment, or its spaces are not supported.
        EnvironmentFailure: the environment failed, or returned something that breaks Gymnasium's rules or does not fit
            its spaces. The message says what was returned and what was expected.
    """
    if isinstance(env, VectorEnv) or (
        isinstance(env, str) and env in gym.registry and not gym.registry[env].entry_point
    ):
        return
    envs = make_vec(env, 1, vectorization="sync", autoreset_mode=AutoresetMode.DISABLED, **arguments)
    with contextlib.closing(envs):
        try:
            stepper = Stepper(envs, 0)
            _warn_if_outside(envs, stepper.observations)
            stepper.step(_sample(envs, stepper.action_masks))
            _warn_if_outside(envs, stepper.observations)
        except EnvironmentFailure as error:
            message = str(error).replace(" (environment 0 in 0..0)", "").replace(" (in the reset after step 0)", "")
            if "raised TypeError in reset" in message and "unexpected keyword argument" in message:
                message += "; expected reset(self, *, seed=None, options=None)"
            elif "raised TypeError" in message and "positional argument" in message:
                message += "; expected step(self, action)"
            raise EnvironmentFailure(message) from error.__cause__


def _warn_if_outside(envs: VectorEnv, observations: Any) -> None:
    """Gives a `RunWarning` if an observation is outside the bounds of its space."""

    def check(leaf: gym.Space, part: Any) -> None:
        if isinstance(leaf, gym.spaces.Box):
            outside = (part[0] < leaf.low) | (part[0] > leaf.high)
            if outside.any():
                where = tuple(int(index[0]) for index in np.nonzero(outside))
                bounds = f"{leaf.low[where]:g} to {leaf.high[where]:g}"
                got = f"{environment_name(envs)} returned {part[0][where]:g} in an observation"
                warn(f"{got}, which is outside the bounds of its space, {bounds}")

    map_leaves(check, envs.single_observation_space, observations)


def _sample(envs: VectorEnv, masks: np.ndarray | None) -> Any:
    """A random legal action for the single environment."""
    space = envs.single_action_space
    space.seed(0)
    if masks is None:
        action = space.sample()
    else:
        sizes = np.atleast_1d(getattr(space, "nvec", getattr(space, "n", 0)))
        parts = tuple(part.astype(np.int8) for part in np.split(masks[0], np.cumsum(sizes)[:-1]))
        action = space.sample(mask=parts[0] if len(parts) == 1 else parts)
    return map_leaves(lambda _, part: np.asarray(part)[np.newaxis], space, action)
