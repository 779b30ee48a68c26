"""Evaluating a policy over whole episodes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, Protocol, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import EnvironmentFailure, UserError
from rl_lnlstm.stepping import Episode, Stepper

MOST_BROKEN_OFF = 100  # episodes in a row; an environment that never finishes one would be evaluated for ever


class PredictingPolicy(Protocol):
    """What evaluation needs of a policy; those of Stable-Baselines3 have it too."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Actions and the new state; given `action_masks` as well, if it takes them and environments have them."""


@overload
def evaluate_policy(
    policy: PredictingPolicy,
    env: str | Callable[..., gym.Env] | gym.Env | VectorEnv,
    n_eval_episodes: int = ...,
    deterministic: bool = ...,
    seed: int | None = ...,
    return_episode_rewards: Literal[False] = ...,
) -> tuple[float, float]: ...


@overload
def evaluate_policy(
    policy: PredictingPolicy,
    env: str | Callable[..., gym.Env] | gym.Env | VectorEnv,
    n_eval_episodes: int = ...,
    deterministic: bool = ...,
    seed: int | None = ...,
    *,
    return_episode_rewards: Literal[True],
) -> tuple[list[float], list[int]]: ...


def evaluate_policy(
    policy: PredictingPolicy,
    env: str | Callable[..., gym.Env] | gym.Env | VectorEnv,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    seed: int | None = None,
    return_episode_rewards: bool = False,
) -> Any:
    """Runs whole episodes and returns what they earned, as Stable-Baselines3's function of this name.

    Episodes are spread evenly over the environments beforehand, so that those which end early do not count more often.

    Args:
        policy: what acts.
        env: a Gymnasium id, a function that makes an environment, an environment, or a `VectorEnv`.
        n_eval_episodes: how many episodes.
        deterministic: take the most probable actions rather than sample.
        seed: of the first reset.
        return_episode_rewards: return the lists rather than mean and deviation.

    Returns:
        Mean and standard deviation of the undiscounted returns; or the return and the length in frames of each episode.

    Raises:
        UserError: `n_eval_episodes` below 1, or an environment with other spaces than the policy's.
        EnvironmentFailure: the environment failed; if `env` is from `make_vec` and survives failures, it did so in too
            many episodes. Those in which it failed do not count.
    """
    if n_eval_episodes < 1:
        raise UserError(f"n_eval_episodes must be at least 1, got {n_eval_episodes}")
    envs = make_vec(functools.partial(_identity, env) if isinstance(env, gym.Env) else env)
    try:
        check_spaces(policy, envs)
        episodes = _run_episodes(policy, envs, n_eval_episodes, deterministic, seed)
    finally:
        if not isinstance(env, (gym.Env, VectorEnv)):
            envs.close()
    returns = [episode.ret for episode in episodes]
    if return_episode_rewards:
        return returns, [episode.length for episode in episodes]
    return float(np.mean(returns)), float(np.std(returns))


def check_spaces(policy: Any, envs: VectorEnv) -> None:
    """Raises `UserError` unless the policy was made for the environments' spaces."""
    for kind in ("observation", "action"):
        made_for, got = getattr(policy, f"{kind}_space"), getattr(envs, f"single_{kind}_space")
        if made_for != got:
            raise UserError(f"the policy was made for {kind} space {made_for}, but the environment has {got}")


def _identity(env: gym.Env) -> gym.Env:
    return env


def _run_episodes(
    policy: PredictingPolicy, envs: VectorEnv, count: int, deterministic: bool, seed: int | None
) -> list[Episode]:
    remaining = [(count + i) // envs.num_envs for i in range(envs.num_envs)]
    episodes: list[Episode] = []
    stepper, state = Stepper(envs, seed), None
    masked = stepper.action_masks is not None and "action_masks" in inspect.signature(policy.predict).parameters
    broken_off = np.zeros(envs.num_envs, int)  # in a row
    while len(episodes) < count:
        masks = {"action_masks": stepper.action_masks} if masked else {}
        actions, state = policy.predict(stepper.observations, state, stepper.episode_starts, deterministic, **masks)
        step = stepper.step(actions)
        if getattr(policy, "previous_reward", False):
            state = policy.rewarded(state, step.rewards)  # type: ignore[attr-defined]
        if step.broken_off is not None:
            broken_off += step.broken_off
            if broken_off.max() >= MOST_BROKEN_OFF:
                raise EnvironmentFailure(f"{envs} broke off {MOST_BROKEN_OFF} episodes in a row, and finished none")
        for episode in step.episodes:
            broken_off[episode.environment] = 0
            if remaining[episode.environment]:
                remaining[episode.environment] -= 1
                episodes.append(episode)
    return episodes
