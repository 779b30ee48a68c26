"""Making environments for an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium as gym
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.registry import find_spec
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.plans import EvenlySpread, InOrder
from rl_lnlstm.policies.critic_entries import is_part_of

MAX_ENVS = 8  # environments that are stepped together, unless the user wants another number


class MakeEnvs(Protocol):
    """Makes environments for evaluations."""

    def __call__(self, num_envs: int, render: bool) -> VectorEnv:
        """Makes `num_envs` environments, with pictures if `render`."""


def make_evaluation_envs(
    env: str | Callable[..., gym.Env],
    num_envs: int,
    vectorization: str = "auto",
    trained_on: gym.Space | None = None,
    **options: Any,
) -> VectorEnv:
    """Makes environments that can be seeded one by one, if possible.

    Args:
        env: a Gymnasium id, or a function that makes an environment.
        num_envs: number of environments.
        vectorization: as for `make_vec`, except "auto". It means "sync", because the environments of a vector
            implementation cannot be seeded one by one. If only the vector implementation takes the `env_kwargs`, or has
            the observations of `trained_on`, as with Atari, it is used.
        trained_on: the policy's observation space.
        **options: other arguments of `make_vec`.
    """
    spec = find_spec(env) if isinstance(env, str) else None
    has_vector = spec is not None and spec.vector_entry_point is not None
    if vectorization == "auto" and spec is not None and spec.entry_point is None:
        vectorization = "vector_entry_point"
    may_change = vectorization == "auto" and has_vector and not options.get("wrappers")
    mode = AutoresetMode.NEXT_STEP if vectorization == "vector_entry_point" else AutoresetMode.DISABLED
    chosen = "sync" if vectorization == "auto" else vectorization
    try:
        envs = make_vec(env, num_envs, vectorization=chosen, autoreset_mode=mode, **options)
    except UserError:
        if not (may_change and options.get("env_kwargs")):
            raise
    else:
        # Entries that only the critic sees may be missing.
        if not may_change or trained_on is None or is_part_of(envs.single_observation_space, trained_on):
            return envs
        envs.close()
    return make_evaluation_envs(env, num_envs, "vector_entry_point", **options)


def seeded_one_by_one(envs: VectorEnv) -> bool:
    """Whether each environment can be reset with a seed of its own: only in autoreset mode DISABLED."""
    return envs.metadata.get("autoreset_mode") is AutoresetMode.DISABLED


def plan_for(envs: VectorEnv, seeds: Sequence[int] | int, seed: int | None) -> InOrder | EvenlySpread:
    """The plan for these seeds.

    Args:
        envs: the environments.
        seeds: a seed for each episode; or the number of episodes, if the environments are to be seeded as a whole.
        seed: from which `seeds` were derived. None: the user chose them.

    Raises:
        UserError: the user chose the seeds, and the environments cannot be seeded one by one.
    """
    if isinstance(seeds, int):
        return EvenlySpread(seeds, envs.num_envs, seed)
    if seeded_one_by_one(envs):
        return InOrder(seeds, envs.num_envs)
    if seed is None:
        raise UserError("episode_seeds: the environment has only a vector implementation, which is seeded as a whole")
    return EvenlySpread(len(seeds), envs.num_envs, seed)
