"""Builds the operations in this folder with the system's C++ compiler, once per user, TensorFlow and compiler."""

from __future__ import annotations

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

from rl_lnlstm.cache import WRITABLE_BY_OTHERS, cache_folder, digest_of, key_of, private_folder
from rl_lnlstm.errors import UserError

LOGGER = logging.getLogger("rl_lnlstm")
SOURCES = Path(__file__).parent
LIBRARY = "rl_lnlstm_kernel.so"
LOCK = "lock"  # a file: locked while a process builds; contains the digest of the library
FLAGS = ("-O3", "-fPIC", "-std=c++17", "-DNDEBUG", "-fno-math-errno", "-w")


class BuildError(UserError):
    """The operations cannot be built or loaded. The message says why, and what to do."""


class Unit(NamedTuple):
    """A source file and the flags it is compiled with."""

    source: Path
    flags: tuple[str, ...]


def library(force: bool = False) -> Path:
    """The shared library of the operations. It is built if this user's cache does not contain it.

    The cache is `cache_folder()`. `$CXX` names the compiler, `$RL_LNLSTM_CXXFLAGS` adds flags, for example for a
    sanitizer.

    Args:
        force: build again even if the cache contains the library.

    Raises:
        BuildError: there is neither a compiler nor a library in the cache, or the compiler fails.
        CacheError: other users may write to the cache.
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
    # On macOS, some of TensorFlow's symbols are found only when the library is loaded.
    undefined = ("-undefined", "dynamic_lookup") * (platform.system() == "Darwin")
    link = (*tf.sysconfig.get_link_flags(), *[f"-l:{xla.name}"] * xla.exists(), *undefined, *extra)
    units = [Unit(unit.source, (*FLAGS, *unit.flags, *extra)) for unit in units]
    return build(units, included, link, cache_folder(), tf.__version__, force)


def build(
    units: Sequence[Unit], included: Sequence[Path], link: Sequence[str], cache: Path, version: str, force: bool = False
) -> Path:
    """Compiles `units`, which include `included`, to a library in `cache`, unless the cache contains this library.

    If several processes call it at once, one builds and the others wait. A damaged library is built again. Without a
    compiler, a library that another compiler built from the same sources is used.

    Raises:
        BuildError, CacheError: as `library` does.
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
        folder = private_folder(private_folder(cache) / f"{sources}-{_compiler_key(compiler)}")
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
                digest = digest_of(built)
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
    return private_folder(private_folder(cache) / newest.name) / LIBRARY


def _is_whole(folder: Path) -> bool:
    """Whether the library is undamaged: its digest is that in the lock file, and other users cannot write to it."""
    path = folder / LIBRARY
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & WRITABLE_BY_OTHERS:
            return False
        return digest_of(path) == (folder / LOCK).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _source_key(units: Sequence[Unit], included: Sequence[Path], link: Sequence[str], version: str) -> str:
    """A key of everything that changes the library, except the compiler."""
    sources = sorted({*included, *(unit.source for unit in units)})
    try:
        texts = [f"{path.name}\n{path.read_text(encoding='utf-8')}" for path in sources]
    except OSError as error:
        raise BuildError(f"the kernel's sources cannot be read: {error}") from None
    flags = [f"{unit.source.name} {shlex.join(unit.flags)}" for unit in units]
    return key_of([version, platform.machine(), *link, *texts, *flags])


def _compiler_key(compiler: Sequence[str]) -> str:
    """A key of the compiler and its version."""
    return key_of([*compiler, _run_all([[*compiler, "--version"]])[0]])


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
