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
def silenced() -> Iterator[None]:
    """A context manager in which nothing is printed on standard error, not even by C++."""
    if sys.stderr is not None:
        sys.stderr.flush()
    stderr, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(silence)
