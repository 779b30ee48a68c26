"""The code that runs in the process of a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
from gymnasium.vector.async_vector_env import _async_worker

from rl_lnlstm.envs.faults import picklable
from rl_lnlstm.errors import run_warnings_to

STARTED = "started"  # a worker's first message: it has started, and begins to make its environment


class EnvDescription(NamedTuple):
    """What a vector environment must know about its environments before it allocates memory for observations."""

    metadata: dict[str, Any]
    render_mode: str | None
    observation_space: gym.Space
    action_space: gym.Space
    warnings: tuple[str, ...]  # `RunWarning`s while the environment was made


def describe(pickled: bytes, pipe: Connection) -> None:
    """Makes an environment, sends its `EnvDescription`, pickled by cloudpickle, and closes the environment.

    This runs in a process of its own, because the parent could not stop a constructor that hangs.

    Args:
        pickled: a function that makes the environment, pickled by cloudpickle.
        pipe: to the parent.
    """
    messages: list[str] = []
    with run_warnings_to(messages.append):
        made = _begin(pickled, pipe)
    answers = Answers(pipe)
    try:
        if isinstance(made, Exception):
            raise made
        description = EnvDescription(
            dict(made.metadata), made.render_mode, made.observation_space, made.action_space, tuple(messages)
        )
        content = cloudpickle.dumps(description)
    except Exception as error:
        answers.put((0, type(error), error, "".join(traceback.format_exception(error))))
        answers.send((None, False))
    else:
        answers.send((content, True))
        made.close()


def run_worker(index: int, pickled: bytes, pipe: Any, parent_pipe: Any, buffer: Any, *rest: Any) -> None:
    """Makes an environment, and runs Gymnasium's worker, which answers the parent's commands."""
    with run_warnings_to(lambda _: None):  # `describe` has told the parent about them
        made = _begin(pickled, pipe)
    answers = Answers(pipe)
    if isinstance(made, Exception):
        answers.put((index, type(made), made, "".join(traceback.format_exception(made))))
        answers.recv()  # the parent's first command
        answers.send((None, False))
    else:
        _async_worker(index, lambda: made, answers, parent_pipe, buffer, answers, *rest[1:])  # type: ignore[arg-type]


def _begin(pickled: bytes, pipe: Connection) -> gym.Env | Exception:
    """Prepares the process, tells the parent that it has started, and makes the environment, or returns the error."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()  # with the processes that the environment starts, so that they can be killed together
    _end_with_parent()
    # Ctrl-C and SIGHUP from a terminal, and SIGTERM from a scheduler, reach the whole process group. Workers ignore
    # them, because the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})
    try:
        env_fn = cloudpickle.loads(pickled)
    except Exception as error:
        pipe.send(STARTED)
        return error
    pipe.send(STARTED)
    try:
        return env_fn()
    except Exception as error:
        return error


class Answers:
    """Replaces both the pipe and the queue of errors that Gymnasium's worker expects.

    After a failure, the answer is the error itself. A queue would not be safe: all workers share it, and a worker that
    is killed while it writes would leave it locked.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self.recv = pipe, pipe.recv
        self._error: tuple[BaseException, str] | None = None

    def put(self, failure: tuple[int, type, BaseException, str]) -> None:
        """Keeps the error in a form that can be pickled, for the next answer."""
        *_, error, text = failure
        self._error = picklable(error), text

    def send(self, answer: tuple[Any, bool]) -> None:
        """Sends the answer, or the error if there was a failure."""
        self._pipe.send(answer if answer[1] else (self._error, False))


def _end_with_parent() -> None:
    """Makes the operating system kill this process, and its group, when its parent ends, however it ends.

    The parent here is the training process, which holds the other end of a pipe, and not the fork server.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpgrp())  # negative: the whole group
        fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if wait([sentinel], 0):  # it has already ended
            os._exit(1)
    else:  # only a thread, which cannot run if the environment never releases the interpreter's lock
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
