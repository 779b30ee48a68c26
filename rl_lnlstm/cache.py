"""The user's cache of machine code: kernels that were built, and programs that XLA compiled."""

from __future__ import annotations

import hashlib
import os
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from rl_lnlstm.errors import UserError

WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ANOTHER_CACHE = "set RL_LNLSTM_CACHE to a folder that only you can write to"


class CacheError(UserError):
    """The cache cannot be used. The message says why, and what to do."""


def cache_folder() -> Path:
    """`$RL_LNLSTM_CACHE`, or `rl_lnlstm` in `$XDG_CACHE_HOME` or in `~/.cache`."""
    own, users = os.environ.get("RL_LNLSTM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).absolute() if own else Path(users or Path.home() / ".cache").absolute() / "rl_lnlstm"
    except RuntimeError as error:  # the user has no home directory
        raise CacheError(f"no place for the cache: {error}; set RL_LNLSTM_CACHE") from None


def key_of(parts: Sequence[str]) -> str:
    """A short key, which differs if any part differs."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """The digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def private_folder(folder: Path) -> Path:
    """Makes the folder if it is missing, and checks that no other user may write to it, because its code is run.

    Anybody who may write to a folder above could replace it. So these folders must belong to this user or to root, and
    must not be writable for others. Sticky folders like /tmp are fine, because users can rename only their own files in
    them.
    """
    # Make each folder separately. With `parents=True`, the umask would set the mode of those above.
    for place in (*reversed(folder.parents), folder):
        place.mkdir(mode=0o700, exist_ok=True)
        status = place.stat()
        is_above = place != folder
        if status.st_uid != os.geteuid() and not (is_above and status.st_uid == 0):
            raise CacheError(
                f"the cache {folder} is not used, because {place} belongs to another user (its number is "
                f"{status.st_uid}): {ANOTHER_CACHE}"
            )
        is_open = status.st_mode & WRITABLE_BY_OTHERS and not (is_above and status.st_mode & stat.S_ISVTX)
        if is_open and not (is_above and _only_by_own_group(status)):
            raise CacheError(
                f"the cache {folder} is not used, because others may write to {place} (its mode is "
                f"{stat.S_IMODE(status.st_mode):o}): run `chmod go-w {shlex.quote(str(place))}`, or {ANOTHER_CACHE}"
            )
    return folder


def _only_by_own_group(status: os.stat_result) -> bool:
    """Whether only the user's own group may write. Many systems make such a group for each user (not for root)."""
    import grp
    import pwd

    if status.st_mode & stat.S_IWOTH or os.geteuid() == 0:
        return False
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
