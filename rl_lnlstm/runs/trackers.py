"""Callbacks of `PPO.learn` that also send the metrics to an experiment tracker: wandb, trackio or mlflow.

The package of the tracker must be installed, and is imported only when it is used. Where a tracker stores what it is
sent is up to its own settings, such as `WANDB_MODE=offline` or `MLFLOW_TRACKING_URI`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_lnlstm.errors import UserError, missing_package, printable, warn
from rl_lnlstm.files import read_json, replacing_file
from rl_lnlstm.ppo.callbacks import Callback, Metrics, Training
from rl_lnlstm.runs.metrics_file import FRAMES

PROJECT = "rl-lnlstm"
RUN_ID = "tracking.json"
MLFLOW_LONGEST = 500  # characters of a parameter's value


class Tracker(Callback):
    """Base class of the trackers. A subclass has `package`, `start`, `log` and `end`.

    If the tracker fails while training runs, a `RunWarning` says so, and training continues without it.

    Args:
        name: the name of the run.
        folder: the run's folder. The tracker's id of the run is kept there, so that a resumed run continues the same
            one. None: each call of `learn` is a new run.
        project: the project, or experiment, that the run belongs to; None: what an environment variable of the tracker
            says, or rl-lnlstm.

    Raises:
        UserError: the package is not installed.
    """

    package: str
    project_variable: str

    def __init__(self, name: str, folder: str | os.PathLike | None = None, project: str | None = None) -> None:
        try:
            self.module: Any = importlib.import_module(self.package)
        except ImportError as error:
            raise missing_package("tracking", error, self.package) from error
        self.name = name
        self.folder = None if folder is None else Path(folder).absolute()
        self.project = project or os.environ.get(self.project_variable) or PROJECT
        self._working = False
        self._handled: BaseException | None = None  # what the caller of `learn` was already handling

    def start(self, config: Mapping[str, Any], run_id: str | None) -> str | None:
        """Starts a run, or continues the run `run_id`. Returns the run's id, None if its name suffices."""
        raise NotImplementedError

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Sends the metrics after `step` frames."""
        raise NotImplementedError

    def end(self, failed: bool) -> None:
        """Ends the run."""
        raise NotImplementedError

    def on_training_start(self, ppo: Training) -> None:
        """Starts the tracker's run, or continues it.

        Raises:
            UserError: the tracker cannot be reached, or refuses.
        """
        config = ppo.config.to_json()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
                self._keep_id(self.start(config, self._kept_id()))
        except Exception as error:
            raise UserError(
                f"{self.package} cannot track the run, {type(error).__name__}: {printable(error)}"
            ) from error
        self._working, self._handled = True, sys.exc_info()[1]

    def __call__(self, metrics: Metrics) -> None:
        """Sends the metrics of an iteration that are finite."""
        if not self._working:
            return
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        try:
            self.log(finite, int(metrics[FRAMES]))
        except Exception as error:
            self._working = False
            warn(f"{self.package} fails, {type(error).__name__}: {printable(error)}: training continues without it")

    def on_training_end(self) -> None:
        """Ends the tracker's run, as failed if training ended with an exception."""
        self._working = False
        try:
            with contextlib.redirect_stdout(sys.stderr):
                self.end(failed=sys.exc_info()[1] is not self._handled)
        except Exception as error:
            warn(f"{self.package} cannot end the run, {type(error).__name__}: {printable(error)}")

    def _kept_id(self) -> str | None:
        kept = self._kept_ids().get(self.package)
        return kept if isinstance(kept, str) else None

    def _kept_ids(self) -> dict[str, Any]:
        """The ids of the run in each tracker."""
        try:
            kept = {} if self.folder is None else read_json(self.folder / RUN_ID)
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def _keep_id(self, run_id: str | None) -> None:
        if self.folder is not None and run_id is not None:
            with replacing_file(self.folder / RUN_ID) as path:
                path.write_text(json.dumps({**self._kept_ids(), self.package: run_id}) + "\n")


class WandbLogger(Tracker):
    """Sends the metrics to Weights & Biases; see `Tracker` for the arguments."""

    package, project_variable = "wandb", "WANDB_PROJECT"

    def start(self, config: Mapping[str, Any], run_id: str | None) -> str | None:
        """See `Tracker`."""
        self._run = self.module.init(
            project=self.project, name=self.name, config=dict(config), dir=self.folder, id=run_id, resume="allow"
        )
        return self._run.id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log(dict(metrics), step=step)

    def end(self, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))


class TrackioLogger(Tracker):
    """Sends the metrics to trackio, which keeps them on this machine; see `Tracker` for the arguments."""

    package, project_variable = "trackio", "TRACKIO_PROJECT"

    def start(self, config: Mapping[str, Any], run_id: str | None) -> str | None:
        """See `Tracker`."""
        self._run = self.module.init(
            project=self.project,
            name=run_id or self.name,
            config=dict(config),
            resume="never" if run_id is None else "allow",
            embed=False,
        )
        return self._run.name

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log(dict(metrics), step=step)

    def end(self, failed: bool) -> None:
        """See `Tracker`."""
        self.module.finish()  # also of the module, which would end it again when Python exits


class MlflowLogger(Tracker):
    """Sends the metrics to MLflow; see `Tracker` for the arguments."""

    package, project_variable = "mlflow", "MLFLOW_EXPERIMENT_NAME"

    def start(self, config: Mapping[str, Any], run_id: str | None) -> str | None:
        """See `Tracker`."""
        self._client = self.module.MlflowClient()
        if run_id is None:
            experiment = self._client.get_experiment_by_name(self.project)
            number = self._client.create_experiment(self.project) if experiment is None else experiment.experiment_id
            self._id = self._client.create_run(number, run_name=self.name).info.run_id
            parameters = [
                self.module.entities.Param(name, str(value)[:MLFLOW_LONGEST]) for name, value in config.items()
            ]
            self._client.log_batch(self._id, params=parameters)
        else:
            self._id = run_id
            self._client.update_run(run_id, status="RUNNING")
        return self._id

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)  # milliseconds
        self._client.log_batch(
            self._id, metrics=[self.module.entities.Metric(name, value, now, step) for name, value in metrics.items()]
        )

    def end(self, failed: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


TRACKERS: dict[str, type[Tracker]] = {
    tracker.package: tracker for tracker in (WandbLogger, TrackioLogger, MlflowLogger)
}
