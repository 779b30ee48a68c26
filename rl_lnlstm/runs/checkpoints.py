"""The checkpoints of a run: writing them during training, and reading the newest one to resume."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.option_types import Count, NonNegative, checked
from rl_lnlstm.ppo.callbacks import Callback, Metrics
from rl_lnlstm.ppo.checkpoint_files import TrainingState, read
from rl_lnlstm.ppo.train import PPO

DAMAGED = "damaged-"
SHARE_OF_TIME = 0.01


def read_newest(folder: Path) -> TrainingState:
    """Reads the newest undamaged checkpoint in `folder`.

    If newer ones are damaged, a warning names them, and they are renamed so that they are not read again.

    Raises:
        UserError: there is no undamaged checkpoint.
    """
    problems = []
    for path in reversed(_numbered(folder)):
        try:
            state = read(path)
        except UserError as error:
            problems.append((path, str(error)))
            continue
        for damaged, problem in problems:
            aside = damaged.with_name(DAMAGED + damaged.name)
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # the folder cannot be written; the next resume skips it again
                damaged.rename(aside)
            warn(f"{problem}; it was renamed to {aside.name}, and the checkpoint before it is used")
        return state
    if problems:
        raise UserError(f"all checkpoints in {folder} are damaged: {'; '.join(problem for _, problem in problems)}")
    raise UserError(f"there is no checkpoint in {folder} to resume from")


class Checkpoints:
    """Writes checkpoints of a trainer and keeps the newest; a callback of `PPO.learn`.

    There is always a checkpoint of the last iteration, also if training is stopped early.

    Args:
        folder: the folder for checkpoints. Each one is a folder named by its iteration.
        ppo: the trainer.
        flush: called before each checkpoint, to write all records to the disk.
        interval: iterations between checkpoints. None chooses it so that checkpoints take less than 1% of the time.
        minutes: minutes between checkpoints, if that is sooner.
        keep: number of checkpoints to keep.
        env_snapshot: whether to include snapshots of the environments.
        stopping: a function that returns whether training should stop.
    """

    def __init__(
        self,
        folder: Path,
        ppo: PPO,
        flush: Callable[[], None],
        interval: int | None = None,
        minutes: float | None = None,
        keep: int = 3,
        env_snapshot: bool = True,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.ppo, self.flush, self.stopping = folder, ppo, flush, stopping
        self.interval, self.minutes, self.keep, self.env_snapshot = interval, minutes, keep, env_snapshot
        self._tried = ppo.iteration
        self._written = ppo.iteration if (folder / _name(ppo.iteration)).is_dir() else None
        self._ended, self._cost = time.monotonic(), 0.0

    def __call__(self, metrics: dict[str, float]) -> bool:
        """Writes a checkpoint if one is due. Returns False if training should stop."""
        stop = self.stopping()
        if stop or self.ppo.finished or self._is_due():
            self.save()
        return not stop

    def save(self) -> None:
        """Writes a checkpoint, unless there is one of this iteration. If the disk fails, warns and continues."""
        if self._written == self.ppo.iteration:
            return
        began = time.monotonic()
        self._tried = self.ppo.iteration
        try:
            self.flush()
            self.ppo.save_checkpoint(self.folder / _name(self.ppo.iteration), self.env_snapshot)
            for path in _numbered(self.folder)[: -self.keep]:
                shutil.rmtree(path)
            self._written = self.ppo.iteration
        except OSError as error:
            warn(
                f"no checkpoint could be written in {self.folder}, {error}: the run continues and will try again; "
                "until then, the checkpoint before is kept",
            )
        self._ended = time.monotonic()
        self._cost = self._ended - began

    def _is_due(self) -> bool:
        since = time.monotonic() - self._ended
        if self.minutes is not None and since >= 60 * self.minutes:
            return True
        if self.interval is not None:
            return self.ppo.iteration - self._tried >= self.interval
        return self._cost <= SHARE_OF_TIME * since


class CheckpointCallback(Callback):
    """Writes checkpoints while `PPO.learn` trains, for `PPO.load_checkpoint`, and keeps the newest ones.

    Args:
        folder: the folder for checkpoints. Each one is a folder named by its iteration.
        interval: iterations between checkpoints. None chooses it so that checkpoints take less than 1% of the time.
        minutes: minutes between checkpoints, if that is sooner.
        keep: number of checkpoints to keep.
        env_snapshot: whether to include the environments, pickled.

    Raises:
        UserError: in `learn`, if the folder holds checkpoints of later iterations, so of another run.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        interval: int | None = None,
        minutes: float | None = None,
        keep: int = 3,
        env_snapshot: bool = True,
    ) -> None:
        self.folder = Path(folder).absolute()  # an environment may change the current folder
        checked("keep", keep, Count)
        checked("interval", interval, Count | None)
        checked("minutes", minutes, NonNegative | None)
        self._options = interval, minutes, keep, env_snapshot
        self._checkpoints: Checkpoints | None = None

    def on_training_start(self, ppo: Any) -> None:
        """Remembers the trainer."""
        numbered = _numbered(self.folder)
        if numbered and int(numbered[-1].name) > ppo.iteration:
            raise UserError(
                f"{self.folder} holds checkpoints up to iteration {int(numbered[-1].name)}, but this trainer is at "
                f"{ppo.iteration}: choose another folder, or load the newest checkpoint first"
            )
        self._checkpoints = Checkpoints(self.folder, ppo, lambda: None, *self._options)

    def __call__(self, metrics: Metrics) -> bool:
        """Writes a checkpoint if one is due."""
        return self._checkpoints is None or self._checkpoints(metrics)

    def on_training_end(self) -> None:
        """Writes a checkpoint of the last iteration, even if another callback ended the training."""
        if self._checkpoints is not None and self._checkpoints.ppo.between_iterations:
            self._checkpoints.save()


def _name(iteration: int) -> str:
    return f"{iteration:08d}"


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
