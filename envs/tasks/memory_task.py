"""Base classes of the memory tasks. Each task is one class of dynamics for several environments (`MemoryTask`).

`MemoryEnv` is a `gymnasium.Env` with dynamics of size 1. `MemoryVectorEnv` is a `gymnasium.vector.VectorEnv` with
dynamics of size `num_envs`. So both always behave in the same way.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rl_lnlstm.errors import UserError

WALL, FLOOR, AGENT, GOOD, BAD = (40, 40, 40), (225, 225, 225), (40, 90, 220), (60, 180, 75), (230, 60, 60)


class MemoryTask(Protocol):
    """The dynamics of `num_envs` independent environments, with their states in arrays of that length."""

    observation_space: gym.Space
    action_space: gym.Space

    def begin(self, index: int, rng: np.random.Generator) -> None:
        """Starts an episode in environment `index`, and draws everything random in it from `rng`."""

    def observe(self) -> np.ndarray:
        """Returns the observations, a new float32 array `[num_envs, n]`."""

    def act(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Takes int actions `[num_envs]`; returns float64 rewards and bool terminated, truncated, each `[num_envs]`."""

    def frame(self, index: int) -> np.ndarray:
        """Returns a picture of environment `index`, uint8 `[height, width, 3]`."""


class MemoryEnv(gym.Env):
    """One environment of a task, for `gymnasium.make`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    task_class: ClassVar[Callable[..., MemoryTask]]

    def __init__(self, *, render_mode: str | None = None, **task_kwargs: Any) -> None:
        self.render_mode = render_mode
        self.task = self.task_class(1, **task_kwargs)
        self.observation_space, self.action_space = self.task.observation_space, self.task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; takes no options."""
        super().reset(seed=seed)
        self.task.begin(0, self.np_random)
        return self.task.observe()[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes an action; raises gymnasium.error.InvalidAction if it is not in the action space."""
        rewards, terminated, truncated = self.task.act(_valid_actions([action], 1, self.action_space))
        return self.task.observe()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """Returns a picture, uint8 `[height, width, 3]`, if `render_mode` is "rgb_array"."""
        return self.task.frame(0) if self.render_mode == "rgb_array" else None


class MemoryVectorEnv(VectorEnv):
    """`num_envs` environments of a task, step by step equal to a SyncVectorEnv over that many of the single ones."""

    metadata: dict[str, Any] = {**MemoryEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    task_class: ClassVar[Callable[..., MemoryTask]]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **task_kwargs: Any,
    ) -> None:
        require_integer("num_envs", num_envs, 1)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.task = self.task_class(num_envs, **task_kwargs)
        self.single_observation_space, self.single_action_space = self.task.observation_space, self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # One generator for each environment, so that an episode does not depend on the others beside it.
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._done = np.zeros(num_envs, bool)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator | None, ...]:  # type: ignore[override]
        """The generator of each environment, None before its first reset."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of each environment's generator, None before its first reset."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts episodes in all environments, or only where `options["reset_mask"]`, bool `[num_envs]`, is true.

        Args:
            seed: an int s seeds environment i with `s + i`, a list gives each its own, None keeps the generators.
            options: see above; nothing else is used.
        """
        seeds: Sequence[int | None]
        if isinstance(seed, int | np.integer):
            seeds = [int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else seed
        if len(seeds) != self.num_envs:
            raise UserError(f"seed: expected one for each of num_envs={self.num_envs} environments, got {len(seeds)}")
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            mask = options["reset_mask"]
            if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,)):
                raise UserError(f"options['reset_mask']: expected a bool array [{self.num_envs}], got {mask!r}")
        for index in np.flatnonzero(mask):
            if seeds[index] is not None or self._generators[index] is None:
                self._generators[index], self._seeds[index] = seeding.np_random(seeds[index])
        self._begin(mask)
        self._done = self._done & ~mask
        return self.task.observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes an action in every environment, with the autoreset semantics of `gymnasium.vector.SyncVectorEnv`.

        Args:
            actions: int `[num_envs]`.

        Returns:
            Observations float32 `[num_envs, n]`, rewards float64, terminated and truncated bool, each `[num_envs]`, and
            infos. Infos are empty, except in SAME_STEP mode: there they hold `final_obs` and `final_info` of the
            environments that ended.

        Raises:
            gymnasium.error.InvalidAction: an action is not in the action space.
            gymnasium.error.ResetNeeded: there was no reset before the first step or, in DISABLED mode, after an
                episode's end.
        """
        if None in self._generators:
            raise gym.error.ResetNeeded("step() before reset()")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            ended = np.flatnonzero(self._done).tolist()
            raise gym.error.ResetNeeded(f"the episodes of environments {ended} ended: reset them with 'reset_mask'")
        rewards, terminated, truncated = self.task.act(_valid_actions(actions, self.num_envs, self.single_action_space))
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._done.any():
            self._begin(self._done)
            rewards[self._done] = 0
            terminated, truncated = terminated & ~self._done, truncated & ~self._done
        self._done = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            final_obs = np.full(self.num_envs, None, object)
            for index, observation in enumerate(self.task.observe()):
                if self._done[index]:
                    final_obs[index] = observation
            infos = {
                "final_obs": final_obs,
                "final_info": {},
                "_final_obs": self._done,
                "_final_info": self._done.copy(),
            }
            self._begin(self._done)
        return self.task.observe(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Returns a picture of each environment, uint8 `[height, width, 3]`, if `render_mode` is "rgb_array"."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self.task.frame(index) for index in range(self.num_envs))

    def _begin(self, mask: np.ndarray) -> None:
        for index in np.flatnonzero(mask):
            self.task.begin(index, self._generators[index])  # type: ignore[arg-type]


def require_integer(name: str, value: int, minimum: int) -> None:
    """Raises `UserError` unless the value is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise UserError(f"{name}={value!r}: expected an integer of at least {minimum}")


def _valid_actions(actions: Any, num_envs: int, space: gym.Space) -> np.ndarray:
    assert isinstance(space, gym.spaces.Discrete)
    array = np.asarray(actions)
    if array.shape != (num_envs,) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= space.n:
        raise gym.error.InvalidAction(f"expected {num_envs} integers in 0..{space.n - 1}, got {actions!r}")
    return array


def enlarged(cells: np.ndarray) -> np.ndarray:
    """A picture, uint8 `[16 * rows, 16 * columns, 3]`, of cells `[rows, columns, 3]`."""
    return cells.repeat(16, axis=0).repeat(16, axis=1)


def register(env_id: str, single: type[gym.Env], vectorised: type[VectorEnv]) -> None:
    """Registers a memory task with Gymnasium, single and vectorised, unless it is registered already."""
    if env_id not in gym.registry:
        gym.register(
            id=env_id,
            entry_point=f"{single.__module__}:{single.__name__}",
            vector_entry_point=f"{vectorised.__module__}:{vectorised.__name__}",
            reward_threshold=0.95,
        )
