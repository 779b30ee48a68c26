"""The lock of a run directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from rl_lnlstm.errors import UserError, warn

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A context manager that locks the folder `path` against other runs. Makes the folder if it is missing.

    It uses the operating system's lock on the folder, which ends with the process, however that ends. On Windows,
    nothing is locked.

    Raises:
        UserError: another run has the lock, or the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = None if fcntl is None else os.open(path, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"run directory {path} cannot be written: {error}") from error
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"run directory {path} is in use by a run that has not ended") from None
            except OSError as error:
                warn(f"{path} cannot be locked, {error}: make sure that no other run uses it")
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
