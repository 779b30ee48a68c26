"""Output of the commands, and importing TensorFlow without its messages."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from rl_lnlstm.errors import RunFailure, UserError, ignoring_write_errors, printable
from rl_lnlstm.terminal import MessageConsole, redirected, silenced

MAX_CHARACTERS = 10_000  # the longest message

messages = MessageConsole()


def tell(message: str) -> None:
    """Prints a message on standard error, safely (see `printable`), and without breaking its lines."""
    with ignoring_write_errors():
        messages.print(printable(message, MAX_CHARACTERS), markup=False, soft_wrap=True)


def output(text: str) -> None:
    """Prints text on standard output.

    Raises:
        RunFailure: it cannot be written, for example because the disk is full.
        BrokenPipeError: the reader has closed the pipe.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(sys.stdout)
        raise RunFailure(f"standard output cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def prints_on_stderr() -> Iterator[None]:
    """Sends what environments print to standard error, also from C code and from child processes.

    Standard output is for the command's result.
    """
    sys.stdout.flush()
    with redirected(1, 2), contextlib.redirect_stdout(sys.stderr):
        try:
            yield
        finally:
            if sys.platform != "win32":
                ctypes.CDLL(None).fflush(None)  # what C code has printed


def discard(*streams: TextIO) -> None:
    """Redirects the streams to nowhere. Otherwise Python would try to write again when it exits."""
    for stream in streams:
        with contextlib.suppress(OSError):
            stream.flush()  # what can still be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def open_standard_streams() -> None:
    """Opens standard output and standard error to nowhere if the program was started without them (`2>&-`).

    Otherwise their descriptors would be those of the next files, and what C code prints would be written to these.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            os.set_inheritable(descriptor, True)  # `dup2` does nothing if `open` has returned the descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow with standard error closed, because it ignores its log level until it is imported.

    The garbage collector is off during the import. Afterwards it ignores the imported objects, because they all stay.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        gc.disable()
        with silenced():
            # Import here, because `--help` should not wait for TensorFlow.
            import rl_lnlstm.lstm.layer  # noqa: F401
    except ImportError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if backend != "tensorflow":
            raise UserError(f"the backend of Keras must be TensorFlow, got KERAS_BACKEND={backend}: {error}") from error
        raise UserError(f"a package that is needed cannot be imported: {error}") from error
    finally:
        gc.enable()
        gc.freeze()
