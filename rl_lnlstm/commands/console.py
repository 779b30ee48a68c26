"""Output of the commands."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from rl_lnlstm.errors import RunFailure, ignoring_write_errors, printable
from rl_lnlstm.terminal import MessageConsole, redirected

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
