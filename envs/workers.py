"""Environments that run in a process each. If one dies, hangs or raises, the others still answer."""

from __future__ import annotations

import contextlib
import copy
import inspect
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import cloudpickle
import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker
from gymnasium.vector.utils import (
    batch_space,
    clear_mpi_env_vars,
    create_shared_memory,
    read_from_shared_memory,
)

from rl_lnlstm.envs.faults import FAULT, Fault, Numbering, WorkerTraceback, comparing_spaces
from rl_lnlstm.envs.worker_process import STARTED, Description, describe, run_worker
from rl_lnlstm.errors import EnvironmentFailure, UserError, warn
from rl_lnlstm.interrupts import interrupts_deferred

# Seconds that a worker may always take, even if the timeout is shorter:
START_SECONDS = 180.0  # to start its process, which may import a simulator while many others do the same
CONSTRUCTION_SECONDS = 20.0  # for the environment's constructor and the first command
CALL_SECONDS = 60.0  # for commands other than step and reset
CLOSE_SECONDS = 60.0  # also the longest time for closing, which must end some time


class WorkerVectorEnv(AsyncVectorEnv):
    """Like Gymnasium's `AsyncVectorEnv`, but a failed worker becomes a `Fault` in the infos, and can be replaced.

    Args:
        env_fns: functions that make the environments. The environments must return failures (see `Guard`).
        name: the name of the environments in messages.
        autoreset_mode: as in Gymnasium.
        timeout: seconds that a worker may take for a step or a reset; None for no limit.
        numbering: the numbers of the environments in messages.

    Raises:
        UserError: `env_fns` cannot be sent to another process, or raise this error.
        EnvironmentFailure: `env_fns` raise this error, or a worker dies or hangs while it makes its environment.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        name: str,
        autoreset_mode: AutoresetMode,
        timeout: float | None,
        numbering: Numbering,
    ) -> None:
        try:
            cloudpickle.dumps(env_fns)
        except Exception as error:
            raise UserError(f"{name}: cannot be sent to a worker process, {type(error).__name__}: {error}") from error
        # Do not call Gymnasium's constructor, because it does not keep what is needed to start another worker.
        self.env_fns, self.num_envs, self.autoreset_mode = env_fns, len(env_fns), autoreset_mode
        self.shared_memory, self.copy, self.observation_mode = True, True, "same"
        self.parent_pipes, self.processes, self._state = [], [], AsyncState.DEFAULT
        self._name, self._timeout, self._numbering = name, timeout, numbering
        # Do not use fork: TensorFlow runs threads, and a forked child would inherit locks that are never released. A
        # fork server is a fresh process without such threads. It imports Gymnasium once, and forks workers just as
        # fast.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = cast(Any, multiprocessing.get_context(method))
        if method == "forkserver":
            self._context.set_forkserver_preload(["gymnasium.vector"])
            _start_fork_server()
        description = self._described()
        self.metadata = {**description.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = description.render_mode
        self.single_observation_space = description.observation_space
        self.single_action_space = description.action_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        space, count = self.single_observation_space, self.num_envs
        self._buffer = create_shared_memory(space, count, ctx=self._context)
        self.observations = read_from_shared_memory(space, self._buffer, count)
        try:
            for index in range(count):
                pipe, process = self._start(index)
                self.parent_pipes.append(pipe)
                self.processes.append(process)
            with comparing_spaces():
                self._check_spaces()
        except BaseException:
            self.close(terminate=True)
            raise

    def restart(self, index: int, seed: int | None) -> tuple[Any, dict[str, Any]]:
        """Replaces a worker by a new one and resets its environment. Returns the observations of all, and its info.

        Raises:
            EnvironmentFailure: the process cannot be started.
        """
        pipes: list[Any] = self.parent_pipes
        pipes[index].kill()
        pipes[index], self.processes[index] = self._start(index)
        pipes[index].send(("reset", {"seed": seed, "options": None}))
        (_, info), _ = pipes[index].recv()  # the observation is in shared memory
        return copy.deepcopy(self.observations), info

    def reset_async(self, seed: Any = None, options: dict[str, Any] | None = None) -> None:
        """Like Gymnasium's, but you may also call it after an interrupted call."""
        pipes: list[Any] = self.parent_pipes
        # Gymnasium notes its state after all commands were sent. Only the pipes show an interrupt before that.
        if self._state is not AsyncState.DEFAULT or any(pipe.interrupted for pipe in pipes):
            self._resynchronise()
        super().reset_async(seed, options)

    def _resynchronise(self) -> None:
        """Clears the pipes after an interrupted call. Ends workers whose pipe may hold half a message."""
        pipes: list[Any] = self.parent_pipes
        for index, pipe in enumerate(pipes):
            if not (pipe.drained() and pipe.alive):  # it is dead if this method was interrupted before
                pipe.kill()
                pipes[index], self.processes[index] = self._start(index)
        self._state = AsyncState.DEFAULT

    def _described(self) -> Description:
        """The `Description` of an environment. A process makes the environment for this, and ends afterwards."""
        pipe, process = self._started_process("description", describe, self.env_fns[0])
        try:
            pipe.expect("describe")
            content, success = pipe.recv()
            if not success:
                self._raise(pipe.error, 0)
            process.join(min(CLOSE_SECONDS, self._timeout or CLOSE_SECONDS))
        finally:
            pipe.kill()
        description = cloudpickle.loads(content)
        for message in description.warnings:
            warn(message)
        return description

    def _start(self, index: int) -> tuple[Any, Any]:
        # Versions of Gymnasium differ in the number of arguments of their worker. The last one is a semaphore.
        last = (self._buffer, None, self.autoreset_mode, None)[: len(inspect.signature(_async_worker).parameters) - 4]
        return self._started_process(str(index), run_worker, self.env_fns[index], index, *last)

    def _started_process(
        self, what: str, target: Callable[..., None], env_fn: Callable[[], gym.Env], *args: Any
    ) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        # The worker unpickles the function itself, after it has prepared for Ctrl-C and for the end of this process. It
        # may import much.
        pickled = cloudpickle.dumps(env_fn)
        arguments = (args[0], pickled, theirs, ours, *args[1:]) if args else (pickled, theirs)
        process = self._context.Process(target=target, name=f"Worker<{self._name}>-{what}", args=arguments, daemon=True)
        # An interrupt in the middle would leave a process that nobody knows, and break the fork server for others.
        pipe = None
        try:
            with clear_mpi_env_vars(), _main_not_imported(), interrupts_deferred():
                process.start()
                theirs.close()
                pipe = _WorkerPipe(ours, process, self._timeout)
        except BaseException:
            if pipe is not None:
                pipe.kill()
            raise
        return pipe, process

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        # Only for commands other than step and reset. Gymnasium's method would log all errors and raise the last one.
        pipes: list[Any] = self.parent_pipes
        for index, (pipe, success) in enumerate(zip(pipes, successes, strict=True)):
            if not success:
                self._state = AsyncState.DEFAULT
                self._raise(pipe.error, index)

    def _raise(self, error: BaseException, index: int) -> None:
        if isinstance(error, Fault):
            raise EnvironmentFailure(f"{self._numbering.named(self._name, index)} {error}") from error.__cause__
        raise error

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """Like Gymnasium's, but it waits no longer than a step may take for a worker that is dead, busy or hanging."""
        # After a call that Ctrl-C interrupted, some pipes still hold answers. Do not ask these workers to close.
        pipes: list[Any] = self.parent_pipes
        if self._state is AsyncState.DEFAULT and not terminate:
            limit = min(limit for limit in (timeout, self._timeout, CLOSE_SECONDS) if limit is not None)
            deadline = time.monotonic() + limit
            for pipe in pipes:
                pipe.send(("close", None), limit)
            for pipe in pipes:
                pipe.recv()
            for process in self.processes:
                process.join(max(0.0, deadline - time.monotonic()))
        for pipe in pipes:
            pipe.kill()


class _WorkerPipe:
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
        """Whether an interrupt left it in the middle of a command."""
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
        """Kills the worker and closes the pipe."""
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


def _start_fork_server() -> None:
    """Starts the fork server, and Python's resource tracker, with SIGTERM and SIGHUP blocked.

    Otherwise such a signal to the whole process group would end them, and nothing could be learnt about workers any
    more. They handle Ctrl-C themselves, and they end with this process.
    """
    from multiprocessing import forkserver, resource_tracker

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()  # not later by the fork server, because this unblocks SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _main_not_imported() -> Iterator[None]:
    # Without fork, multiprocessing imports the user's script again in every worker. That takes 12 s instead of 0.2 s
    # for 4 workers if it imports TensorFlow, and never ends if it has no `if __name__ == "__main__"`. We do not need
    # it: cloudpickle sends what the script defines by value, and registrations are sent too.
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.update(hidden)
