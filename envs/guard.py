"""`Guard`: a wrapper that checks and copies everything that goes into a single environment and comes out of it.

`GuardedVectorEnv` in `vector_guard.py` does the same for a whole vector environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
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
from rl_lnlstm.envs.faults import FAILURES, FAULT, Fault, as_fault, close_or_warn
from rl_lnlstm.envs.scores import SCORE, insert_score_wrapper


class EndAware(gym.Wrapper):
    """A wrapper that knows whether the episode has ended. Its subclasses set `_ended`."""

    _ended = False

    def call_unless_ended(self, method: str) -> Any:
        """Calls a method of the environment and returns the result; after the episode's end, only returns None."""
        return None if self._ended else self.env.get_wrapper_attr(method)()


class Guard(EndAware):
    """Copies and checks everything that goes into an environment and comes out of it.

    - The environment gets a copy of the action, which is an element of its action space.
    - The observation is copied. It must have the shapes and dtypes of the observation space. The reward becomes a
      float, and the ends become bools.
    - Only the parts of the info that are used get out: the action mask, the reward before a wrapper clipped it and, at
      an episode's end, the numbers in `info_keys`.
    - If the environment raises or breaks a rule, the result is empty, and the info holds a `Fault`.

    It also takes and restores snapshots.

    Args:
        env: the environment.
        info_keys: names of the numbers to take from the info at an episode's end.
    """

    to_restore: bytes = b""

    def __init__(self, env: gym.Env, info_keys: tuple[str, ...] = ()) -> None:
        super().__init__(env)
        self._spaces = env.observation_space, env.action_space
        self._mask_sizes = mask_sizes(env.action_space)
        self._info_keys = info_keys
        self._score = insert_score_wrapper(env)
        self._reset_next = False

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Steps the environment and checks the result. A failure is reported in the info."""
        if self._reset_next:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        observation_space, action_space = self._spaces
        if self._score is not None:
            self._score.begin()
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
        except FAILURES as error:
            return self._nothing(), 0.0, False, False, {FAULT: as_fault(error)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Resets the environment and checks the result. A failure is reported in the info."""
        self._ended = self._reset_next = False
        try:
            observation, info = unpacked(reset_env(self.env, seed, options), 2, "reset")
            return checked_observation(self._spaces[0], observation), self._read(info)
        except FAILURES as error:
            return self._nothing(), {FAULT: as_fault(error, " in reset")}

    def close(self) -> None:
        """Closes the environment. An error in its `close` is a warning, so that the other environments are closed."""
        close_or_warn(super().close, type(self.env.unwrapped).__name__)

    def _read(self, info: Any) -> dict[str, Any]:
        """The parts of an info that are used. Nothing else may reach Gymnasium."""
        if not info or not isinstance(info, Mapping):
            return {}
        if self._ended:
            return dict(checked_info(info, self._info_keys)) if self._info_keys else {}
        mask = info.get(KEY)
        if mask is None:
            return {}
        return {KEY: True if self._mask_sizes is None else flat_mask(mask, self._mask_sizes)}

    def take_snapshot(self) -> bytes | str:
        """Returns the environment as bytes, or the reason why it cannot be pickled."""
        try:
            return snapshot.to_bytes((self._ended, self.env))
        except ValueError as error:
            return str(error)

    def restore_snapshot(self) -> str | None:
        """Restores the environment from `to_restore`. Returns None, or the reason why it cannot."""
        try:
            self._ended, self.env = snapshot.from_bytes(self.to_restore)
            self._score = insert_score_wrapper(self.env)
        except ValueError as error:
            return str(error)
        self._reset_next = self._ended
        return None

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The specification of the environment, without the guard, which `gymnasium.make` must not add."""
        return self.env.spec

    def _nothing(self) -> Any:
        space = self._spaces[0]
        return next(iterate(batch_space(space, 1), create_empty_array(space, 1)))


def reset_env(env: gym.Env, seed: int | None, options: dict[str, Any] | None) -> Any:
    """Resets an environment. A `reset` without Gymnasium's arguments becomes a `Fault`."""
    try:
        # Gymnasium takes its own entry, "reset_mask", out of the options, and passes on what may be an empty rest.
        return env.reset(seed=seed, options=options or None)
    except TypeError as error:
        if any(f"unexpected keyword argument {name!r}" in str(error) for name in ("seed", "options")):
            what = f"has a reset without the arguments of Gymnasium's, reset(self, *, seed=None, options=None): {error}"
            raise Fault(what, error, lasting=True) from error
        raise
