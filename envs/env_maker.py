"""Making environments, and replacing those that failed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate

from rl_lnlstm.envs.faults import Numbering, comparing_spaces
from rl_lnlstm.envs.guard import Guard
from rl_lnlstm.envs.learning_wrappers import refuse_learning_wrappers
from rl_lnlstm.envs.registry import EnvSource, construction, pickled_registrations, portable, register
from rl_lnlstm.envs.scores import warn_of_lives
from rl_lnlstm.envs.workers import WorkerVectorEnv
from rl_lnlstm.envs.wrappers import Wrapper
from rl_lnlstm.errors import UserError


@dataclasses.dataclass(frozen=True)
class EnvMaker:
    """A function object that makes one environment, again if needed, in this or another process.

    Raises:
        UserError: the environment cannot be made as asked for, for example because a package is missing.
        EnvironmentFailure: the environment raised while it was made.
    """

    source: EnvSource
    name: str  # of the environment, in messages
    kwargs: dict[str, Any]
    wrappers: tuple[Wrapper, ...]
    info_keys: tuple[str, ...] = ()
    registrations: Mapping[str, bytes] = dataclasses.field(default_factory=dict)  # for another process

    def __call__(self) -> gym.Env:
        """Makes the environment with its wrappers and its guard."""
        register(self.registrations)
        with construction(self.name, self.kwargs):
            if isinstance(self.source, EnvSpec):
                env = gym.make(self.source, disable_env_checker=True, **self.kwargs)
            else:
                env = self.source(**self.kwargs)
            if not isinstance(env, gym.Env):
                raise UserError(f"env: expected a function that makes a gymnasium.Env, got one that makes {env!r}")
            for wrapper in self.wrappers:
                env = wrapper(env)
            for name in ("observation_space", "action_space"):
                space = getattr(env, name, None)
                if not isinstance(space, gym.Space):
                    raise UserError(f"{self.name}: {name} must be a gymnasium.Space, got {space!r}")
            refuse_learning_wrappers(env, self.name)
            warn_of_lives(env, self.name.partition(" (environment ")[0])
            return Guard(env, self.info_keys)


class RestartingSyncVectorEnv(SyncVectorEnv):
    """Gymnasium's `SyncVectorEnv`, with a method that replaces an environment."""

    def restart(self, index: int, seed: int | None) -> tuple[Any, dict[str, Any]]:
        """Replaces an environment by a new one and resets it. Returns all observations, and its info."""
        envs: list[gym.Env] = self.envs
        with contextlib.suppress(Exception):
            envs[index].close()
        envs[index] = self.env_fns[index]()
        self._env_obs[index], info = envs[index].reset(seed=seed)
        self._autoreset_envs[index] = False
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return copy.deepcopy(self._observations), info


def make_sync(makers: Sequence[Callable[[], gym.Env]], mode: AutoresetMode) -> VectorEnv:
    """Makes environments that are stepped one after the other in this process."""
    with comparing_spaces():
        vector_env = RestartingSyncVectorEnv(makers, autoreset_mode=mode)
    if len({id(env.unwrapped) for env in vector_env.envs}) < len(makers):
        raise UserError(
            "env: expected a function that makes a new environment at each call, but it returned the same one twice"
        )
    return vector_env


def make_async(
    makers: Sequence[EnvMaker], name: str, mode: AutoresetMode, timeout: float | None, numbering: Numbering
) -> VectorEnv:
    """Makes environments that run in a process each."""
    registrations = pickled_registrations()
    makers = [
        dataclasses.replace(
            maker,
            source=portable(maker.source) if isinstance(maker.source, EnvSpec) else maker.source,
            registrations=registrations,
        )
        for maker in makers
    ]
    return WorkerVectorEnv(makers, name, mode, timeout, numbering)
