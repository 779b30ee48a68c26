"""Files and folders that are whole or not there: written beside their place, then renamed into it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rl_lnlstm.errors import UserError

MAX_JSON_BYTES = 8 << 20
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux' fcntl.h and fs.h


def check_is_free(path: Path, what: str, flag: str) -> None:
    """Raises `UserError` if the folder `path`, which `flag` names, holds anything that would be mixed with."""
    if path.is_file():
        raise UserError(f"{what} {path} is a file: name a new directory with {flag}")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{what} {path} already holds a run or other files: name a new one with {flag}")


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Gives a path to write to; what is there takes the place of `path` if the block does not raise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path, durable: bool = False) -> Iterator[Path]:
    """Gives a new folder to write into, which takes the place of `path` if the block does not raise.

    Args:
        path: the folder.
        durable: have everything on the disk before it is renamed, and the new name when this returns, so that not even
            a power failure leaves half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        yield new
        if durable:
            for written in (*new.iterdir(), new):
                _flush_to_disk(written)
        if not (path.exists() and _exchanged(new, path)):
            if path.exists():
                path.rename(old)  # without an exchange, a folder that is not empty takes two steps to replace
            try:
                new.rename(path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        if durable:
            _flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swaps two paths in one step, so that a reader finds either at any instant. False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    arguments = AT_FDCWD, os.fsencode(one.absolute()), AT_FDCWD, os.fsencode(other.absolute()), RENAME_EXCHANGE
    return renameat2(*arguments) == 0


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Appender:
    """Appends records to a file, each of them whole or not at all.

    What the disk refuses is kept, and tried again before the next record.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._pending: list[bytes] = []

    def append(self, record: bytes) -> None:
        """Raises `OSError` if the disk takes no more; the record is kept."""
        self._pending.append(record)
        self.flush()

    def flush(self, durable: bool = False) -> None:
        """Writes what is kept; raises `OSError` if the disk does not take it."""
        while self._pending:
            record, end = self._pending[0], os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(record) != len(record):
                    self._file.write(record[-1:])  # raises why: the disk is full, or the file may not grow
                    raise OSError("the record was cut short")
            except OSError:
                self._file.truncate(end)
                raise
            del self._pending[0]
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file; what is still kept is lost."""
        self._file.close()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file to read from, and its size: no device that never ends, no pipe that never begins.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is no regular file")
        yield file, status.st_size


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file of at most `limit` bytes.

    Raises:
        OSError: it cannot be read, is something else, or larger.
    """
    with open_regular(path) as (file, size):
        if limit is not None and size > limit:
            raise OSError(f"{path} is larger than {limit:,} bytes")
        return file.read() if limit is None else file.read(limit)


def read_json(path: Path) -> Any:
    """What a JSON file of at most `MAX_JSON_BYTES` holds.

    Raises:
        OSError, ValueError: as `read_regular` and `parse_json`.
    """
    return parse_json(read_regular(path, MAX_JSON_BYTES))


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8.

    Raises:
        ValueError: it is none, or nested more deeply than anything of ours.
    """
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
