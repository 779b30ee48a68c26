"""What a training run leaves: its configuration, metrics, learning curve and policies, in one folder."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import shutil
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from matplotlib.figure import Figure
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.files import Appender, replacing_file
from rl_lnlstm.policies import RecurrentPolicy

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

CONFIG = "config.json"
METRICS = "metrics.csv"
LEARNING_CURVE = "learning_curve.png"
POLICY = "policy"
CHECKPOINTS = "checkpoints"
BEST_POLICY = "checkpoints/best"
TENSORBOARD = "tensorboard"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps every other run out of the folder `path`, which is made if need be.

    The lock is the operating system's, on the folder itself: it ends with the process, whatever the way that dies.

    Raises:
        UserError: another run has it, or it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"run directory {path} cannot be written: {error}") from error
    try:
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"run directory {path} is in use by a run that has not ended") from None
            except OSError as error:
                warn(f"{path} cannot be locked, {error}: see to it that no other run uses it")
        yield
    finally:
        os.close(descriptor)


class RunDirectory:
    """Records a run; called with the metrics of each iteration, it is a callback of `PPO.learn`.

    A disk that is full or read-only does not end the run: what it did not take is kept, and tried again.

    Args:
        path: the folder, new, empty, or of the run that is resumed.
        config: written to `config.json`.
        policy: saved to `policy/` by `finish`, and to `checkpoints/best/` whenever the rolling return is best so far.
        iteration: the iteration that the run is resumed after; None for a new run.
        frames: the frames it had then. What was recorded of later ones is dropped.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, Any],
        policy: RecurrentPolicy,
        iteration: int | None = None,
        frames: int = 0,
    ) -> None:
        self.path, self.policy = path, policy
        self._title = f"{config['env_id']}, seed {config['seed']}"
        self._rows: list[dict[str, float]] = []
        self._columns: list[str] = []
        try:
            (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            (path / TENSORBOARD).mkdir(exist_ok=True)
            with replacing_file(path / CONFIG) as temporary:
                temporary.write_text(json.dumps(config, indent=2) + "\n")
            if iteration is not None:
                _remove_leftovers(path)
                self._columns, self._rows = keep_metrics(path / METRICS, iteration)
                keep_events(path / TENSORBOARD, frames)
            self._metrics = Appender(path / METRICS)
            self._events = Appender(_events_file(path / TENSORBOARD))
        except OSError as error:
            raise UserError(f"run directory {path} cannot be written: {error}") from error
        if iteration is not None and len(self._rows) != iteration:
            warn(f"{path / METRICS} holds {len(self._rows)} rows of the {iteration} iterations")
        # A best policy that was lost on the way is replaced by the next.
        known = [row["rollout/ep_rew_mean"] for row in self._rows] if (path / BEST_POLICY).is_dir() else []
        self._best = max((mean for mean in known if not math.isnan(mean)), default=-math.inf)

    def __call__(self, metrics: dict[str, float]) -> None:
        """Appends a row to `metrics.csv` and TensorBoard, and saves the policy if it is the best so far."""
        self._rows.append(metrics)
        self._survives(lambda: self._metrics.append(self._line(metrics)))
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])
        step = int(metrics["time/total_timesteps"])
        event = _record(Event(wall_time=time.time(), step=step, summary=scalars))
        self._survives(lambda: self._events.append(event))
        mean = metrics["rollout/ep_rew_mean"]
        if mean > self._best and self._survives(lambda: self.policy.save(self.path / BEST_POLICY)):
            self._best = mean

    def flush(self) -> None:
        """Has everything that was recorded on the disk; raises `OSError` if that does not take it."""
        self._metrics.flush(durable=True)
        self._events.flush(durable=True)

    def finish(self) -> bool:
        """Saves the policy, draws the learning curve and closes the files; returns whether the disk took everything."""
        writes = (lambda: self.policy.save(self.path / POLICY), self.flush, self._draw)
        taken = [self._survives(write) for write in writes]
        self._metrics.close()
        self._events.close()
        return all(taken)

    def _draw(self) -> None:
        with replacing_file(self.path / LEARNING_CURVE) as path:
            learning_curve(self._rows, self._title).savefig(path, dpi=120)

    def _survives(self, write: Callable[[], None]) -> bool:
        """Whether the disk took it; if not, that is told."""
        try:
            write()
        except OSError as error:
            reason = error.strerror or error
            warn(f"{self.path} cannot be written, {reason}: the run goes on and will try again")
            return False
        return True

    def _line(self, metrics: Mapping[str, float]) -> bytes:
        text = io.StringIO(newline="")
        if not self._columns:
            self._columns = list(metrics)
            csv.writer(text).writerow(self._columns)
        csv.DictWriter(text, self._columns, extrasaction="ignore").writerow(metrics)
        return text.getvalue().encode()


def keep_metrics(path: Path, iteration: int) -> tuple[list[str], list[dict[str, float]]]:
    """Cuts what follows the row of `iteration` off a `metrics.csv`, and returns its columns and rows.

    A row that is none, as a process that was killed may leave it at the end, is cut off with all after it.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    columns = lines[0].decode(errors="replace").strip().split(",") if lines else []
    rows: list[dict[str, float]] = []
    for line in lines[1:]:
        try:
            row = dict(zip(columns, map(float, line.decode().split(",")), strict=True))
            if not line.endswith(b"\n") or row["time/iterations"] > iteration:
                break
        except (ValueError, KeyError):
            break
        rows.append(row)
    if lines:
        # Without a row there is no header either, as in a run that has just begun.
        os.truncate(path, sum(map(len, lines[: len(rows) + 1])) if rows else 0)
    return (columns if rows else []), rows


def keep_events(folder: Path, frames: int) -> None:
    """Cuts the events of more than `frames` frames, and what was left half written, off TensorBoard's files."""
    for path in folder.glob("events.out.tfevents.*"):
        with path.open("rb") as file:
            end = 0
            while len(header := file.read(12)) == 12:
                (length,) = struct.unpack_from("<Q", header)
                if length > os.path.getsize(path) - file.tell() - 4:
                    break
                content = file.read(length)
                file.seek(4, os.SEEK_CUR)  # its checksum
                try:
                    if Event.FromString(content).step > frames:
                        break
                except DecodeError:
                    break
                end = file.tell()
        os.truncate(path, end)


def _events_file(folder: Path) -> Path:
    """The last of TensorBoard's files, or a new one."""
    written = sorted(path for path in folder.glob("events.out.tfevents.*") if path.stat().st_size)
    if written:
        return written[-1]
    path = folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    path.write_bytes(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
    return path


def _record(event: Event) -> bytes:
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _remove_leftovers(path: Path) -> None:
    """What a process that was killed was about to rename."""
    names = (CONFIG, LEARNING_CURVE, POLICY)
    for entry in (*path.iterdir(), *(path / CHECKPOINTS).glob(".*")):
        if entry.parent != path or any(entry.name.startswith(f".{name}.") for name in names):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


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
