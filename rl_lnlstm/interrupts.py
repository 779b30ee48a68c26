"""Ctrl-C during what must not be done by halves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Delays Ctrl-C: KeyboardInterrupt is raised at the end of the block, so the block always runs completely.

    Only Python's default handler of SIGINT is replaced. If you installed a handler of your own, it stays in charge.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    received: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: received.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        signal.default_int_handler(*received[-1])
