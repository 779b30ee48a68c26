"""Environments in a process each, whose death, delay or error is an answer among others."""

import contextlib
import copy
import inspect
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
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
from rl_lnlstm.errors import EnvironmentFailure, UserError

START_SECONDS = 60.0  # for a new worker's first answer, if `timeout` is less: it may have to import a simulator


class WorkerVectorEnv(AsyncVectorEnv):
    """Gymnasium's, but a worker that fails is told as a `Fault` in the infos, and can be replaced.

    Args:
        env_fns: make the environments; what they make has to answer also when it fails, unless its process dies.
        name: for messages.
        autoreset_mode: as Gymnasium's.
        timeout: seconds that a worker may take for a step or a reset, None for any time.

    Raises:
        UserError: `env_fns` cannot be sent to another process, or raise it.
        EnvironmentFailure: `env_fns` raise it, or a worker dies while it makes its environment.
    """

    def __init__(
        self, env_fns: Sequence[Callable[[], gym.Env]], name: str, autoreset_mode: AutoresetMode, timeout: float | None
    ) -> None:
        try:
            cloudpickle.dumps(env_fns)
        except Exception as error:
            raise UserError(f"{name}: cannot be sent to a worker process, {type(error).__name__}: {error}") from error
        # In place of Gymnasium's, which keeps to itself what a second worker for the same environment needs.
        self.env_fns, self.num_envs, self.autoreset_mode = env_fns, len(env_fns), autoreset_mode
        self.shared_memory, self.copy, self.observation_mode = True, True, "same"
        self.parent_pipes, self.processes, self._state = [], [], AsyncState.DEFAULT
        self._name, self._timeout = name, timeout
        dummy = env_fns[0]()
        self.metadata = {**dummy.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = dummy.render_mode
        self.single_action_space, self.single_observation_space = dummy.action_space, dummy.observation_space
        dummy.close()
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

        # Not fork: a child of a process in which TensorFlow runs threads inherits locks that nobody will release. A
        # fork server is started afresh, has no such threads, and forks workers as fast; it imports Gymnasium once.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = cast(Any, multiprocessing.get_context(method))
        if method == "forkserver":
            self._context.set_forkserver_preload(["gymnasium.vector"])
            _start_fork_server()
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
        pipes[index].send(("reset", {"seed": seed, "options": None}), START_SECONDS)
        (_, info), _ = pipes[index].recv()  # the observation is in shared memory
        return copy.deepcopy(self.observations), info

    def _start(self, index: int) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        # Versions of Gymnasium differ in how many arguments their worker takes: the last one is a semaphore.
        last = (self._buffer, None, self.autoreset_mode, None)[: len(inspect.signature(_async_worker).parameters) - 4]
        process = self._context.Process(
            target=_worker,
            name=f"Worker<{self._name}>-{index}",
            args=(index, CloudpickleWrapper(self.env_fns[index]), theirs, ours, *last),
            daemon=True,
        )
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
                if isinstance(pipe.error, Fault):
                    where = f"{self._name} (environment {index} in 0..{self.num_envs - 1})"
                    raise EnvironmentFailure(f"{where} {pipe.error}") from pipe.error.__cause__
                raise pipe.error

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        """As Gymnasium's, but a worker that is dead or busy does not keep it."""
        # A call that Ctrl-C interrupted has left answers in some of the pipes, and waiting for all would never end.
        pipes: list[Any] = self.parent_pipes
        if self._state is AsyncState.DEFAULT and not terminate:
            for pipe in pipes:
                pipe.send(("close", None))
            for pipe in pipes:
                pipe.recv()
            for process in self.processes:
                process.join(timeout)
        for pipe in pipes:
            pipe.kill()


class _WorkerPipe:
    """The parent's end of a worker's pipe, which answers in the worker's place if that fails, and ends it."""

    def __init__(self, connection: Connection, process: Any, timeout: float | None) -> None:
        self.error: BaseException | None = None  # what a command raised that is no step or reset
        self._connection, self._process, self._timeout = connection, process, timeout
        self._command, self._deadline = "", float("inf")

    def send(self, message: tuple[str, Any], at_least: float = 0.0) -> None:
        """Sends a command, which may take the timeout or `at_least` seconds."""
        self._command = message[0]
        limited = self._timeout is not None and self._command in ("step", "reset")
        self._deadline = time.monotonic() + max(self._timeout or 0.0, at_least) if limited else float("inf")
        with contextlib.suppress(OSError):  # it is dead, as `recv` will find
            self._connection.send(message)

    def recv(self) -> tuple[Any, bool]:
        """The answer, and whether it is one."""
        try:
            if self._deadline == float("inf") or self._connection.poll(max(0.0, self._deadline - time.monotonic())):
                answer, success = self._connection.recv()
                if success:
                    return answer, True
                error, text = answer
                error.__cause__ = WorkerTraceback(text)
            else:
                error = Fault(f"did not answer within {self._timeout:g} s and was killed")
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

    def kill(self) -> None:
        """Ends the worker, whatever it does, and the pipe."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _as_fault(error: BaseException) -> Fault:
    if isinstance(error, Fault):
        return error
    did = "failed again" if isinstance(error, EnvironmentFailure | UserError) else f"raised {type(error).__name__}"
    return Fault(f"{did}: {error}", error.__cause__)


def _worker(index: int, env_fn: Callable[[], gym.Env], pipe: Any, parent_pipe: Any, buffer: Any, *rest: Any) -> None:
    _end_with_parent()
    # Ctrl-C in a terminal reaches the whole process group, and so does SIGTERM from a scheduler, but when to stop is
    # for the parent to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    answers = _Answers(pipe)
    try:
        env = env_fn()
    except Exception as error:
        answers.put((index, type(error), error, traceback.format_exc()))
        answers.recv()  # the parent's first command
        answers.send((None, False))
    else:
        _async_worker(index, lambda: env, answers, parent_pipe, buffer, answers, *rest[1:])  # type: ignore[arg-type]


def _start_fork_server() -> None:
    """Starts it with SIGTERM blocked: one for the whole process group would end it, and with it all news of workers.

    It sees to Ctrl-C itself, and ends with this process.
    """
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # otherwise the other starts it, which unblocks the signal
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Answers:
    """Stands for the pipe and for the queue of errors of Gymnasium's worker: the answer to a failure is the error.

    A queue is shared by all workers, and one that is killed while it writes leaves it locked.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self.recv = pipe, pipe.recv
        self._error: tuple[BaseException, str] | None = None

    def put(self, failure: tuple[int, type, BaseException, str]) -> None:
        *_, error, text = failure
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        self._error = error, text

    def send(self, answer: tuple[Any, bool]) -> None:
        self._pipe.send(answer if answer[1] else (self._error, False))


def _end_with_parent() -> None:
    """Has the kernel kill this process when its parent has ended, however that was and whatever goes on here.

    The parent is not the fork server but the process that multiprocessing means, which holds the other end of a pipe.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if wait([sentinel], 0):  # it ended before
            os._exit(1)
    else:  # a thread, which an environment that holds the interpreter's lock for ever would stop
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()


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
