"""The run directory, in which a training run is recorded."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.files import check_is_free, replacing_file
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.policies.saving import check_can_be_saved
from rl_lnlstm.ppo.callbacks import Callback, Training
from rl_lnlstm.runs.layout import (
    BEST_POLICY,
    CHECKPOINTS,
    CONFIG,
    LEARNING_CURVE,
    METRICS,
    POLICY,
    RESULTS,
    TENSORBOARD,
)
from rl_lnlstm.runs.learning_curve import learning_curve
from rl_lnlstm.runs.loggers import CSVLogger, TensorBoardLogger, try_to_write
from rl_lnlstm.runs.metrics_file import RETURN


class RunDirectory(Callback):
    """Records a run in a folder; a callback of `PPO.learn`.

    If the disk is full or read-only, the run continues. What could not be written is kept and written later.

    Args:
        path: the folder. It must be new or empty, or the folder of the run to resume.
        config: the options to write to `config.json`; None for the trainer's.
        policy: the policy to save: to `checkpoints/best/` whenever the mean return is the best so far, and to `policy/`
            at the end; when training goes on, that one is removed. None for the trainer's; files are then opened when
            training starts and closed when it ends.
        iteration: the iteration after which the run is resumed; None for a new run.
        frames: the number of frames at that iteration. Later records are removed.

    Raises:
        UserError: the folder cannot be written, or holds other files.

    Example:

    >>> ppo.learn(100_000, callback=RunDirectory("runs/mine"))
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: Mapping[str, Any] | None = None,
        policy: RecurrentPolicy | None = None,
        iteration: int | None = None,
        frames: int = 0,
    ) -> None:
        self.path = Path(path).absolute()  # an environment may change the current folder
        self._config = config
        self._of_trainer = policy is None
        self._ppo: Any = None  # the trainer that it was used with
        self._began = 0  # that trainer's iteration at that time
        if policy is not None:
            self._open(policy, config or {}, iteration, frames)

    def on_training_start(self, ppo: Training) -> None:
        """Opens the folder, unless it is open."""
        if not self._of_trainer:
            return
        config = ppo.config.to_json() if self._config is None else self._config
        if ppo is self._ppo:  # `learn` is called again
            self._open(ppo.policy, config, ppo.iteration, ppo.num_timesteps)
        else:
            check_is_free(self.path, "run directory", "RunDirectory(path)")
            self._open(ppo.policy, config)
            self._ppo, self._began = ppo, ppo.iteration

    def on_training_end(self) -> None:
        """Finishes the files that `on_training_start` opened."""
        if self._of_trainer:
            with self._ppo.best_weights():
                self.finish()

    def _open(
        self, policy: RecurrentPolicy, config: Mapping[str, Any], iteration: int | None = None, frames: int = 0
    ) -> None:
        check_can_be_saved(policy)
        path, self.policy = self.path, policy
        self._goes_on = iteration is not None
        self._title = f"{config.get('env_id')}, seed {config.get('seed')}"
        try:
            (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            with replacing_file(path / CONFIG) as temporary:
                temporary.write_text(json.dumps(config, indent=2) + "\n")
            if iteration is not None:
                _remove_leftovers(path)
            self._metrics = CSVLogger(path / METRICS, iteration)
            self._events = TensorBoardLogger(path / TENSORBOARD, None if iteration is None else frames)
        except OSError as error:
            raise UserError(f"run directory {path} cannot be written: {error}") from error
        rows = self._metrics.rows
        if iteration is not None and len(rows) != (count := iteration - self._began):
            warn(f"{path / METRICS} holds only {len(rows)} rows of the {count} iterations")
        # If the best policy is missing, the next policy replaces it.
        known = [row[RETURN] for row in rows] if (path / BEST_POLICY).is_dir() else []
        self._best = max((mean for mean in known if not math.isnan(mean)), default=-math.inf)

    def __call__(self, metrics: dict[str, float]) -> None:
        """Writes the metrics, and saves the policy if its mean return is the best so far."""
        if self._goes_on:
            self._goes_on = not try_to_write(self.path, self._withdraw_end)
        self._metrics(metrics)
        self._events(metrics)
        mean = metrics[RETURN]
        if mean > self._best and try_to_write(self.path, lambda: self.policy.save(self.path / BEST_POLICY)):
            self._best = mean

    def _withdraw_end(self) -> None:
        """Removes policy and results of an earlier end of training. If the best policy is missing, it becomes that."""
        (self.path / RESULTS).unlink(missing_ok=True)
        if not (self.path / POLICY).is_dir():
            return
        if not (self.path / BEST_POLICY).is_dir():
            (self.path / POLICY).rename(self.path / BEST_POLICY)
            return
        with tempfile.TemporaryDirectory(prefix=f".{POLICY}.", dir=self.path) as unused:  # gone at once for readers
            (self.path / POLICY).rename(Path(unused) / POLICY)

    def flush(self) -> None:
        """Writes all records to the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self._metrics.flush()
        self._events.flush()

    def finish(self) -> bool:
        """Saves the policy, draws the learning curve and closes the files. Returns whether everything was written."""
        writes = (lambda: self.policy.save(self.path / POLICY), self.flush, self._draw)
        taken = [try_to_write(self.path, write) for write in writes]
        self._metrics.close()
        self._events.close()
        return all(taken)

    def _draw(self) -> None:
        with replacing_file(self.path / LEARNING_CURVE) as path:
            learning_curve(self._metrics.rows, self._title).savefig(path, dpi=120)


def _remove_leftovers(path: Path) -> None:
    """Removes temporary files that a killed process left."""
    names = (CONFIG, METRICS, LEARNING_CURVE, POLICY)
    for entry in (*path.iterdir(), *(path / CHECKPOINTS).glob(".*")):
        if entry.parent != path or any(entry.name.startswith(f".{name}.") for name in names):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
