"""Running trials with Ray Tune, and recording what becomes of them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rl_lnlstm.errors import RunFailure, UserError
from rl_lnlstm.tuning.halving import Halving
from rl_lnlstm.tuning.records import CHECKPOINT, Trial, folder_of, read_scores, write_trial
from rl_lnlstm.tuning.trial import run_trial

DEATHS = 3  # times that the process of a trial may die before the trial counts as failed
PATIENCE = 60.0  # seconds without a trial, after which a message is due
RAY = ".ray"  # files of Ray Tune, which are removed


class _Halving(FIFOScheduler):
    """`Halving` as a scheduler of Ray Tune."""

    def __init__(self, halving: Halving) -> None:
        super().__init__()
        self._halving = halving

    def on_trial_result(self, controller: Any, trial: Any, result: dict) -> str:
        """Whether a trial goes on."""
        goes_on = self._halving.goes_on(trial.config["number"], result["frames"], result["score"])
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


def run(
    folder: Path,
    search: Searcher,
    count: int,
    parallel: int,
    ended: Callable[[Trial], None],
    tell: Callable[[str], None],
    halving: Halving | None = None,
) -> None:
    """Runs trials until `count` of them have ended.

    Args:
        folder: the folder for the trials' folders.
        search: gives the trials.
        count: number of trials.
        parallel: number of trials at the same time.
        ended: called with each trial that has ended, after it was recorded.
        tell: prints a message.
        halving: ends trials early; None lets each one train to its end.

    Raises:
        UserError: a trial failed for a reason that holds for all trials.
        RunFailure: a record cannot be written, or Ray failed.
    """
    watcher = _Watcher(folder, ended, tell)
    shutil.rmtree(folder / RAY, ignore_errors=True)
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=search,
            scheduler=FIFOScheduler() if halving is None else _Halving(halving),
            num_samples=count,
            max_concurrent_trials=parallel,
            reuse_actors=True,  # TensorFlow is imported once
        ),
        run_config=tune.RunConfig(
            name=RAY,
            storage_path=str(folder.absolute()),
            failure_config=tune.FailureConfig(max_failures=DEATHS),
            callbacks=[watcher],
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except OSError as error:
        raise RunFailure(f"the records in {folder} cannot be written, {error}: the sweep can be resumed") from error
    except (tune.TuneError, RayError) as error:
        raise RunFailure(f"Ray failed, {str(error).strip().splitlines()[0]}: the sweep can be resumed") from error
    finally:
        shutil.rmtree(folder / RAY, ignore_errors=True)


class _Watcher(tune.Callback):
    """Records trials when they begin and end."""

    def __init__(self, folder: Path, ended: Callable[[Trial], None], tell: Callable[[str], None]) -> None:
        self._folder, self._ended, self._tell = folder, ended, tell
        self._began, self._waiting = time.monotonic(), True
        self._failures: dict[int, str] = {}
        self._user_error: str | None = None

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Records that a trial is running."""
        self._waiting = False
        write_trial(self._folder, Trial(trial.config["number"], trial.config["options"]))

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        """Notes the reason of a failure."""
        self._user_error = result.get("user_error", self._user_error)
        if "failure" in result:
            self._failures[trial.config["number"]] = result["failure"]

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Ends the sweep if no other trial can succeed, and says so if none can start."""
        if self._waiting and time.monotonic() - self._began > PATIENCE:
            self._waiting = False
            self._tell(f"no trial could start for {PATIENCE:.0f} s: waiting for a free CPU in the Ray cluster")
        if self._user_error is not None:
            raise UserError(self._user_error)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Records how a trial ended."""
        number, last = trial.config["number"], trial.last_result or {}
        if self._user_error is not None:
            return
        if number in self._failures:
            self._record(trial, "failed", self._failures[number])
        else:
            self._record(trial, "completed" if last.get("finished") else "pruned")

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Says that a trial goes on in another process."""
        self._tell(
            f"the process of trial {trial.config['number']} ended: it continues from its last report in a new one"
        )

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Records that the process of a trial died too often."""
        self._record(trial, "failed", f"its process ended {DEATHS + 1} times")

    def _record(self, trial: Any, state: Any, reason: str = "") -> None:
        number = trial.config["number"]
        scores = read_scores(folder_of(self._folder, number))
        record = Trial(number, trial.config["options"], state, reason, scores)
        write_trial(self._folder, record)
        shutil.rmtree(folder_of(self._folder, number) / CHECKPOINT, ignore_errors=True)
        self._ended(record)
