"""The folder for the files of a local cluster of Ray, such as sockets and logs."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

PREFIX = "rl-ray-"
NEW_SECONDS = 60.0  # a folder that is younger may not be locked yet


class RayFolder:
    """A folder that is locked as long as this process lives. Folders that killed processes left are removed first.

    Args:
        parent: where to make it; None: in /tmp if possible, because Ray adds 65 characters to the path of its sockets,
            which may have no more than 107.
    """

    def __init__(self, parent: str | None = None) -> None:
        parent = parent or ("/tmp" if os.access("/tmp", os.W_OK) else tempfile.gettempdir())
        _remove_left(parent)
        self.path = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
        self._descriptor = os.open(self.path, os.O_RDONLY)
        if fcntl is not None:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Removes the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


def _remove_left(parent: str) -> None:
    """Removes the folders that nobody locks. The operating system unlocks a folder when its process ends, however."""
    if fcntl is None:
        return
    for path in Path(parent).glob(f"{PREFIX}*"):
        try:
            if time.time() - path.stat().st_mtime < NEW_SECONDS:
                continue
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # it is gone, or belongs to another user
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:  # it is in use
            pass
        finally:
            os.close(descriptor)
