"""Environments in a process each. That one dies, hangs or raises is an answer beside the others' answers."""

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
    CloudpickleWrapper,
    batch_space,
    clear_mpi_env_vars,
    create_shared_memory,
    read_from_shared_memory,
)

from rl_lnlstm.envs.faults import FAULT, Fault, WorkerTraceback
from rl_lnlstm.envs.worker_process import STARTED, Description, describe, run_worker
from rl_lnlstm.errors import EnvironmentFailure, UserError

# Seconds that a worker may take even if the timeout is less:
START_SECONDS = 180.0  # for its process to start, which may have to import a simulator, beside many others
CONSTRUCTION_SECONDS = 20.0  # for the constructor of its environment and the first command
CALL_SECONDS = 60.0  # for a command that is no step or reset
CLOSE_SECONDS = 60.0  # and never more for closing, because closing has to end


class WorkerVectorEnv(AsyncVectorEnv):
    """Gymnasium's, but a worker that fails is told as a `Fault` in the infos, and can be replaced.

    Args:
        env_fns: make the environments. What they make has to answer also when it fails, unless its process dies.
        name: for messages.
        autoreset_mode: as Gymnasium's.
        timeout: seconds that a worker may take for a step or a reset, None for any time.

    Raises:
        UserError: `env_fns` cannot be sent to another process, or raise it.
        EnvironmentFailure: `env_fns` raise it, or a worker dies or hangs while it makes its environment.
    """

    def __init__(
        self, env_fns: Sequence[Callable[[], gym.Env]], name: str, autoreset_mode: AutoresetMode, timeout: float | None
    ) -> None:
        try:
            cloudpickle.dumps(env_fns)
        except Exception as error:
            raise UserError(f"{name}: cannot be sent to a worker process, {type(error).__name__}: {error}") from error
        # Gymnasium's own constructor is not called: it does not keep what it takes to start another worker.
        self.env_fns, self.num_envs, self.autoreset_mode = env_fns, len(env_fns), autoreset_mode
        self.shared_memory, self.copy, self.observation_mode = True, True, "same"
        self.parent_pipes, self.processes, self._state = [], [], AsyncState.DEFAULT
        self._name, self._timeout = name, timeout
        # Not fork: a child of a process in which TensorFlow runs threads inherits locks that nobody will release. A
        # fork server is started afresh, has no such threads, and forks workers as fast; it imports Gymnasium once.
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
            self._check_spaces()
        except BaseException:
            self.close(terminate=True)
            raise

    def restart(self, index: int, seed: int | None) -> tuple[Any, dict[str, Any]]:
        """Replaces a worker by a new one and resets its environment; returns the observations of all, and its info.

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
        """As Gymnasium's, but it may also follow a call that was interrupted."""
        if self._state is not AsyncState.DEFAULT:
            self._resynchronise()
        super().reset_async(seed, options)

    def _resynchronise(self) -> None:
        """Takes the answers to an interrupted call out of the pipes. Workers that may have sent half of one go."""
        pipes: list[Any] = self.parent_pipes
        for index, pipe in enumerate(pipes):
            if not pipe.drained():
                pipe.kill()
                pipes[index], self.processes[index] = self._start(index)
        self._state = AsyncState.DEFAULT

    def _described(self) -> Description:
        """What an environment says of itself, which is made in a process that ends at once."""
        pipe, process = self._started_process("description", describe, self.env_fns[0])
        pipe.expect("describe")
        content, success = pipe.recv()
        if not success:
            self._raise(pipe.error, 0)
        process.join(min(CLOSE_SECONDS, self._timeout or CLOSE_SECONDS))
        pipe.kill()
        return cloudpickle.loads(content)

    def _start(self, index: int) -> tuple[Any, Any]:
        # Versions of Gymnasium differ in how many arguments their worker takes: the last one is a semaphore.
        last = (self._buffer, None, self.autoreset_mode, None)[: len(inspect.signature(_async_worker).parameters) - 4]
        return self._started_process(str(index), run_worker, self.env_fns[index], index, *last)

    def _started_process(
        self, what: str, target: Callable[..., None], env_fn: Callable[[], gym.Env], *args: Any
    ) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        wrapped = CloudpickleWrapper(env_fn)
        arguments = (args[0], wrapped, theirs, ours, *args[1:]) if args else (wrapped, theirs)
        process = self._context.Process(target=target, name=f"Worker<{self._name}>-{what}", args=arguments, daemon=True)
        with clear_mpi_env_vars(), _main_not_imported():
            process.start()
        theirs.close()
        return _WorkerPipe(ours, process, self._timeout), process

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        # Only for what is no step or reset, whose failures are answers. Gymnasium's raises the last one, and logs all.
        pipes: list[Any] = self.parent_pipes
        for index, (pipe, success) in enumerate(zip(pipes, successes, strict=True)):
            if not success:
                self._state = AsyncState.DEFAULT
                self._raise(pipe.error, index)

    def _raise(self, error: BaseException, index: int) -> None:
        if isinstance(error, Fault):
            where = f"{self._name} (environment {index} in 0..{self.num_envs - 1})"
            raise EnvironmentFailure(f"{where} {error}") from error.__cause__
        raise error

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """As Gymnasium's, but a worker that is dead, busy or hangs does not keep it longer than a step may take."""
        # A call that Ctrl-C interrupted has left answers in some of the pipes. Such workers are not asked to close.
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
    """The parent's end of a worker's pipe. It answers in the worker's place if that fails, and ends it."""

    def __init__(self, connection: Connection, process: Any, timeout: float | None) -> None:
        self.error: BaseException | None = None  # what a command raised that is no step or reset
        self._connection, self._process, self._timeout = connection, process, timeout
        self._command = ""
        self._allowed = self._deadline = float("inf")  # seconds for the answer, and when they are over
        self._started = self._awaited = False
        self._in_transfer = False  # a message is being sent or read; if this was interrupted, half of it is in the pipe

    def send(self, message: tuple[str, Any], seconds: float | None = None) -> None:
        """Sends a command, whose answer may take so many seconds, or as many as commands of its kind may."""
        self.expect(message[0], seconds)
        self._in_transfer = True
        with contextlib.suppress(OSError):  # it is dead, as `recv` will find
            self._connection.send(message)
        self._in_transfer = False

    def expect(self, command: str, seconds: float | None = None) -> None:
        """From now on an answer to that command is awaited."""
        self._command, self._awaited = command, True
        least = 0.0 if command in ("step", "reset") else CALL_SECONDS
        self._allow(self._at_least(least) if seconds is None else seconds)

    def recv(self) -> tuple[Any, bool]:
        """The answer, and whether it is one."""
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
        if self._command == "reset-noop":  # a reset of others: the next step will tell
            return (None, {}), True
        self.error = error
        return None, False

    def drained(self) -> bool:
        """Takes out the answer to an interrupted command; false if the pipe may hold half a message."""
        if self._in_transfer:
            return False
        if self._awaited and not self._connection.closed:
            self.recv()
        return True

    def kill(self) -> None:
        """Ends the worker, whatever it does, and the pipe."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _await_start(self) -> None:
        """Waits for the process. Then the first command's time begins, in which the environment is made, too."""
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
        """Waits for something to read, until the time is over."""
        while True:
            remaining = max(0.0, self._deadline - time.monotonic())
            if self._connection.poll(min(remaining, 3600.0)):
                return True
            if remaining == 0:
                return False

    def _read(self) -> Any:
        self._in_transfer = True
        message = self._connection.recv()
        self._in_transfer = self._awaited = False
        return message


def _as_fault(error: BaseException) -> Fault:
    if isinstance(error, Fault):
        return error
    did = "failed again" if isinstance(error, EnvironmentFailure | UserError) else f"raised {type(error).__name__}"
    return Fault(f"{did}: {error}", error.__cause__)


def _start_fork_server() -> None:
    """Starts the fork server with SIGTERM blocked.

    A SIGTERM for the whole process group would otherwise end it, and with it all news of workers. It handles Ctrl-C
    itself, and it ends with this process.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # otherwise the other starts it, which unblocks the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _main_not_imported() -> Iterator[None]:
    # Except under fork, multiprocessing runs the user's script again in every worker, as a module: 12 s for 4 workers
    # instead of 0.2 s if it imports TensorFlow, and an endless recursion if it has no `if __name__ == "__main__"`.
    # Nothing needs it: what is defined in the script travels by value (cloudpickle), and so do its registrations.
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.update(hidden)
