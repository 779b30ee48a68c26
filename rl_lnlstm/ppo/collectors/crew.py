"""`Crew`: the workers of a run. It calls them all, and replaces those that die or freeze."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rl_lnlstm.envs.faults import WorkerTraceback
from rl_lnlstm.errors import WorkerFailure, warn
from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.ppo.collectors.worker import Answer, Message, WorkerState

START_SECONDS = 180.0  # that a worker may always take to start: many at once import TensorFlow slowly
POLL_SECONDS = 1.0

log = logging.getLogger(__name__)


class WorkerLost(Exception):
    """A worker died or cannot be reached; the message says how, in words that follow its name."""


class Transport(Protocol):
    """Starts workers, and carries calls to them. Handles and futures are the transport's own."""

    def share(self, value: Any) -> Any:
        """Makes a value available to all workers. Returns what to pass to `submit` in its place."""

    def start(self, share: Share) -> Any:
        """Starts a `Worker` and returns its handle, perhaps before it has started."""

    def submit(self, worker: Any, arguments: Sequence[Any]) -> Any:
        """Calls `Worker.call`, and returns a future. Calls of one worker run in the order of submission."""

    def ready(self, futures: Sequence[Any], seconds: float) -> Sequence[Any]:
        """Waits until at least one call has ended, or the time is over. Returns the futures of those that have."""

    def result(self, future: Any) -> Answer:
        """The answer to a call that has ended.

        Raises:
            WorkerLost: the worker died.
        """

    def misplaced(self, worker: Any) -> bool:
        """Whether a new worker in place of this one would be in a better place."""

    def stranded(self, worker: Any) -> bool:
        """Whether a worker cannot start where it was to start, but another one could."""

    def kill(self, worker: Any) -> None:
        """Ends a worker, even one that is frozen."""

    def close(self) -> None:
        """Ends all workers."""


class Crew:
    """The workers of a run, one for each share of its environments, in a fixed order.

    A worker that dies, or takes too long, is replaced. The new worker continues from the state that the old one had
    before the call, and repeats the call. So it gives the same results.

    Args:
        transport: starts the workers.
        shares: the environments of each worker.
        setup: see `Worker.call`.
        timeout: seconds that a call may take; None for no limit.
        max_failures: how many times in a row workers may be replaced.

    Attributes:
        states: the state of each worker after the last call; None before `begin`.
        seconds: how long the slowest worker ran in the last call.
    """

    def __init__(
        self, transport: Transport, shares: Sequence[Share], setup: bytes, timeout: float | None, max_failures: int
    ) -> None:
        self.shares = shares
        self.states: list[WorkerState | None] = [None] * len(shares)
        self._transport, self._timeout, self._max_failures = transport, timeout, max_failures
        self._setup, self._policy = transport.share(setup), None
        self._workers = [transport.start(share) for share in shares]
        self._is_set_up, self._has_policy = ([False] * len(shares) for _ in range(2))
        self.seconds = 0.0
        self._in_a_row = 0
        self._interrupted = False

    def begin(self, policy: bytes) -> None:
        """Gives the policy, pickled, to all workers."""
        self._policy = self._transport.share(policy)
        self.call("begin")

    def call(self, method: str, *arguments: Sequence[Any]) -> list[Any]:
        """Calls a method of all workers.

        Args:
            method: the name of the method.
            *arguments: for each argument, its value for each worker.

        Returns:
            The results of the workers, in order.

        Raises:
            WorkerFailure: workers were lost too many times in a row.
            Exception: what the method raised.
        """
        for index, worker in enumerate(self._workers):
            state = self.states[index]
            is_movable = self._has_policy[index] and state is not None and state.snapshot is not None
            if is_movable and self._transport.misplaced(worker):
                self._replace(index)
        before, answers = self._in_a_row, dict[int, Answer]()
        pending = {index: self._submit(index, method, arguments) for index in range(len(self.shares))}
        # After Ctrl-C, workers may still run the call before.
        deadlines = {index: self._deadline(index, calls=2 if self._interrupted else 1) for index in pending}
        self._interrupted = True  # until all have answered
        while pending:
            of_future = {future: index for index, future in pending.items()}
            ready = self._transport.ready(list(of_future), POLL_SECONDS)
            lost: dict[int, str] = {}
            for future in ready:
                index = of_future[future]
                try:
                    answers[index] = self._transport.result(future)
                    del pending[index]
                except WorkerLost as error:
                    lost[index] = str(error)
            now = time.monotonic()
            lost |= {
                index: f"did not answer within {self._timeout:g} s"
                for index in pending
                if index not in lost and now > deadlines[index]
            }
            stranded = [
                index
                for index in pending
                if not (self._has_policy[index] or index in lost) and self._transport.stranded(self._workers[index])
            ]
            for index in sorted([*lost, *stranded]):
                if index in lost:
                    self._count(index, lost[index])
                self._replace(index)
                pending[index] = self._submit(index, method, arguments)
                deadlines[index] = self._deadline(index)
        self._interrupted = False
        if method == "collect" and self._in_a_row == before:
            self._in_a_row = 0
        return self._read([answers[index] for index in range(len(self.shares))])

    def _submit(self, index: int, method: str, arguments: Sequence[Sequence[Any]]) -> Any:
        is_new = not self._has_policy[index]
        setup = None if self._is_set_up[index] else self._setup
        start = (setup, self._policy, self.states[index]) if is_new else (None, None, None)
        return self._transport.submit(
            self._workers[index], [method, *start, *(of_worker[index] for of_worker in arguments)]
        )

    def _deadline(self, index: int, calls: int = 1) -> float:
        if self._timeout is None:
            return float("inf")
        starting = 0.0 if self._has_policy[index] else START_SECONDS
        return time.monotonic() + starting + calls * self._timeout

    def _count(self, index: int, reason: str) -> None:
        self._in_a_row += 1
        share = self.shares[index]
        message = f"worker {index} (environments {share.first} to {share.numbers[-1]}) {reason}"
        if self._in_a_row > self._max_failures:
            raise WorkerFailure(
                f"{message}: failure number {self._in_a_row} in a row, of which "
                f"max_worker_failures={self._max_failures} are allowed"
            )
        log.warning("%s; a new worker takes its place", message)

    def _replace(self, index: int) -> None:
        self._transport.kill(self._workers[index])
        self._is_set_up[index] = self._has_policy[index] = False
        self._workers[index] = self._transport.start(self.shares[index])

    def _read(self, answers: Sequence[Answer]) -> list[Any]:
        """Shows the messages, raises the first error, and keeps the states."""
        for answer in answers:
            for message in answer.messages:
                _show(message)
        for answer in answers:
            if answer.error is not None:
                raise answer.error from WorkerTraceback(answer.traceback)
        self._is_set_up = [True] * len(answers)
        self._has_policy = [answer.state is not None for answer in answers]
        self.states = [answer.state for answer in answers]
        self.seconds = max(answer.seconds for answer in answers)
        return [answer.value for answer in answers]


def _show(message: Message) -> None:
    if message.level is None:
        warn(message.text)
    else:
        logging.getLogger("rl_lnlstm").log(message.level, "%s", message.text)
