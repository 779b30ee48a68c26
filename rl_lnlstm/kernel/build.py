"""Builds the operations of this folder with the system's C++ compiler, once for each user, TensorFlow and compiler."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rl_lnlstm.errors import UserError

SOURCES = Path(__file__).parent
LIBRARY = "rl_lnlstm_kernel.so"
FLAGS = ("-O3", "-fPIC", "-std=c++17", "-DNDEBUG", "-fno-math-errno", "-w")


class BuildError(UserError):
    """The operations cannot be built here; the text says why."""


class Unit(NamedTuple):
    """A source file and the flags it is compiled with."""

    source: Path
    flags: tuple[str, ...]


def library(force: bool = False) -> Path:
    """The shared library of the operations: built now, if it is not in the cache of this user.

    The cache is `$RL_LNLSTM_CACHE`, or `rl_lnlstm` in `$XDG_CACHE_HOME` or in `~/.cache`. `$CXX` names the compiler,
    `$RL_LNLSTM_CXXFLAGS` further flags, such as a sanitizer's.

    Args:
        force: build anew what is there already.

    Raises:
        BuildError: no compiler, a compiler that fails, or a cache that others may write to.
    """
    import tensorflow as tf

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    extra = tuple(shlex.split(os.environ.get("RL_LNLSTM_CXXFLAGS", "")))
    avx512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
    units = [
        Unit(SOURCES / "op.cc", (*tf.sysconfig.get_compile_flags(), *["-DRL_LNLSTM_X86"] * x86)),
        Unit(SOURCES / "core_generic.cc", ()),
    ]
    if x86:
        units += [Unit(SOURCES / "core_avx2.cc", ("-mavx2", "-mfma")), Unit(SOURCES / "core_avx512.cc", avx512)]
    headers = [*SOURCES.glob("*.h"), *SOURCES.glob("*.inc")]
    link = (*tf.sysconfig.get_link_flags(), *extra)
    units = [Unit(unit.source, (*FLAGS, *unit.flags, *extra)) for unit in units]
    return build(units, headers, link, _cache(), tf.__version__, force)


def build(
    units: Sequence[Unit], headers: Sequence[Path], link: Sequence[str], cache: Path, version: str, force: bool = False
) -> Path:
    """Compiles `units`, which include `headers`, to a shared library in `cache`, unless one of just these is there.

    Several processes may do so at once: one builds, the others wait for it. What is in the cache is always whole.
    """
    compiler = _compiler()
    parts = [version, platform.machine(), _run([*compiler, "--version"]), *link]
    parts += [f"{path.name}\n{path.read_text()}" for path in sorted([*headers, *(unit.source for unit in units)])]
    parts += [" ".join(unit.flags) for unit in units]
    folder = _private(cache / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16])
    path = folder / LIBRARY
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system, however the process ends
        if path.exists() and not force:
            return path
        for left_behind in folder.glob("build-*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as temporary:
            objects = [f"{temporary}/{unit.source.stem}.o" for unit in units]
            commands = [
                [*compiler, *unit.flags, "-c", str(unit.source), "-o", target]
                for unit, target in zip(units, objects, strict=True)
            ]
            _run_all(commands)
            built = f"{temporary}/{LIBRARY}"
            _run_all([[*compiler, "-shared", *objects, *link, "-o", built]])
            os.replace(built, path)
    return path


def _cache() -> Path:
    own = os.environ.get("RL_LNLSTM_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl_lnlstm"


def _private(folder: Path) -> Path:
    """The folder, made if it is missing. What is loaded from it runs as this user: nobody else may write there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in (folder, folder.parent):
            status = place.stat()
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise BuildError(f"{place} is another user's, or others may write to it")
    except OSError as error:
        raise BuildError(f"the kernel's cache {folder} cannot be used: {error}") from None
    return folder


def _compiler() -> list[str]:
    named = os.environ.get("CXX")
    if named:
        return shlex.split(named)
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found: neither $CXX, nor c++, g++ or clang++")


def _run(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from None


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    """Runs commands at the same time."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    outputs = [process.communicate()[0] for process in running]
    for process, command, output in zip(running, commands, outputs, strict=True):
        if process.returncode:
            raise BuildError(f"{shlex.join(command[:1])} failed:\n" + "\n".join(output.splitlines()[-20:]))
