"""`memory_use`: how far back a policy looks, and how much memory its score needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.environments import MAX_ENVS
from rl_lnlstm.evaluation.episodes import EvaluatedEpisode
from rl_lnlstm.evaluation.evaluate import Environment, evaluation_setup, gathered, policy_to_evaluate, run_episodes
from rl_lnlstm.evaluation.result import Evaluation, decimals
from rl_lnlstm.evaluation.statistics import Interval, bootstrap_interval, difference_interval, mean
from rl_lnlstm.option_types import Count, Index, checked
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.reports.cut_memory import CutMemory
from rl_lnlstm.reports.gradients import gradient_norms
from rl_lnlstm.seeding import random_seed

MAX_LENGTH_FOR_ALL_CUTS = 16  # of the longest episode; if it is longer, only powers of two are tried as cuts
MAX_LAG = 100


@dataclasses.dataclass(frozen=True)
class MemoryUse:
    """What a policy remembers; the result of `memory_use`.

    Attributes:
        gradient_norms: `[episodes, lags]`: for each episode, the norm of the gradient of an action's log-probability
            with respect to the observation k = 0, 1, ... steps before, averaged over actions. In nats per unit of the
            encoder's input, in which observations are normalised and categories are one-hot. NaN where the episode has
            no such step.
        score: the evaluation with the whole memory.
        cut_scores: for each k, the evaluation with the memory cut every k steps. The actions then depend on at most
            the last k observations.
    """

    gradient_norms: np.ndarray
    score: Evaluation
    cut_scores: dict[int, Evaluation]

    @property
    def gradient(self) -> np.ndarray:
        """The mean of `gradient_norms` over the episodes that have such a step, `[lags]`."""
        return np.nanmean(self.gradient_norms, 0)

    @property
    def gradient_intervals(self) -> list[Interval]:
        """For each lag, the 95% confidence interval of `gradient`: the percentile bootstrap over episodes."""
        return [bootstrap_interval(column[np.isfinite(column)], mean) for column in self.gradient_norms.T]

    @property
    def harmless_cut(self) -> int | None:
        """The smallest k such that no cut every k steps, or less often, lowers the mean return; None if all lower it.

        A cut lowers it if the 95% confidence interval of the difference of the means is below 0. 1 means that the
        policy needs no memory.
        """
        returns, harmless = np.array(self.score.returns), None
        for every, cut in sorted(self.cut_scores.items(), reverse=True):
            if difference_interval(np.array(cut.returns), returns).high < 0:
                break
            harmless = every
        return harmless

    def __str__(self) -> str:
        digits = decimals([value for cut in self.cut_scores.values() for value in (cut.mean, *cut.mean_interval)])
        lines = [_line("whole memory", self.score, digits)]
        lines += [_line(f"memory cut {cut_name(every)}", cut, digits) for every, cut in self.cut_scores.items()]
        return "\n".join(lines)


def cut_name(every: int) -> str:
    """How often the memory is cut, in words."""
    return "in each step" if every == 1 else f"every {every} steps"


def _line(name: str, score: Evaluation, digits: int) -> str:
    low, high = score.mean_interval
    return f"{name}: mean {score.mean:,.{digits}f}, 95% confidence {low:,.{digits}f} to {high:,.{digits}f}"


def memory_use(
    policy: Any,
    env: Environment,
    n_eval_episodes: int = 20,
    deterministic: bool = True,
    seed: int | None = None,
    *,
    cuts: Sequence[int] | None = None,
    max_lag: int = MAX_LAG,
    max_steps: int | None = None,
    num_envs: int = MAX_ENVS,
    mask_key: str | None = None,
) -> MemoryUse:
    """Measures how far back a policy looks, and how much memory its score needs.

    - The gradient of an action's log-probability with respect to earlier observations tells how far back the policy
      looks: a saliency map (Simonyan et al., 2014, "Deep inside convolutional networks") over time.
    - The score with the memory cut every k steps tells how much memory the task needs and the policy uses. The state
      is reset in the steps 0, k, 2k, ... of each episode (the masks are 0 there), while the environment continues.

    All evaluations run the same episodes, as `evaluate` does.

    Args:
        policy: a policy of this package, or a `PPO`.
        env: as for `evaluate`.
        n_eval_episodes: number of episodes of each evaluation.
        deterministic: take the most probable actions; otherwise sample.
        seed: determines the episodes; None draws a random seed.
        cuts: the numbers of steps k. None: all from 1 up to the length of the longest episode, if that is at most 16;
            otherwise the powers of two up to it.
        max_lag: the largest number of steps between an observation and an action.
        max_steps, num_envs, mask_key: as for `evaluate`.

    Raises:
        UserError: the policy is not of this package, a number is out of range, or the spaces of the environment differ
            from the policy's.
        EnvironmentFailure: as `evaluate`.

    Example:

    >>> memory = memory_use(policy, "CartPole-v1", 20, seed=0)
    >>> memory.harmless_cut, memory.cut_scores[1].mean
    (1, 500.0)
    """
    acts = policy_to_evaluate(policy)
    if not isinstance(acts, RecurrentPolicy):
        raise UserError(f"policy must be a RecurrentPolicy or a PPO, got {type(policy).__name__}")
    checked("seed", seed, Index | None)
    base = random_seed() if seed is None else seed

    def run(policy: Any, record: bool = False) -> Iterator[EvaluatedEpisode]:
        with evaluation_setup(acts, env, n_eval_episodes, base, None, num_envs, mask_key) as given:
            yield from run_episodes(policy, *given, deterministic, max_steps, record)

    return measure_memory_use(acts, run(acts, record=True), run, deterministic, base, cuts, max_lag)


def measure_memory_use(
    policy: RecurrentPolicy,
    recorded: Iterable[EvaluatedEpisode],
    run: Callable[[Any], Iterable[EvaluatedEpisode]],
    deterministic: bool,
    seed: int,
    cuts: Sequence[int] | None = None,
    max_lag: int = MAX_LAG,
    progress: Callable[[str], None] = lambda _: None,
) -> MemoryUse:
    """The body of `memory_use`, for episodes from anywhere.

    Args:
        policy: the policy.
        recorded: the episodes with the whole memory, recorded.
        run: runs the same episodes with another policy.
        deterministic: whether the episodes have the most probable actions.
        seed: seed of the episodes.
        cuts, max_lag: as for `memory_use`.
        progress: called with a line of text after each evaluation.
    """
    checked("cuts", cuts, tuple[Count, ...] | None)
    checked("max_lag", max_lag, Index)
    if cuts is not None and not cuts:
        raise UserError("cuts must have at least one number of steps, got none")
    norms: list[tuple[int, np.ndarray]] = []

    def differentiated() -> Iterator[EvaluatedEpisode]:
        for episode in recorded:
            rng = np.random.default_rng([seed, episode.number])
            norms.append((episode.number, gradient_norms(policy, episode.arrays, max_lag, rng)))
            yield episode

    score = gathered(differentiated(), deterministic, seed)
    digits = decimals(score.returns)
    progress(_line("whole memory", score, digits))
    longest = max(score.lengths)
    cut_scores = {}
    for every in sorted(set(default_cuts(longest) if cuts is None else cuts)):
        cut_scores[every] = gathered(run(CutMemory(policy, every)), deterministic, seed)
        progress(_line(f"memory cut {cut_name(every)}", cut_scores[every], digits))
    found = np.stack([own for _, own in sorted(norms, key=lambda pair: pair[0])])
    return MemoryUse(found[:, : min(longest, max_lag + 1)], score, cut_scores)


def default_cuts(longest: int) -> list[int]:
    """The cuts that are tried for episodes of at most `longest` steps."""
    if longest <= MAX_LENGTH_FOR_ALL_CUTS:
        return list(range(1, longest + 1))
    return [2**power for power in range(longest.bit_length())]
