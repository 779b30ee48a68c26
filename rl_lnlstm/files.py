"""Atomic writes of files and folders: they are written under another name, then renamed. And safe reading."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from rl_lnlstm.errors import UserError

MAX_JSON_BYTES = 8 << 20
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # constants of Linux, from fcntl.h and fs.h


def folder_path(path: Any) -> Path:
    """The path of a folder; raises `UserError` if it is not a path."""
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"path must be that of a folder, got {path!r:.80}")
    return Path(path)


def is_empty_folder(path: Path) -> bool:
    """Whether `path` is a folder without anything in it."""
    return path.is_dir() and not any(path.iterdir())


def check_is_free(path: Path, what: str, flag: str) -> None:
    """Raises `UserError` unless the folder `path`, given by `flag`, is new or empty."""
    try:
        if path.is_file():
            raise UserError(f"{what} {path} is a file: name a new directory with {flag}")
        if path.is_dir() and not is_empty_folder(path):
            raise UserError(f"{what} {path} already holds a run or other files: name a new one with {flag}")
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read, {error.strerror}: name a new one with {flag}") from error


def check_free_and_writable(path: Path, what: str, flag: str) -> None:
    """Raises `UserError` unless the folder `path`, given by `flag`, is new or empty, and files can be made in it."""
    check_is_free(path, what, flag)
    try:
        if os.path.islink(path) and not os.path.exists(path):
            raise FileExistsError("it is a link to nothing")
        _check_can_write_in(_existing(Path(os.path.realpath(path))))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{what} {path} cannot be written to, {reason}: name another one with {flag}") from error


def check_writable(path: Path, what: str, flag: str) -> None:
    """Raises `UserError` if the file `path`, given by `flag`, cannot be written. Call it before long work."""
    if _standard_stream(path) is not None or (is_special(path) and os.access(path, os.W_OK)):
        return
    target = Path(os.path.realpath(path))  # of a link, as in `output_file`
    try:
        if os.path.isdir(path):
            raise IsADirectoryError("it is a folder")
        _check_can_write_in(_existing(target.parent))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{what} cannot be written to {path}, {reason}: name another file with {flag}") from error


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((one for one in (folder, *folder.parents) if os.path.exists(one)), folder)


def _check_can_write_in(folder: Path) -> None:
    """Raises `OSError` if no file can be made there. Permissions alone say little of a read-only disk, or to root."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def is_special(path: Path) -> bool:
    """Whether `path` is there and neither a regular file nor a folder: a device or a pipe, for example."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _standard_stream(path: Path) -> int | None:
    """The descriptor of standard output or standard error if `path` is the same file, also if a shell redirected it."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # there is no such file, or the stream is closed
            if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
    return None


@contextlib.contextmanager
def replacing_file(path: Path, suffix: str | None = None) -> Iterator[Path]:
    """A context manager that gives a temporary path. The file there replaces `path` if the block does not raise.

    Args:
        path: the file. A link is replaced too: in a run directory of another person, it may lead anywhere.
        suffix: of the temporary path; None for that of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{path.suffix if suffix is None else suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Like `replacing_file`, for a path that the user named. A symbolic link stays, and its file is replaced.

    If `path` is a device or a pipe, which cannot be replaced, this gives `path` itself. If it is standard output or
    standard error, for example /dev/stdout, the content is written after what was printed before. This also holds if a
    shell has redirected the stream to a file.
    """
    stream = _standard_stream(path)
    if stream is not None:
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder, f"output{path.suffix}")
            yield temporary
            _append_to(stream, temporary)
    elif is_special(path):
        yield path
    else:
        with replacing_file(Path(os.path.realpath(path)), path.suffix) as temporary:
            yield temporary


def _append_to(stream: int, path: Path) -> None:
    """Writes the content of a file to the descriptor of a standard stream, after what was printed before."""
    for printed in (sys.stdout, sys.stderr):
        if printed is not None:  # a stream that was closed when the program started
            printed.flush()
    with path.open("rb") as source, open(stream, "wb", closefd=False) as target:
        shutil.copyfileobj(source, target)


@contextlib.contextmanager
def replacing_folder(path: Path, durable: bool = False) -> Iterator[Path]:
    """A context manager that gives a temporary folder. It replaces `path` if the block does not raise.

    Args:
        path: the folder.
        durable: write everything to the disk before the folder is renamed, and the new name before this returns. Then
            even a power failure cannot leave a partial folder.
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
            try:
                if path.exists():
                    path.rename(old)  # without an atomic exchange, replacing a folder takes two steps
                new.rename(path)
            except BaseException:  # also Ctrl-C
                if old.exists() and not path.exists():
                    old.rename(path)
                raise
        if durable:
            _flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Swaps two paths atomically, so that readers always find one of them. Returns False if the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # not Linux
        return False
    renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    arguments = AT_FDCWD, os.fsencode(one.absolute()), AT_FDCWD, os.fsencode(other.absolute()), RENAME_EXCHANGE
    return renameat2(*arguments) == 0


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt":  # Windows opens no folders, and flushes no files that are open for reading only
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Appender:
    """Appends records to a file, each of them completely or not at all.

    Records that cannot be written are kept, and written before the next record.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._pending: list[bytes] = []

    def append(self, record: bytes) -> None:
        """Appends a record. If the disk is full, keeps it and raises `OSError`."""
        self._pending.append(record)
        self.flush()

    def flush(self, durable: bool = False) -> None:
        """Writes the records that are kept. Raises `OSError` if the disk is full."""
        while self._pending:
            record, end = self._pending[0], os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(record) != len(record):
                    self._file.write(record[-1:])  # raises an error that says why, for example that the disk is full
                    raise OSError("the record was cut short")
            except OSError:
                self._file.truncate(end)
                raise
            del self._pending[0]
        if durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file. Records that are still kept are lost."""
        self._file.close()


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a regular file, and returns it with its size. Refuses devices and pipes, which may never end.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        yield file, status.st_size


def read_regular(path: Path, limit: int | None = None) -> bytes:
    """Reads a regular file of at most `limit` bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    with open_regular(path) as (file, size):
        if limit is not None and size > limit:
            raise OSError(f"{path} is larger than {limit:,} bytes")
        # Not `read(limit)`, which allocates that much, whatever the size of the file.
        return file.read() if limit is None else file.read(size)


def read_json(path: Path) -> Any:
    """Reads a JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        OSError, ValueError: as `read_regular` and `parse_json`.
    """
    return parse_json(read_regular(path, MAX_JSON_BYTES))


def parse_json(content: bytes) -> Any:
    """Parses JSON in UTF-8.

    Raises:
        ValueError: it is not valid, or nested too deeply.
    """
    try:
        return json.loads(content.decode())
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None
