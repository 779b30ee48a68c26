"""`RunDirectory`: records calls of `PPO.learn` as `train.py` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rl_lnlstm.files import check_is_free
from rl_lnlstm.ppo.callbacks import Callback, Metrics, Training
from rl_lnlstm.runs.run_record import RunRecord


class RunDirectory(Callback):
    """Records a run in a folder; a callback of `PPO.learn`. Another call of `learn` continues the record.

    If the disk is full or read-only, the run continues. What could not be written is kept and written later.

    Args:
        path: the folder. It must be new or empty.
        config: the options to write to `config.json`; None for the trainer's.

    Raises:
        UserError: when training starts: the folder cannot be written, or holds other files, also those of an earlier
            trainer; or the policy cannot be saved.

    Example:

    >>> ppo.learn(100_000, callback=RunDirectory("runs/mine"))
    """

    def __init__(self, path: str | os.PathLike, config: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path).absolute()  # an environment may change the current folder
        self._config = config
        self._ppo: Any = None  # the trainer of the first call of `learn`
        self._first = 0  # its iteration before that call

    def on_training_start(self, ppo: Training) -> None:
        """Opens the files."""
        config = ppo.config.to_json() if self._config is None else self._config
        if ppo is self._ppo:
            self._record = RunRecord(self.path, config, ppo.policy, ppo.iteration, ppo.num_timesteps, self._first)
        else:
            check_is_free(self.path, "run directory", "RunDirectory(path)")
            self._record = RunRecord(self.path, config, ppo.policy)
            self._ppo, self._first = ppo, ppo.iteration

    def __call__(self, metrics: Metrics) -> None:
        """Writes the metrics, and saves the policy if its mean return is the best so far."""
        self._record(metrics)

    def on_training_end(self) -> None:
        """Saves the policy, and closes the files."""
        with self._ppo.best_weights():
            self._record.finish()
