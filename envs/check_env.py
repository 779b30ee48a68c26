"""Trying an environment once before a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs.action_masks import mask_sizes
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.envs.faults import environment_name
from rl_lnlstm.envs.make_vec import make_vec, uses_vector_entry_point
from rl_lnlstm.envs.registry import find_spec
from rl_lnlstm.envs.wrappers import Wrapper
from rl_lnlstm.errors import EnvironmentFailure, warn
from rl_lnlstm.spaces import check_observation_space, map_leaves


def check_env(
    env: Any,
    *,
    vectorization: str = "auto",
    wrappers: Sequence[str | Wrapper] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    mask_key: str | None = None,
) -> None:
    """Makes an environment, resets it, takes one step with a random action, and checks what it returns.

    It does not try a `VectorEnv`, or an id of which `make_vec` would use the vector implementation.

    Args:
        env: as for `make_vec`.
        vectorization, wrappers, env_kwargs, mask_key: as for `make_vec`.

    Raises:
        UserError: there is no such environment, or its spaces are not supported.
        EnvironmentFailure: the environment failed, or returned something that breaks Gymnasium's rules or does not fit
            its spaces. The message says what was returned and what was expected.
    """
    source = find_spec(env) if isinstance(env, str) else env
    if isinstance(env, VectorEnv) or uses_vector_entry_point(
        source, vectorization, AutoresetMode.NEXT_STEP, wrappers, env_kwargs or {}
    ):
        return
    problems: list[str] = []
    envs = make_vec(
        env,
        vectorization="sync",
        autoreset_mode=AutoresetMode.DISABLED,
        wrappers=[*wrappers, lambda made: _Watch(made, problems)],
        env_kwargs=env_kwargs,
        mask_key=mask_key,
    )
    with contextlib.closing(envs):
        check_observation_space(envs.single_observation_space)
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
        if problems:
            raise EnvironmentFailure(f"{environment_name(envs)} {problems[0]}")


class _Watch(gym.Wrapper):
    """Looks for mistakes that do no harm in a run, and are therefore not looked for in every step."""

    def __init__(self, env: gym.Env, problems: list[str]) -> None:
        super().__init__(env)
        self._problems = problems

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        answer = self.env.reset(seed=seed, options=options)
        self._look(answer, "reset")
        return answer

    def step(self, action: Any) -> Any:
        answer = self.env.step(action)
        self._look(answer, "step")
        return answer

    def _look(self, answer: Any, method: str) -> None:
        if not isinstance(answer, tuple) or len(answer) < 2:
            return  # the checks of every step say so
        if not isinstance(answer[-1], dict):
            self._problems.append(f"returned {answer[-1]!r:.80} as info from {method}, expected a dict")
        for what, key in _unknown_keys(self.env.observation_space, answer[0], "observation"):
            self._problems.append(f"returned {what} with {key!r} from {method}, which is not in its space")


def _unknown_keys(space: gym.Space, observation: Any, what: str) -> Iterator[tuple[str, Any]]:
    """The keys in an observation that its space does not have, with the name of the part that has them."""
    if isinstance(space, gym.spaces.Dict) and isinstance(observation, Mapping):
        yield from ((what, key) for key in observation if key not in space.spaces)
        for key, inner in space.spaces.items():
            yield from _unknown_keys(inner, observation.get(key), f"{what}[{key!r}]")
    elif isinstance(space, gym.spaces.Tuple) and isinstance(observation, tuple | list):
        for index, (inner, part) in enumerate(zip(space.spaces, observation, strict=False)):
            yield from _unknown_keys(inner, part, f"{what}[{index}]")


def _warn_if_outside(envs: VectorEnv, observations: Any) -> None:
    """Gives a `RunWarning` if an observation is outside the bounds of its space."""

    def check(leaf: gym.Space, part: Any) -> None:
        if isinstance(leaf, gym.spaces.Box):
            outside = (part[0] < leaf.low) | (part[0] > leaf.high)
            if outside.any():
                where = tuple(np.argwhere(outside)[0].tolist())
                bounds = f"{leaf.low[where]:g} to {leaf.high[where]:g}"
                got = f"{environment_name(envs)} returned {part[0][where]:g} in an observation"
                warn(f"{got}, which is outside the bounds of its space, {bounds}")

    map_leaves(check, envs.single_observation_space, observations)


def _sample(envs: VectorEnv, masks: np.ndarray | None) -> Any:
    """A legal action for the single environment: random, or the first one that the masks allow."""
    space: Any = envs.single_action_space
    sizes = None if masks is None else mask_sizes(space)
    if masks is None or sizes is None:
        space.seed(0)
        action = space.sample()
    else:
        first = [part.argmax() for part in np.split(masks[0], np.cumsum(sizes)[:-1])]
        action = (np.reshape(first, space.shape) + getattr(space, "start", 0)).astype(space.dtype)
    return map_leaves(lambda _, part: np.asarray(part)[np.newaxis], space, action)
