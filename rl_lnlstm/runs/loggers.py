"""Callbacks of `PPO.learn` that write the metrics of each iteration: to a CSV file, and for TensorBoard."""

from __future__ import annotations

import csv
import io
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.files import Appender, replacing_file
from rl_lnlstm.ppo.callbacks import Callback, Metrics
from rl_lnlstm.runs.metrics_file import FRAMES, ITERATION


class CSVLogger(Callback):
    """Appends a row of metrics to a CSV file after each iteration.

    If a metric first appears in a later iteration, the file is written again with a new column. If the disk is full,
    the run continues: rows are kept, and are written when there is space again.

    Args:
        path: the file. Rows that it already contains are kept, except for an unfinished last one.
        iteration: keep only the rows up to this iteration; None for all of them.

    Attributes:
        rows: all metrics so far, including those that the file already contained.

    Raises:
        UserError: the file holds something else than metrics.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike, iteration: int | None = None) -> None:
        self.path = Path(path).absolute()  # an environment may change the current folder
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._columns, self.rows, self._cells = keep_metrics(self.path, iteration)
        self._file = Appender(self.path)
        self._rewrite = False  # whether the file must be written again, because there are new columns

    def __call__(self, metrics: Metrics) -> None:
        """Writes a row."""
        self.rows.append(dict(metrics))
        self._cells.append({name: str(value) for name, value in metrics.items()})
        new = [name for name in metrics if name not in self._columns]
        self._columns += new
        if new and len(self.rows) > 1:
            self._rewrite = True
        elif not self._rewrite:
            line = self._lines(self._cells[-1:], header=bool(new))
            try_to_write(self.path, lambda: self._file.append(line))
        if self._rewrite:
            try_to_write(self.path, self._write_again)

    def flush(self) -> None:
        """Writes all rows to the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        if self._rewrite:
            self._write_again()
        self._file.flush(durable=True)

    def on_training_end(self) -> None:
        """Writes everything to the disk, if possible."""
        try_to_write(self.path, self.flush)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _lines(self, rows: list[dict[str, str]], header: bool) -> bytes:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode()

    def _write_again(self) -> None:
        """Writes the whole file, because its header has new columns."""
        with replacing_file(self.path) as path:
            path.write_bytes(self._lines(self._cells, header=True))
        self._file.close()
        self._file = Appender(self.path)
        self._rewrite = False


class TensorBoardLogger(Callback):
    """Writes the metrics of each iteration for TensorBoard; the step is the number of frames.

    Args:
        folder: the log directory. If it contains files of events, the last one is continued.
        frames: keep only the events up to this number of frames; None for all of them.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, frames: int | None = None) -> None:
        self.folder = Path(folder).absolute()  # an environment may change the current folder
        self.folder.mkdir(parents=True, exist_ok=True)
        if frames is not None:
            keep_events(self.folder, frames)
        self._file = Appender(_events_file(self.folder))

    def __call__(self, metrics: Metrics) -> None:
        """Writes an event with all metrics."""
        scalars = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])
        step = int(metrics[FRAMES])
        event = _record(Event(wall_time=time.time(), step=step, summary=scalars))
        try_to_write(self.folder, lambda: self._file.append(event))

    def flush(self) -> None:
        """Writes all events to the disk.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self._file.flush(durable=True)

    def on_training_end(self) -> None:
        """Writes everything to the disk, if possible."""
        try_to_write(self.folder, self.flush)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def try_to_write(path: Path, write: Callable[[], None]) -> bool:
    """Runs an action that writes to the disk. If it fails, gives a `RunWarning` and returns False."""
    try:
        write()
    except OSError as error:
        warn(f"{path} cannot be written, {error.strerror or error}: the run continues and will try again")
        return False
    return True


class _Kept(NamedTuple):
    columns: list[str]
    rows: list[Metrics]
    cells: list[dict[str, str]]  # the same rows as text


def keep_metrics(path: Path, iteration: int | None = None) -> _Kept:
    """Removes all rows after `iteration` from a `metrics.csv`, and returns its columns and the remaining rows.

    A killed process may leave an unfinished line at the end, which is removed. With `iteration`, the file is that of a
    run: the first line that cannot be read, and all lines after it, are removed too.

    Raises:
        UserError: without `iteration`, the file holds something else than metrics.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    try:
        columns = _cells(lines[0].decode(errors="replace")) if lines else []
    except csv.Error:
        columns = []
    rows: list[Metrics] = []
    texts: list[dict[str, str]] = []
    for line in lines[1:]:
        try:
            cells = zip(columns, _cells(line.decode()), strict=True)
            written = {name: cell for name, cell in cells if cell}
            row = {name: float(cell) for name, cell in written.items()}
            if not line.endswith(b"\n") or (iteration is not None and row[ITERATION] > iteration):
                break
        except (ValueError, KeyError, csv.Error):
            break
        rows.append(row)
        texts.append(written)
    if iteration is None:
        _check_is_metrics_file(path, lines, columns, len(rows))
    if lines:
        # Without rows, write no header either, as in a new run.
        os.truncate(path, sum(map(len, lines[: len(rows) + 1])) if rows else 0)
    return _Kept(columns if rows else [], rows, texts)


def _check_is_metrics_file(path: Path, lines: list[bytes], columns: list[str], num_rows: int) -> None:
    """Raises `UserError` if anything but an unfinished last line could not be read. `num_rows` rows could."""
    is_unfinished = len(lines) == 1 and lines[0].startswith(b"rollout/") and not lines[0].endswith(b"\n")
    if lines and ITERATION not in columns and not is_unfinished:
        raise UserError(f"{path} holds no metrics: expected a column {ITERATION!r}, got {columns!r:.200}")
    unread = lines[num_rows + 1 :]
    if unread and (len(unread) > 1 or unread[0].endswith(b"\n")):
        raise UserError(f"line {num_rows + 2} of {path} cannot be read, so no rows are added to this file")


def _cells(line: str) -> list[str]:
    """The cells of a line. The name of a metric, from an info, may contain a comma."""
    return next(csv.reader([line]), [])


def keep_events(folder: Path, frames: int) -> None:
    """Removes events after `frames` frames, and an incomplete last event, from TensorBoard's files."""
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
