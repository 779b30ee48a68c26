"""Builds the operations of this folder with the system's C++ compiler, once for each user, TensorFlow and compiler."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import signal
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
    extra = tuple(_words("RL_LNLSTM_CXXFLAGS"))
    avx512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
    # So named on Linux, where it has XLA's registry of custom calls.
    xla = Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    defined = [f"-DRL_LNLSTM_{name}" for name, holds in (("X86", x86), ("XLA", xla.exists())) if holds]
    # In this order: of an inline function that several units have, the linker keeps the first, which must run anywhere.
    units = [
        Unit(SOURCES / "tensorflow.cc", (*tf.sysconfig.get_compile_flags(), *defined)),
        Unit(SOURCES / "core_generic.cc", ()),
    ]
    if x86:
        units += [Unit(SOURCES / "core_avx2.cc", ("-mavx2", "-mfma")), Unit(SOURCES / "core_avx512.cc", avx512)]
    included = [path for pattern in ("*.h", "*.inc", "*.cc") for path in SOURCES.glob(pattern)]
    link = (*tf.sysconfig.get_link_flags(), *[f"-l:{xla.name}"] * xla.exists(), *extra)
    units = [Unit(unit.source, (*FLAGS, *unit.flags, *extra)) for unit in units]
    return build(units, included, link, _cache(), tf.__version__, force)


def build(
    units: Sequence[Unit], included: Sequence[Path], link: Sequence[str], cache: Path, version: str, force: bool = False
) -> Path:
    """Compiles `units` and what they have `included` to a library in `cache`, unless one of just these is there.

    Several processes may do so at once: one builds, the others wait for it. What is in the cache is always whole.

    Raises:
        BuildError: as `library` does.
    """
    try:
        import fcntl  # where there is none, on Windows, the package must still be importable
    except ImportError:
        raise BuildError(f"not on {platform.system()}: the kernel is built on POSIX systems only") from None

    compiler = _compiler()
    try:
        folder = _private(_private(cache) / _key(units, included, link, version, compiler))
        path = folder / LIBRARY
        if path.exists() and not force:  # whole, whoever holds the lock; the cache may even be read-only
            return path
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released by the system, however the process ends
            if path.exists() and not force:
                return path
            for left_behind in folder.glob("build-*"):
                shutil.rmtree(left_behind, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder, ignore_cleanup_errors=True) as temporary:
                os.replace(_compile(units, link, compiler, Path(temporary)), path)
    except OSError as error:  # no space, a read-only file system, one without locks, sources that are missing
        raise BuildError(f"the kernel's cache {cache} cannot be used: {error}") from None
    return path


def _key(
    units: Sequence[Unit], included: Sequence[Path], link: Sequence[str], version: str, compiler: Sequence[str]
) -> str:
    """Another one for whatever may make another library."""
    parts = [version, platform.machine(), *compiler, _run_all([[*compiler, "--version"]])[0], *link]
    sources = sorted({*included, *(unit.source for unit in units)})
    parts += [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sources]
    parts += [f"{unit.source.name} {shlex.join(unit.flags)}" for unit in units]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(units: Sequence[Unit], link: Sequence[str], compiler: Sequence[str], folder: Path) -> Path:
    objects = [str(folder / f"{unit.source.stem}.o") for unit in units]
    _run_all(
        [
            [*compiler, *unit.flags, "-c", str(unit.source), "-o", target]
            for unit, target in zip(units, objects, strict=True)
        ]
    )
    built = folder / LIBRARY
    _run_all([[*compiler, "-shared", *objects, *link, "-o", str(built)]])
    return built


def _cache() -> Path:
    own, users = os.environ.get("RL_LNLSTM_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).absolute() if own else Path(users or Path.home() / ".cache").absolute() / "rl_lnlstm"
    except RuntimeError as error:  # this user has no home
        raise BuildError(f"no place for the kernel's cache: {error}; set RL_LNLSTM_CACHE") from None


def _private(folder: Path) -> Path:
    """The folder, made if it is missing. What is loaded from it runs as this user: nobody else may write there."""
    for place in (*reversed(folder.parents), folder):  # `parents=True` would leave the mode of the others to the umask
        place.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(f"the kernel's cache {folder} is another user's, or others may write to it")
    return folder


def _compiler() -> list[str]:
    named = _words("CXX")
    if named:
        return named
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found: neither $CXX, nor c++, g++ or clang++")


def _words(variable: str) -> list[str]:
    """What an environment variable holds, as a shell would split it."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise BuildError(f"${variable} is {value!r}: {error}") from None


def _run_all(commands: Sequence[Sequence[str]]) -> list[str]:
    """Runs commands at the same time, and gives what each one wrote."""
    running: list[subprocess.Popen[str]] = []
    try:
        for command in commands:
            try:
                running.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                        errors="replace",
                        env={**os.environ, "LC_ALL": "C"},  # the version, which is in the key, in one language
                        process_group=0,
                    )
                )
            except OSError as error:
                raise BuildError(f"the C++ compiler {command[0]} does not run: {error}") from None
        outputs = [process.communicate()[0] for process in running]
    finally:
        for process in running:  # some are left if this is interrupted, and with them what they started in turn
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    for process, command, output in zip(running, commands, outputs, strict=True):
        if process.returncode:
            said = "\n".join(output.splitlines()[-20:])
            raise BuildError(f"the C++ compiler {command[0]} failed with exit code {process.returncode}:\n{said}")
    return outputs
