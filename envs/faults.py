"""Failures of single environments. They travel in the infos, beside the answers of the other environments."""

import contextlib
import pickle
import re
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
from gymnasium.vector import VectorEnv

from rl_lnlstm import errors

FAULT = "rl_lnlstm.fault"  # infos[FAULT][index] is a Fault; only the modules of this folder see it
# What counts as a failure of an environment. `sys.exit` would end the training with the environment's exit code.
FAILURES = (Exception, SystemExit)
ABORTED = "rl_lnlstm.aborted"  # see `make_vec`


class Numbering(NamedTuple):
    """The numbers of the environments of a vector environment, which may be a part of those of a run."""

    first: int
    total: int

    def named(self, name: str, index: int) -> str:
        """The name of an environment in messages, from its index in the vector environment."""
        return f"{name} (environment {self.first + index} in 0..{self.total - 1})"


@contextlib.contextmanager
def comparing_spaces() -> Iterator[None]:
    """A context manager in which Gymnasium compares the spaces of environments. A difference becomes a `UserError`."""
    try:
        yield
    except errors.EnvironmentFailure:  # which is a RuntimeError too
        raise
    except RuntimeError as error:
        raise errors.UserError(f"env: all environments must have the same spaces: {error}") from error


def environment_name(envs: VectorEnv) -> str:
    """The name of `envs` in messages."""
    return getattr(envs, "name", None) or (envs.spec.id if envs.spec else type(envs.unwrapped).__name__)


class Fault(Exception):
    """A failure of an environment, described in words that follow its name in a message.

    Pickling keeps only the text of the cause's traceback, because some exceptions cannot be pickled.

    Args:
        what: the description, such as "returned nan as reward".
        cause: the exception that the environment raised.
        lasting: the environment breaks a rule (such as the shape of its observations), and a new one would do so again.
    """

    def __init__(self, what: str, cause: BaseException | None = None, lasting: bool = False) -> None:
        super().__init__(what)
        self.__cause__ = cause
        self.lasting = lasting
        self.index: int | None = None  # index of the environment, if it is known

    def __reduce__(self) -> tuple[Any, ...]:
        cause = self.__cause__
        text = None if cause is None else WorkerTraceback("".join(traceback.format_exception(cause)))
        return Fault, (str(self), text, self.lasting)


class WorkerTraceback(Exception):
    """The text of a traceback, chained as a cause."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


def describe_exception(error: BaseException, when: str = "") -> str:
    """Describes an exception that an environment raised."""
    return f"raised {type(error).__name__}{when}: {error}"


def as_fault(error: BaseException, when: str = "") -> Fault:
    """The `Fault` for one of `FAILURES`. Raises the error itself if a signal handler of the program raised it."""
    if isinstance(error, Fault):
        return error
    reraise_of_signal_handler(error)
    return Fault(describe_exception(error, when), error)


def reraise_of_signal_handler(error: BaseException) -> None:
    """Raises the error if a signal handler called `sys.exit`, for example for SIGTERM, while an environment ran."""
    if isinstance(error, SystemExit):
        handlers = [signal.getsignal(number) for number in signal.valid_signals()]
        codes = {getattr(handler, "__code__", None) for handler in handlers} - {None}
        if any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__)):
            raise error


def close_or_warn(close: Callable[..., None], name: str, **kwargs: Any) -> None:
    """Closes environments. A failure is a warning, so that results are not lost and other environments are closed."""
    try:
        close(**kwargs)
    except FAILURES as error:
        reraise_of_signal_handler(error)
        errors.warn(f"{name} {describe_exception(error, ' in close')}")


def picklable(error: BaseException) -> BaseException:
    """The error or, if it cannot be sent to another process, a `RuntimeError` with its name and text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def user_frames(error: BaseException | None) -> str:
    """The part of a traceback that lies outside this package and Gymnasium; "" if there is none.

    Args:
        error: the exception that an environment raised, in this process or in another one.
    """
    if error is None:
        return ""
    text = error.args[0] if isinstance(error, WorkerTraceback) else "".join(traceback.format_exception(error))
    ours = [str(Path(module.__file__ or "").parent) for module in (errors, gymnasium)]
    blocks = re.findall(r'^  File "[^\n]*\n(?:    [^\n]*\n)*', text, re.MULTILINE)
    return "".join(block for block in blocks if not any(f'File "{folder}' in block for folder in ours)).rstrip()


def forget(infos: Mapping[str, Any], index: int) -> None:
    """Removes the entries of one environment from a vector environment's `infos`."""
    for key, value in infos.items():
        if isinstance(value, dict):
            forget(value, index)
        elif key.startswith("_") and key[1:] in infos:
            value[index] = False
