"""The files of a run: options, metrics, learning curve and policies in one folder."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.files import replacing_file
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.policies.saving import check_can_be_saved
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
from rl_lnlstm.runs.loggers import CSVLogger, TensorBoardLogger, try_to_write
from rl_lnlstm.runs.metrics_file import RETURN


class RunRecord:
    """Writes the files of a run. Call it with the metrics of each iteration, and `finish` at the end.

    If the disk is full or read-only, the run continues. What could not be written is kept and written later.

    Args:
        path: the folder.
        config: the options, for `config.json`.
        policy: the policy to save: to `checkpoints/best/` whenever the mean return is the best so far, and to `policy/`
            at the end; when training goes on, that one is removed.
        iteration: the iteration after which the run is continued. Later records are removed. None for a new run.
        frames: the number of frames at that iteration.
        first: the iteration after which the record began.

    Raises:
        UserError: the folder or the policy cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        policy: RecurrentPolicy,
        iteration: int | None = None,
        frames: int = 0,
        first: int = 0,
    ) -> None:
        check_can_be_saved(policy)
        self.path, self._policy = path, policy
        self._title = f"{config.get('env_id')}, seed {config.get('seed')}"
        self._goes_on = iteration is not None
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
        if iteration is not None and len(rows) != (count := iteration - first):
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
        if mean > self._best and try_to_write(self.path, lambda: self._policy.save(self.path / BEST_POLICY)):
            self._best = mean

    def _withdraw_end(self) -> None:
        """Removes results and final policy of an earlier call. If there is no best policy, the final one becomes it."""
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
        writes = (lambda: self._policy.save(self.path / POLICY), self.flush, self._draw)
        taken = [try_to_write(self.path, write) for write in writes]
        self._metrics.close()
        self._events.close()
        return all(taken)

    def _draw(self) -> None:
        try:
            # Import here, because the first update should not wait for matplotlib.
            from rl_lnlstm.runs.learning_curve import learning_curve
        except Exception as error:  # not only ImportError: matplotlib may refuse its settings
            raise OSError(f"matplotlib, which draws the learning curve, cannot be imported: {error}") from error
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
