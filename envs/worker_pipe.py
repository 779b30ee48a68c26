"""The parent's end of the pipe to a worker process, with limits of time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

from rl_lnlstm.envs.faults import FAULT, Fault, WorkerTraceback
from rl_lnlstm.envs.worker_process import STARTED
from rl_lnlstm.errors import EnvironmentFailure, UserError

# Seconds that a worker may always take, even if the timeout is shorter:
START_SECONDS = 180.0  # to start its process, which may import a simulator while many others do the same
CONSTRUCTION_SECONDS = 20.0  # for the environment's constructor and the first command
CALL_SECONDS = 60.0  # for commands other than step and reset


class WorkerPipe:
    """The parent's end of a worker's pipe. If the worker fails, it ends the worker and answers in its place."""

    def __init__(self, connection: Connection, process: Any, timeout: float | None) -> None:
        self.error: BaseException | None = None  # the error of a command other than step and reset
        self._connection, self._process, self._timeout = connection, process, timeout
        self._command = ""
        self._allowed = self._deadline = float("inf")  # seconds for the answer, and the time when they are over
        self._started = self._awaited = False
        self._in_transfer = False  # true while a message is sent or read; if interrupted, the pipe holds half of it

    def send(self, message: tuple[str, Any], seconds: float | None = None) -> None:
        """Sends a command. Its answer may take `seconds`, or as long as commands of its kind usually may."""
        self._in_transfer = True  # set first, so that no code waits for the answer to a command that was never sent
        self.expect(message[0], seconds)
        with contextlib.suppress(OSError):  # the worker is dead; `recv` will notice
            self._connection.send(message)
        self._in_transfer = False

    def expect(self, command: str, seconds: float | None = None) -> None:
        """Starts the time in which the answer to a command must arrive."""
        self._command, self._awaited = command, True
        least = 0.0 if command in ("step", "reset") else CALL_SECONDS
        self._allow(self._at_least(least) if seconds is None else seconds)

    def recv(self) -> tuple[Any, bool]:
        """Returns the answer, and whether the command succeeded."""
        try:
            if not self._started:
                self._await_start()
            if self._arrives():
                answer, success = self._read()
                if success:
                    return answer, True
                error, text = answer
                error.__cause__ = WorkerTraceback(text)
            else:
                error = Fault(f"did not answer within {self._allowed:g} s and was killed")
        except (EOFError, OSError):
            self._process.join(5)
            error = Fault(f"lost its worker process, which ended with exit code {self._process.exitcode}")
        self.kill()
        # A failed step or reset has its answer. After other commands, the worker must be replaced before the next step.
        self._awaited = self._command not in ("step", "reset", "reset-noop")
        self._in_transfer, self._started = False, True
        if self._command == "step":
            return (None, 0.0, False, False, {FAULT: _as_fault(error)}), True
        if self._command == "reset":
            return (None, {FAULT: _as_fault(error)}), True
        if self._command == "reset-noop":  # other environments are reset; the next step reports this failure
            return (None, {}), True
        self.error = error
        return None, False

    @property
    def interrupted(self) -> bool:
        """Whether an interrupt left it in the middle of a command, or a command other than step and reset failed."""
        return self._in_transfer or self._awaited or not self._started

    @property
    def alive(self) -> bool:
        """Whether the worker is running."""
        return not self._connection.closed and self._process.is_alive()

    def drained(self) -> bool:
        """Discards the answer to an interrupted command. Returns false if the pipe may hold anything else."""
        if self._in_transfer or not self._started:
            return False
        if self._awaited and not self._connection.closed:
            self.recv()
        return True

    def kill(self) -> None:
        """Kills the worker and the processes that it started, such as a simulator, and closes the pipe.

        A worker that has ended in order has closed its environment, and what still runs then may be meant to.
        """
        if self._started and hasattr(os, "killpg") and not self._connection.closed and self._process.exitcode != 0:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nothing is left in the group
                os.killpg(self._process.pid, signal.SIGKILL)  # the worker leads it, see `run_worker`
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _await_start(self) -> None:
        """Waits for the process to start. Then the time for the constructor and the first command begins."""
        closing = self._command == "close"
        if not closing:
            self._allow(self._at_least(START_SECONDS))
        if self._arrives():
            message = self._read()
            assert message == STARTED
            self._started = self._awaited = True
            if not closing:
                self._allow(self._at_least(CONSTRUCTION_SECONDS))

    def _at_least(self, seconds: float) -> float:
        return float("inf") if self._timeout is None else max(self._timeout, seconds)

    def _allow(self, seconds: float) -> None:
        self._allowed, self._deadline = seconds, time.monotonic() + seconds

    def _arrives(self) -> bool:
        """Waits until there is something to read, or the time is over."""
        while True:
            remaining = max(0.0, self._deadline - time.monotonic())
            if self._connection.poll(min(remaining, 3600.0)):
                return True
            if remaining == 0:
                return False

    def _read(self) -> Any:
        self._in_transfer = True
        message = self._connection.recv()
        self._awaited = self._in_transfer = False  # in this order, for an interrupt in between
        return message


def _as_fault(error: BaseException) -> Fault:
    if isinstance(error, Fault):
        return error
    did = "failed again" if isinstance(error, EnvironmentFailure | UserError) else f"raised {type(error).__name__}"
    return Fault(f"{did}: {error}", error.__cause__)
