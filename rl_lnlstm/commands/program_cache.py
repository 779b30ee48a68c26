"""Keeps the programs that XLA compiled, so that the same training starts faster the next time.

TensorFlow can save XLA's programs in a folder, and read them in later processes. But it fails if a program there is
damaged, or if it cannot write. And it does not notice that a program was compiled for another processor. So each
process gets a folder of its own, with checked programs. When it ends, its new programs are moved to the cache.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import platform
import re
import shutil
import tempfile
import time
from pathlib import Path

from rl_lnlstm.cache import CacheError, cache_folder, digest_of, key_of, private_folder

LOGGER = logging.getLogger("rl_lnlstm")
FLAGS = "TF_XLA_FLAGS"  # an environment variable. TensorFlow reads it when it compiles the first program
FOLDER, ON_CPUS = "--tf_xla_persistent_cache_directory=", "--tf_xla_persistent_cache_device_types=CPU"
OTHERS = "XLA_FLAGS", "TF_NUM_INTRAOP_THREADS", "TF_ENABLE_ONEDNN_OPTS"  # they may change what XLA compiles
KEPT = 32  # programs in a folder, of 1 to 2 MB each
ROOM = 16 << 20  # bytes that must be free
PROCESS = "process-"  # the prefix of a process's own folder
LEFT_BEHIND = 7 * 24 * 3600  # seconds: older folders of processes are removed


@functools.cache
def use_program_cache() -> None:
    """Lets TensorFlow use XLA's programs of earlier processes. Call it before XLA compiles the first program.

    The cache has a folder for each TensorFlow, processor, number of cores and set of flags. If it cannot be used, XLA
    compiles everything again.
    """
    if os.name != "posix":
        return  # there is no check that a folder is private
    try:
        cache = Path(os.path.realpath(cache_folder()))  # so that changing a link later has no effect
        # A process that we started inherits our flags.
        flags = re.sub(f"{FOLDER}'{re.escape(str(cache))}[^']*' {ON_CPUS}", "", os.environ.get(FLAGS, "")).strip()
        if FOLDER in flags or (flags and not flags.startswith("-")):
            return  # the user has a folder for it, or a file with flags
        if "'" in str(cache):
            raise CacheError(f"TensorFlow cannot read a flag with the path {cache}")
        folder = private_folder(private_folder(cache) / f"xla-{_key(flags)}")
        own = Path(tempfile.mkdtemp(prefix=PROCESS, dir=folder))
        atexit.register(_keep_new_programs, own)
        with tempfile.TemporaryFile(dir=own) as file:
            file.write(bytes(ROOM))
        _link_programs(folder, own)
    except (CacheError, OSError, ValueError) as error:
        LOGGER.info("XLA's programs are not kept: %s", error)
        return
    os.environ[FLAGS] = f"{flags} {FOLDER}'{own}' {ON_CPUS}"


def _key(flags: str) -> str:
    """A key of everything that changes XLA's programs, except what they compute."""
    import tensorflow as tf

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    others = [os.environ.get(name, "") for name in OTHERS]
    return key_of([tf.version.VERSION, tf.version.GIT_VERSION, _processor(), str(cores), flags, *others])


def _processor() -> str:
    """The processor's name and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    fields = "vendor_id", "cpu family", "model", "flags", "CPU", "Features"  # the last two on ARM
    return "\n".join(line for line in lines if line.startswith(fields))


def _link_programs(folder: Path, own: Path) -> None:
    """Links the programs that were used last into a process's own folder. Removes other ones, and damaged ones.

    In the cache, a program's file name ends with a digest of the file's content.
    """
    linked, entries = 0, []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may remove it at any time
            entries.append((path.stat().st_mtime, path))
    for used, path in sorted(entries, reverse=True):
        if path.name.startswith(PROCESS):
            if used < time.time() - LEFT_BEHIND:
                shutil.rmtree(path, ignore_errors=True)
            continue
        with contextlib.suppress(FileNotFoundError):
            if linked < KEPT and path.suffix == f".{digest_of(path)}" and not (own / path.stem).exists():
                os.link(path, own / path.stem)
                os.utime(path)
                linked += 1
            else:
                path.unlink(missing_ok=True)


def _keep_new_programs(own: Path) -> None:
    with contextlib.suppress(OSError):
        for path in own.glob("*.pb"):
            os.replace(path, own.with_name(f"{path.name}.{digest_of(path)}"))
    shutil.rmtree(own, ignore_errors=True)
