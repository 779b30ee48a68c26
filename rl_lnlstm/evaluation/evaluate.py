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
from rl_lnlstm.envs.autoreset import Episode, Stepper
from rl_lnlstm.errors import EnvironmentFailure, UserError
from rl_lnlstm.evaluation.record import STATE, EpisodeArrays, Recorder

MOST_ABORTED = 100  # episodes in a row; an environment that never finishes one would be evaluated for ever


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
        UserError: fewer than 1 episode, or an environment with other spaces than the policy's.
        EnvironmentFailure: the environment failed; if `env` is from `make_vec` and survives failures, it did so in too
            many episodes. Those in which it failed do not count.
    """
    with _environments(env) as envs:
        episodes = [episode for episode, _ in run_episodes(policy, envs, n_eval_episodes, deterministic, seed)]
    returns = [episode.episode_return for episode in episodes]
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
        For each episode of T steps a dict of arrays, those of nested spaces one for each entry, by names such as
        `observations/image`:

        - `observations`, `actions` `[T, *shape]`, of the spaces' dtypes and within their bounds; `rewards` `[T]`;
        - `final_observation` `[*shape]`, what the last action led to; `terminated` and `truncated`, bool scalars;
        - `action_masks` `[T, size]` bool, if the environments have them and the policy takes them;
        - for a policy of this package, `values` `[T]` and the state that each action was chosen with: `h` and `c`
          `[T, state_size]`, zeros at first, and `last_action_reward` `[T, features]` if the policy sees the previous
          action or reward.

        `policy.predict(observations, (h, c), deterministic=True)` repeats the actions if they were deterministic; with
        `action_masks`, where there are any.

    Raises:
        UserError, EnvironmentFailure: as `evaluate_policy`.

    Example:

    >>> episode = record_episodes(policy, "CartPole-v1", 1)[0]
    >>> episode["h"].shape[0] == episode["rewards"].size
    True
    """
    with _environments(env) as envs:
        return [arrays for _, arrays in run_episodes(policy, envs, n_episodes, deterministic, seed, record=True)]


def check_spaces(policy: Any, envs: VectorEnv) -> None:
    """Raises `UserError` unless the policy was made for the environments' spaces."""
    for kind in ("observation", "action"):
        made_for, got = getattr(policy, f"{kind}_space"), getattr(envs, f"single_{kind}_space")
        if made_for != got:
            raise UserError(f"the policy was made for {kind} space {made_for}, but the environment has {got}")


def run_episodes(
    policy: PredictingPolicy,
    envs: VectorEnv,
    n_episodes: int,
    deterministic: bool = True,
    seed: int | None = None,
    record: bool = False,
) -> Iterator[tuple[Episode, EpisodeArrays]]:
    """What `evaluate_policy` and `record_episodes` run: each episode as it ends, with its arrays if it is recorded."""
    if n_episodes < 1:
        raise UserError(f"the number of episodes must be at least 1, got {n_episodes}")
    check_spaces(policy, envs)
    remaining = np.array([(n_episodes + i) // envs.num_envs for i in range(envs.num_envs)])
    stepper, state = Stepper(envs, seed), None
    recorder = Recorder(envs.single_observation_space, envs.single_action_space, envs.num_envs) if record else None
    masked = stepper.action_masks is not None and "action_masks" in inspect.signature(policy.predict).parameters
    aborted = np.zeros(envs.num_envs, int)  # in a row
    while remaining.any():
        masks = {"action_masks": stepper.action_masks} if masked else {}
        before = {} if recorder is None else {**_acted_on(policy, stepper, state), **masks}
        actions, state = policy.predict(stepper.observations, state, stepper.episode_starts, deterministic, **masks)
        step = stepper.step(actions)
        if recorder is not None:
            recorder.add(step.valid & (remaining > 0), {**before, "actions": actions, "rewards": step.rewards})
        if getattr(policy, "previous_reward", False):
            state = policy.rewarded(state, step.rewards)  # type: ignore[attr-defined]
        if step.aborted is not None:
            aborted += step.aborted
            if recorder is not None:
                recorder.drop(step.aborted)
            if aborted.max() >= MOST_ABORTED:
                raise EnvironmentFailure(f"{envs} broke off {MOST_ABORTED} episodes in a row, and finished none")
        for episode in step.episodes:
            index = episode.environment
            aborted[index] = 0
            if not remaining[index]:
                continue
            remaining[index] -= 1
            final = stepper.observations if step.final_observations is None else step.final_observations
            yield episode, {} if recorder is None else recorder.take(index, step, final)


def _acted_on(policy: Any, stepper: Stepper, state: Any) -> dict[str, Any]:
    """What the next actions will be chosen by, and, of a policy of this package, its values and its state."""
    # Copied: a step may write into the very arrays of the one before.
    parts = {"observations": copy.deepcopy(stepper.observations)}
    if not hasattr(policy, "initial_state"):
        return parts
    starts = stepper.episode_starts
    state = policy.initial_state(len(starts)) if state is None else state
    parts["values"] = policy.value(stepper.observations, state, starts)
    for name, part in zip(STATE, state, strict=False):
        parts[name] = np.where(starts[:, np.newaxis], np.zeros_like(part), part)
    return parts


@contextlib.contextmanager
def _environments(env: Any) -> Iterator[VectorEnv]:
    """Those to run episodes in, closed afterwards if they are made here."""
    envs = make_vec(functools.partial(_identity, env) if isinstance(env, gym.Env) else env)
    try:
        yield envs
    finally:
        if not isinstance(env, (gym.Env, VectorEnv)):
            envs.close()


def _identity(env: gym.Env) -> gym.Env:
    return env
