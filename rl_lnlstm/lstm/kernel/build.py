"""Builds the operations in this folder with the system's C++ compiler, once per user, TensorFlow and compiler."""

from __future__ import annotations

import hashlib
import logging
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

LOGGER = logging.getLogger("rl_lnlstm")
SOURCES = Path(__file__).parent
LIBRARY = "rl_lnlstm_kernel.so"
LOCK = "lock"  # a file: locked while a process builds; contains the digest of the library
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
ANOTHER_CACHE = "set RL_LNLSTM_CACHE to a folder that only you can write to"
FLAGS = ("-O3", "-fPIC", "-std=c++17", "-DNDEBUG", "-fno-math-errno", "-w")


class BuildError(UserError):
    """The operations cannot be built or loaded. The message says why, and what to do."""


class Unit(NamedTuple):
    """A source file and the flags it is compiled with."""

    source: Path
    flags: tuple[str, ...]


def library(force: bool = False) -> Path:
    """The shared library of the operations. It is built if this user's cache does not contain it.

    The cache is `$RL_LNLSTM_CACHE`, or `rl_lnlstm` in `$XDG_CACHE_HOME` or in `~/.cache`. `$CXX` names the compiler,
    `$RL_LNLSTM_CXXFLAGS` adds flags, for example for a sanitizer.

    Args:
        force: build again even if the cache contains the library.

    Raises:
        BuildError: there is neither a compiler nor a library in the cache, the compiler fails, or other users may write
            to the cache.
    """
    import tensorflow as tf

    x86 = platform.machine().lower() in ("x86_64", "amd64")
    extra = tuple(_words("RL_LNLSTM_CXXFLAGS"))
    avx512 = ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512")
    # The name on Linux. Only there does it contain XLA's registry of custom calls.
    xla = Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    tensorflow = (*tf.sysconfig.get_compile_flags(), *["-DRL_LNLSTM_X86"] * x86)
    # The order matters. If several units contain the same inline function, the linker keeps the first one, which must
    # run on every processor.
    units = [Unit(SOURCES / "tensorflow.cc", tensorflow)]
    if xla.exists():
        units.append(Unit(SOURCES / "xla.cc", (*tensorflow, f"-I{SOURCES / 'stubs'}", "-O1")))
    units.append(Unit(SOURCES / "core_generic.cc", ()))
    if x86:
        units += [Unit(SOURCES / "core_avx2.cc", ("-mavx2", "-mfma")), Unit(SOURCES / "core_avx512.cc", avx512)]
    included = [path for pattern in ("*.h", "*.inc", "*.cc") for path in SOURCES.rglob(pattern)]
    link = (*tf.sysconfig.get_link_flags(), *[f"-l:{xla.name}"] * xla.exists(), *extra)
    units = [Unit(unit.source, (*FLAGS, *unit.flags, *extra)) for unit in units]
    return build(units, included, link, _cache(), tf.__version__, force)


def build(
    units: Sequence[Unit], included: Sequence[Path], link: Sequence[str], cache: Path, version: str, force: bool = False
) -> Path:
    """Compiles `units`, which include `included`, to a library in `cache`, unless the cache contains this library.

    If several processes call it at once, one builds and the others wait. A damaged library is built again. Without a
    compiler, a library that another compiler built from the same sources is used.

    Raises:
        BuildError: as `library` does.
    """
    try:
        import fcntl  # Windows does not have it, but must be able to import the package
    except ImportError:
        raise BuildError(f"not on {platform.system()}: the kernel is built on POSIX systems only") from None

    cache = Path(os.path.realpath(cache))  # so that changing a link later has no effect
    compiler, sources = _compiler(), _source_key(units, included, link, version)
    try:
        if compiler is None:
            return _built_by_any_compiler(cache, sources)
        folder = _private(_private(cache) / f"{sources}-{_compiler_key(compiler)}")
        path = folder / LIBRARY
        if not force and _is_whole(folder):  # needs no lock, so the cache may be read-only
            return path
        with open(folder / LOCK, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
            if not force and _is_whole(folder):
                return path
            for left_behind in folder.glob("build-*"):
                shutil.rmtree(left_behind, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=folder, ignore_cleanup_errors=True) as temporary:
                LOGGER.warning("compiling the CPU kernel: once, about 20 s")
                built = _compile(units, link, compiler, Path(temporary))
                built.chmod(0o700)
                digest = _digest(built)
                if path.is_dir():
                    shutil.rmtree(path)
                os.replace(built, path)
                lock.truncate(0)
                lock.write(digest)
    except OSError as error:  # for example a full disk, a read-only file system, no locks, or missing sources
        raise BuildError(f"the kernel's cache {cache} cannot be used: {error}") from None
    return path


def _built_by_any_compiler(cache: Path, sources: str) -> Path:
    """A library in the cache that any compiler built from these sources."""
    built = [folder for folder in cache.glob(f"{sources}-*") if _is_whole(folder)]
    if not built:
        raise BuildError(
            f"no C++ compiler found (tried $CXX, c++, g++ and clang++), and {cache} holds no kernel that was built "
            "before with the same sources, TensorFlow and flags"
        )
    newest = max(built, key=lambda folder: (folder / LIBRARY).stat().st_mtime)
    return _private(_private(cache) / newest.name) / LIBRARY


def _is_whole(folder: Path) -> bool:
    """Whether the library is undamaged: its digest matches the lock file, and other users cannot write to it."""
    path = folder / LIBRARY
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & WRITABLE_BY_OTHERS:
            return False
        return _digest(path) == (folder / LOCK).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _source_key(units: Sequence[Unit], included: Sequence[Path], link: Sequence[str], version: str) -> str:
    """A key of everything that changes the library, except the compiler."""
    sources = sorted({*included, *(unit.source for unit in units)})
    try:
        texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sources]
    except OSError as error:
        raise BuildError(f"the kernel's sources cannot be read: {error}") from None
    flags = [f"{unit.source.name} {shlex.join(unit.flags)}" for unit in units]
    return _hash([version, platform.machine(), *link, *texts, *flags])


def _compiler_key(compiler: Sequence[str]) -> str:
    """A key of the compiler and its version."""
    return _hash([*compiler, _run_all([[*compiler, "--version"]])[0]])


def _hash(parts: Sequence[str]) -> str:
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
    except RuntimeError as error:  # the user has no home directory
        raise BuildError(f"no place for the kernel's cache: {error}; set RL_LNLSTM_CACHE") from None


def _private(folder: Path) -> Path:
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
            raise BuildError(
                f"the kernel's cache {folder} is not used, because {place} belongs to another user (its number is "
                f"{status.st_uid}): {ANOTHER_CACHE}"
            )
        is_open = status.st_mode & WRITABLE_BY_OTHERS and not (is_above and status.st_mode & stat.S_ISVTX)
        if is_open and not (is_above and _only_by_own_group(status)):
            raise BuildError(
                f"the kernel's cache {folder} is not used, because others may write to {place} (its mode is "
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


def _compiler() -> list[str] | None:
    """The command of the compiler, or None if there is none. $CXX is used without a check."""
    named = _words("CXX")
    if named:
        return named
    found = (name for name in ("c++", "g++", "clang++") if shutil.which(name))
    return next(([name] for name in found), None)


def _words(variable: str) -> list[str]:
    """The words of an environment variable, split as in a shell."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise BuildError(f"${variable} is {value!r}: {error}") from None


def _run_all(commands: Sequence[Sequence[str]]) -> list[str]:
    """Runs commands in parallel, and returns the output of each."""
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
                        env={**os.environ, "LC_ALL": "C"},  # a fixed language, because the version is in the key
                        process_group=0,
                    )
                )
            except OSError as error:
                raise BuildError(f"the C++ compiler {command[0]} does not run: {error}") from None
        outputs = [process.communicate()[0] for process in running]
    finally:
        for process in running:  # after an interrupt, kill those that still run, with the processes that they started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
    for process, command, output in zip(running, commands, outputs, strict=True):
        if process.returncode:
            said = "\n".join(output.splitlines()[-20:])
            raise BuildError(f"the C++ compiler {command[0]} failed with exit code {process.returncode}:\n{said}")
    return outputs
