"""Evaluating a policy over whole episodes."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import EnvironmentFailure, UserError
from rl_lnlstm.recording import EpisodeArrays, Recorder
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
    with _environments(policy, env, n_eval_episodes) as envs:
        episodes = [episode for episode, _ in _run_episodes(policy, envs, n_eval_episodes, deterministic, seed)]
    returns = [episode.ret for episode in episodes]
    if return_episode_rewards:
        return returns, [episode.length for episode in episodes]
    return float(np.mean(returns)), float(np.std(returns))


def record_episodes(
    policy: PredictingPolicy,
    env: str | Callable[..., gym.Env] | gym.Env | VectorEnv,
    n_episodes: int = 10,
    deterministic: bool = True,
    seed: int | None = None,
) -> list[EpisodeArrays]:
    """Runs whole episodes, the same ones as `evaluate_policy`, and returns all that happened in them.

    Args:
        policy, env, deterministic, seed: as for `evaluate_policy`.
        n_episodes: how many episodes.

    Returns:
        For each episode of T steps the arrays `observations` and `actions` `[T, *shape]` (of `Dict` and `Tuple` spaces
        one for each entry, such as `observations/image`), `rewards` `[T]`, the state that each action was chosen with,
        `h` and `c` `[T, state_size]` (zeros at first; and `feedback`, if the policy has it), and the scalars
        `terminated` and `truncated`.

    Raises:
        UserError, EnvironmentFailure: as `evaluate_policy`.

    Example:

    >>> episode = record_episodes(policy, "CartPole-v1", 1)[0]
    >>> episode["h"].shape[0] == episode["rewards"].size
    True
    """
    with _environments(policy, env, n_episodes) as envs:
        recorder = Recorder(envs.single_observation_space, envs.single_action_space, envs.num_envs)
        runs = _run_episodes(policy, envs, n_episodes, deterministic, seed, recorder)
        return [arrays for _, arrays in runs if arrays is not None]


def interquartile_mean(returns: np.ndarray) -> np.ndarray:
    """The mean of the middle half, `[...]` of `[..., n]`: it ignores outliers, and varies less than a median.

    Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice".
    """
    ordered = np.sort(returns, -1)
    cut = ordered.shape[-1] // 4
    return ordered[..., cut : ordered.shape[-1] - cut].mean(-1)


def bootstrap_interval(
    returns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap's confidence interval of a statistic, Efron (1979), over episodes `[n]`.

    Args:
        returns: what the episodes earned.
        statistic: from `[..., n]` to `[...]`.
        confidence: how often the interval is to hold the true value.
        resamples: how often episodes are drawn anew, as many as there are, with replacement.
        seed: decides which.
    """
    returns = np.asarray(returns)
    drawn = np.random.default_rng(seed).integers(len(returns), size=(resamples, len(returns)))
    low, high = np.quantile(statistic(returns[drawn]), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def check_spaces(policy: Any, envs: VectorEnv) -> None:
    """Raises `UserError` unless the policy was made for the environments' spaces."""
    for kind in ("observation", "action"):
        made_for, got = getattr(policy, f"{kind}_space"), getattr(envs, f"single_{kind}_space")
        if made_for != got:
            raise UserError(f"the policy was made for {kind} space {made_for}, but the environment has {got}")


@contextlib.contextmanager
def _environments(policy: PredictingPolicy, env: Any, count: int) -> Iterator[VectorEnv]:
    """Those to run `count` episodes in, closed afterwards if they are made here."""
    if count < 1:
        raise UserError(f"n_eval_episodes must be at least 1, got {count}")
    envs = make_vec(functools.partial(_identity, env) if isinstance(env, gym.Env) else env)
    try:
        check_spaces(policy, envs)
        yield envs
    finally:
        if not isinstance(env, (gym.Env, VectorEnv)):
            envs.close()


def _identity(env: gym.Env) -> gym.Env:
    return env


def _run_episodes(
    policy: PredictingPolicy,
    envs: VectorEnv,
    count: int,
    deterministic: bool,
    seed: int | None,
    recorder: Recorder | None = None,
) -> list[tuple[Episode, EpisodeArrays | None]]:
    remaining = [(count + i) // envs.num_envs for i in range(envs.num_envs)]
    episodes: list[tuple[Episode, EpisodeArrays | None]] = []
    stepper, state = Stepper(envs, seed), None
    masked = stepper.action_masks is not None and "action_masks" in inspect.signature(policy.predict).parameters
    broken_off = np.zeros(envs.num_envs, int)  # in a row
    while len(episodes) < count:
        masks = {"action_masks": stepper.action_masks} if masked else {}
        # A step may write into the very arrays of the one before.
        observations = stepper.observations if recorder is None else copy.deepcopy(stepper.observations)
        before = observations, state, stepper.episode_starts
        actions, state = policy.predict(*before, deterministic, **masks)
        step = stepper.step(actions)
        if recorder is not None:
            recorder.add(*before, actions, step)
        if getattr(policy, "previous_reward", False):
            state = policy.rewarded(state, step.rewards)  # type: ignore[attr-defined]
        if step.broken_off is not None:
            broken_off += step.broken_off
            if recorder is not None:
                recorder.drop(step.broken_off)
            if broken_off.max() >= MOST_BROKEN_OFF:
                raise EnvironmentFailure(f"{envs} broke off {MOST_BROKEN_OFF} episodes in a row, and finished none")
        for episode in step.episodes:
            index = episode.environment
            broken_off[index] = 0
            arrays = None if recorder is None else recorder.take(index, step)
            if remaining[index]:
                remaining[index] -= 1
                episodes.append((episode, arrays))
    return episodes
