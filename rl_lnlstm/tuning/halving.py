"""Ending bad trials early: asynchronous successive halving (ASHA), Li et al. (2020), in its stopping variant."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from rl_lnlstm.tuning.records import Trial

RUNGS = 1 / 4, 1 / 2  # of the frames of a trial
FEWEST = 4  # trials to compare with; the first ones would end for being worse than a single other one


class Halving:
    """Decides at each rung whether a trial goes on: only if it is at least as good as the median of the others there.

    A trial is compared with those that came before it, so no trial ever waits for another one. Ray Tune's own ASHA
    compares with a single trial, too, and forgets a trial that is interrupted.

    Args:
        total_timesteps: number of frames of a trial.
        trials: trials of which there are reports already.
    """

    def __init__(self, total_timesteps: int, trials: Iterable[Trial] = ()) -> None:
        self._rungs: dict[float, dict[int, float]] = {total_timesteps * part: {} for part in RUNGS}
        for trial in trials:
            for report in trial.scores.reports:
                self.goes_on(trial.number, report.frames, report.score)

    def goes_on(self, number: int, frames: int, score: float) -> bool:
        """Whether a trial goes on after a report.

        Args:
            number: the number of the trial.
            frames: its frames so far.
            score: its score, the higher the better.
        """
        reached = [rung for rung in self._rungs if frames >= rung]
        if not reached or number in self._rungs[max(reached)]:
            return True
        others = list(self._rungs[max(reached)].values())
        self._rungs[max(reached)][number] = score
        return len(others) < FEWEST or score >= float(np.median(others))
