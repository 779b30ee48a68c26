"""What Ray Tune asks for trials: points that Optuna chooses, or a list of given trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from rl_lnlstm.tuning.records import Trial
from rl_lnlstm.tuning.space import Point, Space, decoded, point_of
from rl_lnlstm.tuning.study import as_optuna, distributions, encoded_point
from rl_lnlstm.tuning.trial import Task

METRIC, MODE = "score", "max"
MAX_RANDOM_TRIALS = 10  # as in Optuna


class SpaceSearch(OptunaSearch):
    """Trials at points that Optuna's TPE chooses, after those that were interrupted.

    Args:
        space: the search space.
        start: the point of the first trial of the sweep.
        ended: trials that have ended.
        interrupted: trials to continue.
        n_trials: number of trials of the whole sweep.
        seed: seed of the sampler.
        make_task: a function of a trial's number and point or, for a trial to continue, the trial.
    """

    def __init__(
        self,
        space: Space,
        start: Point,
        ended: Sequence[Trial],
        interrupted: Sequence[Trial],
        n_trials: int,
        seed: int,
        make_task: Callable[[int, Point | Trial], Task],
    ) -> None:
        known = len(ended) + len(interrupted)
        # With the same seed, a resumed sampler would choose the first points again.
        (sampling,) = np.random.SeedSequence([seed, known]).generate_state(1)
        random_trials = min(MAX_RANDOM_TRIALS, max(4, n_trials // 3))
        sampler = optuna.samplers.TPESampler(seed=int(sampling), n_startup_trials=random_trials)
        points = [point for trial in interrupted if (point := point_of(trial.options, space)) is not None]
        self._make_task = make_task
        self._interrupted = list(interrupted)
        used = {trial.number for trial in (*ended, *interrupted)}
        self._numbers = [number for number in range(1, n_trials + known + 1) if number not in used]
        self._values = space
        super().__init__(
            distributions(space),
            metric=METRIC,
            mode=MODE,
            points_to_evaluate=[encoded_point(point, space) for point in ([start] if not known else points)],
            sampler=sampler,
        )
        for trial in ended:
            if (found := as_optuna(trial, space)) is not None:
                self._ot_study.add_trial(found)

    def suggest(self, trial_id: str) -> Any:
        """The `Task` of the next trial."""
        numbers = super().suggest(trial_id)
        if self._interrupted:
            trial = self._interrupted.pop(0)
            return self._make_task(trial.number, trial)
        point = {name: decoded(name, number, self._values) for name, number in (numbers or {}).items()}
        return self._make_task(self._numbers.pop(0), point)

    def on_trial_result(self, trial_id: str, result: dict) -> None:
        """Does nothing: Optuna sees only the last score of a trial."""

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Tells Optuna the last score."""
        scored = result is not None and not math.isnan(result.get(METRIC, math.nan))
        super().on_trial_complete(trial_id, result if scored else None, error=False)

    def save(self, checkpoint_path: str) -> None:
        """Writes an empty file, because the sweep keeps records of its own."""
        Path(checkpoint_path).touch()


class GivenTrials(Searcher):
    """The given trials, one after the other."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self._tasks = list(tasks)

    def suggest(self, trial_id: str) -> Any:
        """The `Task` of the next trial."""
        return self._tasks.pop(0) if self._tasks else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Does nothing."""

    def save(self, checkpoint_path: str) -> None:
        """Writes an empty file, because the sweep keeps records of its own."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing."""
