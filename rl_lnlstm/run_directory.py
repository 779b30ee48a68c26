"""What a training run leaves: its configuration, metrics, learning curve and policies, in one folder."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from rl_lnlstm.errors import UserError
from rl_lnlstm.files import replacing_file
from rl_lnlstm.policies import RecurrentPolicy

CONFIG = "config.json"
METRICS = "metrics.csv"
LEARNING_CURVE = "learning_curve.png"
POLICY = "policy"
BEST_POLICY = "checkpoints/best"


def check_is_free(path: Path) -> None:
    """Raises `UserError` if `path` holds anything that a run would mix with."""
    if path.is_file():
        raise UserError(f"run directory {path} is a file: name a new directory with --run-dir")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"run directory {path} already holds a run or other files: name a new one with --run-dir")


class RunDirectory:
    """Records a run; called with the metrics of each iteration, it is a callback of `PPO.learn`.

    Args:
        path: the folder, new or empty.
        config: written to `config.json`.
        policy: saved to `policy/` by `finish`, and to `checkpoints/best/` whenever the rolling return is best so far.

    Raises:
        UserError: the folder already holds something, or cannot be written.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], policy: RecurrentPolicy) -> None:
        check_is_free(path)
        self.path, self.policy = path, policy
        self._env_id, self._seed = config["env_id"], config["seed"]
        self._rows: list[dict[str, float]] = []
        self._best = -float("inf")
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            self._metrics = (path / METRICS).open("w", newline="")
        except OSError as error:
            raise UserError(f"run directory {path} cannot be written: {error}") from error
        self._csv: csv.DictWriter | None = None
        self._tensorboard = EventFileWriter(str(path / "tensorboard"))

    def __call__(self, metrics: dict[str, float]) -> None:
        """Appends a row to `metrics.csv` and TensorBoard, and saves the policy if it is the best so far."""
        if self._csv is None:
            self._csv = csv.DictWriter(self._metrics, list(metrics))
            self._csv.writeheader()
        self._csv.writerow(metrics)
        self._metrics.flush()
        self._rows.append(metrics)
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])
        step = int(metrics["time/total_timesteps"])
        self._tensorboard.add_event(Event(wall_time=time.time(), step=step, summary=scalars))
        if metrics["rollout/ep_rew_mean"] > self._best:
            self._best = metrics["rollout/ep_rew_mean"]
            self.policy.save(self.path / BEST_POLICY)

    def finish(self) -> None:
        """Saves the policy, draws the learning curve and closes the files."""
        self.policy.save(self.path / POLICY)
        self._metrics.close()
        self._tensorboard.close()
        figure = learning_curve(self._rows, f"{self._env_id}, seed {self._seed}")
        with replacing_file(self.path / LEARNING_CURVE) as path:
            figure.savefig(path, dpi=120)


def learning_curve(rows: list[dict[str, float]], title: str) -> Figure:
    """Mean return of the last 100 episodes against frames."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    frames = [row["time/total_timesteps"] for row in rows]
    axes.plot(frames, [row["rollout/ep_rew_mean"] for row in rows], linewidth=1.8)
    axes.set(title=title, xlabel="frames", ylabel="mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
