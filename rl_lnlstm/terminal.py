"""Messages on the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console


class MessageConsole(Console):
    """A console on standard error. If its reader has gone, it raises `BrokenPipeError`.

    rich's own console then redirects standard *output* to nowhere, and ends the process.
    """

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Raises the error again."""
        raise BrokenPipeError


@contextlib.contextmanager
def redirected(descriptor: int, target: int) -> Iterator[None]:
    """A context manager in which what is written to a file descriptor goes to another one, also from C code."""
    kept = os.dup(descriptor)
    try:
        os.dup2(target, descriptor)
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """A context manager in which nothing is printed on standard error, not even by C++."""
    if sys.stderr is not None:
        sys.stderr.flush()
    with open(os.devnull, "wb") as nowhere, redirected(2, nowhere.fileno()):
        yield
