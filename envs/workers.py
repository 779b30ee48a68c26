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
from typing import Any, cast

import cloudpickle
import gymnasium as gym
from gymnasium.error import CustomSpaceError
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.vector.async_vector_env import AsyncState, _async_worker
from gymnasium.vector.utils import (
    batch_space,
    clear_mpi_env_vars,
    create_shared_memory,
    read_from_shared_memory,
)

from rl_lnlstm.envs.faults import Fault, Numbering, comparing_spaces
from rl_lnlstm.envs.worker_pipe import WorkerPipe
from rl_lnlstm.envs.worker_process import EnvDescription, describe, run_worker
from rl_lnlstm.errors import EnvironmentFailure, UserError, warn
from rl_lnlstm.interrupts import interrupts_deferred
from rl_lnlstm.spaces import check_observation_space

CLOSE_SECONDS = 60.0  # the longest time for closing, which must end some time


class WorkerVectorEnv(AsyncVectorEnv):
    """Like Gymnasium's `AsyncVectorEnv`, but a failed worker becomes a `Fault` in the infos, and can be replaced.

    Args:
        env_fns: functions that make the environments. The environments must return failures (see `Guard`).
        name: the name of the environments in messages.
        autoreset_mode: as in Gymnasium.
        timeout: seconds that a worker may take for a step or a reset; None for no limit.
        numbering: the numbers of the environments in messages.

    Attributes:
        unreset: whether workers were replaced after a call that was interrupted or failed, and are not reset yet.

    Raises:
        UserError: `env_fns` cannot be sent to another process, or raise this error; or their observation space is not
            supported.
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
        self.unreset = False
        # Do not use fork: TensorFlow runs threads, and a forked child would inherit locks that are never released. A
        # fork server is a fresh process without such threads. It imports Gymnasium once, and forks workers just as
        # fast.
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context = cast(Any, multiprocessing.get_context(method))
        if method == "forkserver":
            self._context.set_forkserver_preload(["gymnasium.vector"])
            _start_fork_server()
        description = self._describe_env()
        self.metadata = {**description.metadata, "autoreset_mode": autoreset_mode}
        self.render_mode = description.render_mode
        self.single_observation_space = description.observation_space
        self.single_action_space = description.action_space
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        space, count = self.single_observation_space, self.num_envs
        try:
            self._buffer = create_shared_memory(space, count, ctx=self._context)
        except (TypeError, CustomSpaceError):  # for example of a sequence, whose length is not known
            check_observation_space(space)
            raise
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
        self.clear_pipes()
        everywhere = "reset_mask" not in (options or {})
        super().reset_async(seed, options)
        self.unreset = self.unreset and not everywhere

    def step_async(self, actions: Any) -> None:
        """Like Gymnasium's, but you may also call it after an interrupted call."""
        self.clear_pipes()
        super().step_async(actions)

    def call_async(self, name: str, /, *args: object, **kwargs: object) -> None:
        """Like Gymnasium's, but you may also call it after an interrupted call."""
        self.clear_pipes()
        super().call_async(name, *args, **kwargs)

    def clear_pipes(self) -> None:
        """Clears the pipes after an interrupted call. Replaces workers whose pipe may hold half a message."""
        pipes: list[Any] = self.parent_pipes
        # Gymnasium notes its state after all commands were sent. Only the pipes show an interrupt before that.
        if self.closed or (self._state is AsyncState.DEFAULT and not any(pipe.interrupted for pipe in pipes)):
            return
        for index, pipe in enumerate(pipes):
            if not (pipe.drained() and pipe.alive):  # it is dead if this method was interrupted before
                pipe.kill()
                self.unreset = True
                pipes[index], self.processes[index] = self._start(index)
        self._state = AsyncState.DEFAULT

    def _describe_env(self) -> EnvDescription:
        """The `EnvDescription` of an environment. A process makes the environment for this, and ends afterwards."""
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
                pipe = WorkerPipe(ours, process, self._timeout)
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
