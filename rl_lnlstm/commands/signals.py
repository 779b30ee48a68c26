"""Ctrl-C (SIGINT), SIGTERM and SIGHUP end a run after its iteration. SIGTERM has a deadline."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

GRACE = 8.0  # seconds from SIGTERM to the end of the process; many schedulers kill after 10


class Stop:
    """Records whether the process was asked to end.

    During training, the first signal is only recorded, and the run ends after its iteration. A second signal raises
    `KeyboardInterrupt`. In a block `with stop.at_once()`, where nothing can be lost, the first signal raises it.

    Attributes:
        signal: number of the first signal, None if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = True

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.signal is not None

    def note(self, number: int, _: Any) -> None:
        """The signal handler."""
        again, self.signal = self.requested, self.signal or number
        if again or not self._deferred:
            raise KeyboardInterrupt
        # Not with `tell`: the main thread may be writing to the same stream, which would raise an error.
        with contextlib.suppress(OSError):  # Ctrl-C may have ended the reader too; the iteration goes on
            os.write(2, b"stopping after this iteration; press Ctrl-C again to stop at once\n")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context manager: inside its block, the first signal raises `KeyboardInterrupt`."""
        if self.requested:
            raise KeyboardInterrupt
        self._deferred = False
        try:
            yield
        finally:
            self._deferred = True


@contextlib.contextmanager
def signals() -> Iterator[Stop]:
    """A context manager that gives a `Stop`, which receives SIGINT, SIGTERM and SIGHUP inside the block.

    Under `nohup`, SIGHUP stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # Python delivers signals only to the main thread
        yield stop
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # a terminal that closes; Windows has none
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        numbers.append(hangup)
    before = {number: signal.signal(number, stop.note) for number in numbers}
    with _deadline():
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Ends the process `GRACE` seconds after SIGTERM, if it is still in the block.

    The signal wakes a thread that waits for the deadline. A signal handler could not do this, because Python runs none
    while the main thread is in a compiled update. Files are always complete, so only the iteration is lost.
    """
    ended = threading.Event()
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while received := woken.recv(1):
            if received[0] == signal.SIGTERM and not ended.wait(GRACE):
                os.write(2, b"the iteration did not end in time: stopped in the middle, after the newest checkpoint\n")
                os._exit(128 + signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        waker.close()
        watcher.join()
        woken.close()
