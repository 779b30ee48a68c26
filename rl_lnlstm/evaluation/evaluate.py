"""Evaluating a policy over whole episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, overload

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.foreign_envs import ExistingEnv
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.environments import make_evaluation_envs, plan_for
from rl_lnlstm.evaluation.episodes import EpisodeRunner, EvaluatedEpisode, PredictingPolicy
from rl_lnlstm.evaluation.record import EpisodeArrays
from rl_lnlstm.evaluation.result import Evaluation
from rl_lnlstm.evaluation.video import FrameRecorder
from rl_lnlstm.option_types import Count, Index, checked
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.seeding import derived_seed, random_seed

Environment = str | Callable[..., gym.Env] | gym.Env | VectorEnv


def evaluate(
    policy: PredictingPolicy,
    env: Environment,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    seed: int | None = None,
    *,
    episode_seeds: Sequence[int] | None = None,
    max_steps: int | None = None,
    num_envs: int = 1,
    mask_key: str | None = None,
) -> Evaluation:
    """Runs whole episodes, and reports their returns with statistics and confidence intervals.

    Each episode has its own seed, derived from `seed` and the number of the episode. So the same call runs the same
    episodes for every `num_envs`. With another `num_envs`, actions may differ in their last digits if the policy acts
    through a TensorFlow graph (`acts_row_by_row` is false) and either has no convolutions, or samples with gSDE.

    There are two exceptions, in which environments cannot be seeded one by one: a `VectorEnv`, and an id for which
    only the vector implementation has the policy's observations (such as Atari). Then each environment runs an equal
    share of the episodes, and the result's `seeds` are None.

    Args:
        policy: a policy of this package or of Stable-Baselines3, or a `PPO`.
        env: a Gymnasium id, a function that makes an environment, an environment, or a `VectorEnv`.
        n_eval_episodes: number of episodes.
        deterministic: take the most probable actions; otherwise sample.
        seed: determines the episodes; None draws a random seed.
        episode_seeds: run the episodes with these seeds, for example from an earlier result. `n_eval_episodes` and
            `seed` are then ignored.
        max_steps: limit of an episode's steps. None means no limit if the environment has a time limit of its own, and
            otherwise 10,000. An episode that reaches the limit ends there and counts, and a `RunWarning` says so.
        num_envs: number of environments that are stepped together. Ignored if `env` is already made.
        mask_key: the entry of a `Dict` observation that is the action mask, as for `PPO`.

    Raises:
        UserError: there is less than 1 episode, a seed is not an integer of at least 0, or the spaces of the
            environment differ from the policy's. Entries of `critic_keys` may be missing in the environment.
        EnvironmentFailure: an environment failed or, if `env` is from `make_vec` with `max_failures`, failed too often.
            Episodes in which an environment failed do not count.

    Example:

    >>> result = evaluate(policy, "CartPole-v1", 20, seed=0)
    >>> result.mean, result.mean_interval
    (500.0, Interval(low=500.0, high=500.0))
    """
    acts = policy_to_evaluate(policy)
    with evaluation_setup(acts, env, n_eval_episodes, seed, episode_seeds, num_envs, mask_key) as given:
        return gathered(run_episodes(acts, *given, deterministic, max_steps), deterministic, given.seed)


@overload
def evaluate_policy(
    policy: PredictingPolicy,
    env: Environment,
    n_eval_episodes: int = ...,
    deterministic: bool = ...,
    seed: int | None = ...,
    return_episode_rewards: Literal[False] = ...,
    max_steps: int | None = ...,
    *,
    mask_key: str | None = ...,
) -> tuple[float, float]: ...


@overload
def evaluate_policy(
    policy: PredictingPolicy,
    env: Environment,
    n_eval_episodes: int = ...,
    deterministic: bool = ...,
    seed: int | None = ...,
    *,
    return_episode_rewards: Literal[True],
    max_steps: int | None = ...,
    mask_key: str | None = ...,
) -> tuple[list[float], list[int]]: ...


def evaluate_policy(
    policy: PredictingPolicy,
    env: Environment,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    seed: int | None = None,
    return_episode_rewards: bool = False,
    max_steps: int | None = None,
    *,
    mask_key: str | None = None,
) -> Any:
    """Runs whole episodes and returns mean and standard deviation, like Stable-Baselines3's `evaluate_policy`.

    `evaluate` runs the same episodes, and also returns confidence intervals and seeds.

    Args:
        policy, env, n_eval_episodes, deterministic, seed, max_steps, mask_key: as for `evaluate`.
        return_episode_rewards: return lists instead of mean and standard deviation.

    Returns:
        Mean and standard deviation of the undiscounted returns, or lists of the return and the length in frames of each
        episode.

    Raises:
        UserError, EnvironmentFailure: as `evaluate`.
    """
    result = evaluate(policy, env, n_eval_episodes, deterministic, seed, max_steps=max_steps, mask_key=mask_key)
    return (result.returns, result.lengths) if return_episode_rewards else (result.mean, result.std)


def record_episodes(
    policy: PredictingPolicy,
    env: Environment,
    n_eval_episodes: int = 10,
    deterministic: bool = True,
    seed: int | None = None,
    *,
    episode_seeds: Sequence[int] | None = None,
    max_steps: int | None = None,
    mask_key: str | None = None,
) -> list[EpisodeArrays]:
    """Runs the same episodes as `evaluate`, and returns everything that happened in them.

    Args:
        policy, env, n_eval_episodes, deterministic, seed, episode_seeds, max_steps, mask_key: as for `evaluate`.

    Returns:
        A dict of arrays for each episode of T steps. Nested spaces have one array for each entry, with names such as
        `observations/image`.

        - `observations`, `actions` `[T, *shape]`, in the dtypes and bounds of the spaces; `rewards` `[T]`;
        - `final_observation` `[*shape]`, after the last action; `terminated` and `truncated`, bool scalars;
        - `seed`, an integer scalar, if the episode has a seed of its own;
        - `action_masks` `[T, size]` bool, if the environments have them and the policy accepts them;
        - for a policy of this package, `values` `[T]` (unless entries of `critic_keys` are missing), and the state
          before each action: `h` and `c` `[T, state_size]`, and `last_action_reward` `[T, features]` if the policy sees
          the previous action or reward.

        `policy.predict(observations, (h, c), deterministic=True)` repeats the actions if they were deterministic. Pass
        `action_masks` too, if there are any.

    Raises:
        UserError, EnvironmentFailure: as `evaluate`.

    Example:

    >>> episode = record_episodes(policy, "CartPole-v1", 1)[0]
    >>> episode["h"].shape[0] == episode["rewards"].size
    True
    """
    acts = policy_to_evaluate(policy)
    with evaluation_setup(acts, env, n_eval_episodes, seed, episode_seeds, mask_key=mask_key) as given:
        episodes = run_episodes(acts, *given, deterministic, max_steps, record=True)
        return [episode.arrays for episode in sorted(episodes, key=lambda episode: episode.number)]


def seeds_of_episodes(seed: int, n_eval_episodes: int) -> list[int]:
    """The seeds of the first `n_eval_episodes` episodes, derived from `seed`."""
    return [derived_seed(seed, "evaluation", number) for number in range(n_eval_episodes)]


def run_episodes(
    policy: Any,
    envs: VectorEnv,
    seeds: Sequence[int] | int,
    seed: int | None,
    deterministic: bool = True,
    max_steps: int | None = None,
    record: bool = False,
    video: FrameRecorder | None = None,
) -> Iterator[EvaluatedEpisode]:
    """Runs whole episodes, and yields each one when it ends. Every evaluation calls this function.

    Args:
        policy, deterministic, max_steps, record, video: as for `EpisodeRunner`.
        envs, seeds, seed: as for `plan_for`.

    Raises:
        UserError, EnvironmentFailure: as `EpisodeRunner` and `plan_for`.
    """
    plan = plan_for(envs, seeds, seed)
    yield from EpisodeRunner(policy, envs, plan, deterministic, max_steps, record, video)


def gathered(episodes: Iterable[EvaluatedEpisode], deterministic: bool, seed: int | None) -> Evaluation:
    """Collects episodes into a result, in the order of their numbers."""
    ordered = sorted(
        (episode._replace(arrays={}) for episode in episodes),  # arrays may be large
        key=lambda episode: episode.number,
    )
    return Evaluation(
        returns=[episode.episode_return for episode in ordered],
        lengths=[episode.length for episode in ordered],
        seeds=[episode.seed for episode in ordered],
        cut=[episode.cut for episode in ordered],
        deterministic=deterministic,
        seed=seed,
    )


def policy_to_evaluate(policy: Any) -> Any:
    """The best policy of a `PPO`, which `PPO.predict` asks as well; any other policy itself.

    Raises:
        UserError: it is no policy.
    """
    owned = getattr(policy, "policy", None)
    acts = getattr(policy, "best_policy", owned) if isinstance(owned, RecurrentPolicy) else policy
    if missing := [name for name in ("predict", "observation_space", "action_space") if not hasattr(acts, name)]:
        raise UserError(
            f"policy must have predict, observation_space and action_space: {acts!r:.80} has no {missing[0]}"
        )
    return acts


class EvaluationSetup(NamedTuple):
    """What an evaluation needs; the arguments of `run_episodes`."""

    envs: VectorEnv
    seeds: Sequence[int] | int
    seed: int | None


@contextlib.contextmanager
def evaluation_setup(
    policy: Any,
    env: Any,
    n_eval_episodes: int,
    seed: int | None,
    episode_seeds: Sequence[int] | None,
    num_envs: int = 1,
    mask_key: str | None = None,
) -> Iterator[EvaluationSetup]:
    """A context manager for the environments and the seeds. Closes environments that it made itself."""
    n_eval_episodes, seed = checked("n_eval_episodes", n_eval_episodes, int), checked("seed", seed, Index | None)
    num_envs = checked("num_envs", num_envs, Count)
    if episode_seeds is not None:
        given = list(episode_seeds) if isinstance(episode_seeds, Sequence | np.ndarray) else episode_seeds
        episode_seeds = checked("episode_seeds", given, tuple[Index, ...])
    count = n_eval_episodes if episode_seeds is None else len(episode_seeds)
    if count < 1:
        raise UserError(f"the number of episodes must be at least 1, got {count}")
    if isinstance(env, VectorEnv):
        if episode_seeds is not None:
            raise UserError("episode_seeds: the environments of a VectorEnv cannot be seeded one by one")
        yield EvaluationSetup(make_vec(env, mask_key=mask_key), count, seed)
        return
    if episode_seeds is not None:
        seed, seeds = None, list(episode_seeds)
    else:
        seed = random_seed() if seed is None else seed
        seeds = seeds_of_episodes(seed, count)
    borrowed = isinstance(env, gym.Env)
    if borrowed:
        envs = make_vec(
            ExistingEnv(env), vectorization="sync", autoreset_mode=AutoresetMode.DISABLED, mask_key=mask_key
        )
    else:
        trained_on = getattr(policy, "observation_space", None)
        envs = make_evaluation_envs(env, min(num_envs, count), trained_on=trained_on, mask_key=mask_key)
    try:
        yield EvaluationSetup(envs, seeds, seed)
    finally:
        if not borrowed:
            envs.close()
