"""What runs in a worker's process."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym
from gymnasium.vector.async_vector_env import _async_worker

STARTED = "started"  # a worker's first message: it is there, and begins to make its environment


class Description(NamedTuple):
    """What a vector environment has to know of its environments before it can make room for their observations."""

    metadata: dict[str, Any]
    render_mode: str | None
    observation_space: gym.Space
    action_space: gym.Space


def describe(env_fn: Callable[[], gym.Env], pipe: Connection) -> None:
    """Makes an environment, sends its `Description`, pickled by cloudpickle, and closes it.

    This happens here and not in the parent, because a constructor that hangs could not be ended there.
    """
    answers = _begin(pipe)
    try:
        env = env_fn()
        description = Description(dict(env.metadata), env.render_mode, env.observation_space, env.action_space)
        content = cloudpickle.dumps(description)
    except Exception as error:
        answers.put((0, type(error), error, traceback.format_exc()))
        answers.send((None, False))
    else:
        answers.send((content, True))
        env.close()


def run_worker(index: int, env_fn: Callable[[], gym.Env], pipe: Any, parent_pipe: Any, buffer: Any, *rest: Any) -> None:
    """Makes an environment, and lets Gymnasium's worker answer the parent's commands with it."""
    answers = _begin(pipe)
    try:
        env = env_fn()
    except Exception as error:
        answers.put((index, type(error), error, traceback.format_exc()))
        answers.recv()  # the parent's first command
        answers.send((None, False))
    else:
        _async_worker(index, lambda: env, answers, parent_pipe, buffer, answers, *rest[1:])  # type: ignore[arg-type]


def _begin(pipe: Connection) -> Answers:
    _end_with_parent()
    # Ctrl-C in a terminal reaches the whole process group, and so does SIGTERM from a scheduler, but when to stop is
    # for the parent to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):
        os.setpgrp()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    pipe.send(STARTED)
    return Answers(pipe)


class Answers:
    """Stands for both the pipe and the queue of errors that Gymnasium's worker is given.

    The answer to a failure is the error itself. A queue is shared by all workers, and a worker that is killed while it
    writes would leave it locked.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self.recv = pipe, pipe.recv
        self._error: tuple[BaseException, str] | None = None

    def put(self, failure: tuple[int, type, BaseException, str]) -> None:
        """Keeps the error, as something that can be pickled, for the answer that follows."""
        *_, error, text = failure
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        self._error = error, text

    def send(self, answer: tuple[Any, bool]) -> None:
        """Sends the answer; one that is no success with the error."""
        self._pipe.send(answer if answer[1] else (self._error, False))


def _end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, in whatever way, and whatever this process is doing.

    The parent is the process that started the worker, which holds the other end of a pipe, and not the fork server.
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
    else:  # a thread; an environment that never releases the interpreter's lock would stop it
        threading.Thread(target=lambda: (wait([sentinel]), os._exit(1)), daemon=True).start()
