"""Messages on the terminal."""

from __future__ import annotations

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
