"""A sweep: searches for options, then trains and evaluates the best ones again with a new seed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import RunFailure
from rl_lnlstm.evaluation.result import decimals
from rl_lnlstm.tuning.halving import Halving
from rl_lnlstm.tuning.ray_tune import run
from rl_lnlstm.tuning.records import FINALS, TRIALS, Trial, by_score, folder_of, read_trials
from rl_lnlstm.tuning.results import shortened
from rl_lnlstm.tuning.searchers import GivenTrials, SpaceSearch
from rl_lnlstm.tuning.space import Point, options_at, point_of, search_space
from rl_lnlstm.tuning.study import importances
from rl_lnlstm.tuning.trial import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep searches, and how.

    Attributes:
        folder: where it is recorded.
        base: the options at which it starts. Its seed is that of every trial, so trials differ only in their options.
        fixed: names of the options that keep their values of `base`.
        n_trials: number of trials.
        parallel: number of trials at the same time.
        n_finalists: number of trials, the best ones, to train again with the next seed.
        n_eval_episodes: number of episodes to evaluate each finalist with.
    """

    folder: Path
    base: PPOConfig
    fixed: frozenset[str]
    n_trials: int
    parallel: int
    n_finalists: int
    n_eval_episodes: int


class Outcome(NamedTuple):
    """The result of a sweep.

    Attributes:
        trials: all trials, the best first.
        finalists: the finalists in the order of their evaluations, the best first. Their numbers are those of trials.
        options: the best options, as arguments of `PPOConfig`.
        importances: parts of the search space and their importances, which sum to 1.
    """

    trials: list[Trial]
    finalists: list[Trial]
    options: dict[str, Any]
    importances: dict[str, float]


def run_sweep(sweep: Sweep, tell: Callable[[str], None]) -> Outcome:
    """Runs a sweep, or the rest of it if its folder holds trials. Ray must be connected.

    Args:
        sweep: the sweep.
        tell: prints a message.

    Raises:
        UserError: the trials fail for a reason that holds for all of them, or a record is damaged.
        RunFailure: no trial was completed.
    """
    space = search_space(sweep.base, sweep.fixed)
    trials = _search(sweep, tell)
    completed = [trial for trial in trials if trial.state == "completed"]
    if not completed:
        reasons = {trial.reason for trial in trials if trial.reason} or {"none of them ended"}
        raise RunFailure(f"no trial was completed: {'; '.join(map(shortened, sorted(reasons)))}")
    best = completed[: sweep.n_finalists]
    finalists = ranked(_finals(sweep, best, tell), trials)
    winner = finalists[0] if finalists[0].state == "completed" else completed[0]
    options = {**winner.options, "seed": sweep.base.seed, "eval_interval": _with_evaluations(sweep, winner)}
    return Outcome(trials, finalists, options, importances(trials, space))


def ranked(finalists: Sequence[Trial], trials: Sequence[Trial]) -> list[Trial]:
    """Finalists by the mean of their evaluation. Equal ones by the mean of both training scores."""
    searched = {trial.number: trial.score for trial in trials}

    def key(finalist: Trial) -> tuple[bool, float, float]:
        evaluation = finalist.scores.evaluation
        return (
            finalist.state != "completed",
            -float(np.mean(evaluation)) if evaluation else 0.0,
            -(finalist.score + searched[finalist.number]),
        )

    return sorted(finalists, key=key)


def _search(sweep: Sweep, tell: Callable[[str], None]) -> list[Trial]:
    """The trials of the search, the best first."""
    folder, space = sweep.folder / TRIALS, search_space(sweep.base, sweep.fixed)
    known = read_trials(folder)
    ended = [trial for trial in known if trial.state != "running"]
    interrupted = [trial for trial in known if trial.state == "running"]
    count = max(0, sweep.n_trials - len(ended))
    if count == 0:
        return by_score(ended)

    def task(number: int, at: Point | Trial) -> Task:
        options = at.options if isinstance(at, Trial) else options_at(at, sweep.base, sweep.fixed)
        # The score of a trial is that of training. Evaluations would only take time.
        return _task(sweep, folder, number, {**options, "eval_interval": 0}, 0)

    start = point_of(dataclasses.asdict(sweep.base), space)
    assert start is not None  # the space contains the base
    search = SpaceSearch(space, start, ended, interrupted[:count], sweep.n_trials, sweep.base.seed, task)
    best = max((trial.score for trial in ended if trial.state == "completed"), default=float("-inf"))

    def report(trial: Trial) -> None:
        nonlocal best
        is_best = trial.state == "completed" and trial.score > best
        best = trial.score if is_best else best
        suffix = ", the best so far" if is_best else ""
        tell(f"trial {trial.number} of {sweep.n_trials}: {describe_result(trial)}{suffix}")

    run(folder, search, count, sweep.parallel, report, tell, Halving(sweep.base.total_timesteps, known))
    return by_score(read_trials(folder))


def _finals(sweep: Sweep, best: Sequence[Trial], tell: Callable[[str], None]) -> list[Trial]:
    """Trains the best trials again with another seed, with the evaluations of the preset, and evaluates them."""
    folder, numbers = sweep.folder / FINALS, {trial.number for trial in best}
    # Evaluations of different lengths must not be compared. A trial that is run again goes on from its checkpoint.
    done = {
        trial.number
        for trial in read_trials(folder)
        if trial.state == "failed" or len(trial.scores.evaluation or ()) == sweep.n_eval_episodes
    }
    seed = sweep.base.seed + 1
    waiting = [trial for trial in best if trial.number not in done]

    def report(trial: Trial) -> None:
        tell(f"trial {trial.number} again with seed {seed}: {describe_result(trial)}")

    if waiting:
        which = "best trial trains" if len(best) == 1 else f"best {len(best)} trials train"
        tell(f"the {which} again with seed {seed}, and then new episodes decide")
        tasks = [
            _task(
                sweep,
                folder,
                trial.number,
                {**trial.options, "seed": seed, "eval_interval": _with_evaluations(sweep, trial)},
                sweep.n_eval_episodes,
            )
            for trial in waiting
        ]
        run(folder, GivenTrials(tasks), len(tasks), sweep.parallel, report, tell)
    return [trial for trial in read_trials(folder) if trial.number in numbers]


def _with_evaluations(sweep: Sweep, trial: Trial) -> int:
    """The evaluation interval of a preset with the options of a trial."""
    return options_at({"num_steps": trial.options["num_steps"]}, sweep.base, ())["eval_interval"]


def _task(sweep: Sweep, folder: Path, number: int, options: dict[str, Any], n_eval_episodes: int) -> Task:
    return Task(
        number=number,
        folder=str(folder_of(folder, number).absolute()),
        options=options,
        n_eval_episodes=n_eval_episodes,
        current_folder=os.getcwd(),
    )


def describe_result(trial: Trial) -> str:
    """The result of a trial, as a part of a sentence."""
    if trial.state == "failed":
        return f"failed, {shortened(trial.reason)}"
    digits = decimals([trial.score])
    if trial.state == "pruned":
        return f"pruned after {trial.frames:,} frames, return {trial.score:,.{digits}f}"
    text = f"return {trial.score:,.{digits}f} after {trial.frames:,} frames"
    if trial.scores.evaluation:
        returns = np.array(trial.scores.evaluation)
        text += f", evaluation {returns.mean():,.{digits}f} +/- {returns.std():,.{digits}f}"
    return text
