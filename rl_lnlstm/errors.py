"""The exceptions and the warning of this package."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal


class UserError(ValueError):
    """A mistake of the user. The message says what was given and what was expected.

    The commands print its message, without a traceback, and exit with code 2.
    """

    # Do not define another __init__. AutoGraph raises errors again with their own class only if it has this signature.
    # Otherwise a tf.function raises an internal error, which `except UserError` does not catch.
    __init__ = Exception.__init__


class RunFailure(RuntimeError):
    """A run cannot continue, for a reason that could not be known before.

    The commands print its message, without a traceback, and exit with code 1.
    """


class EnvironmentFailure(RunFailure):
    """An environment raised, died, hung, or returned what it must not (NaN, infinity).

    The message names the environment and the step.
    """


class TrainingFailure(RunFailure):
    """Losses or gradients were NaN or infinite in too many updates in a row.

    The message names the first of them.
    """


class WorkerFailure(RunFailure):
    """Workers died, froze or could not be reached too many times in a row.

    The message names the last of them.
    """


class RunWarning(UserWarning):
    """A problem with which a run continues, such as a full disk, or environments that cannot be pickled."""


def warn(message: str) -> None:
    """Gives a `RunWarning`. Python shows the same warning only once."""
    warnings.warn(message, RunWarning, stacklevel=2)


@contextlib.contextmanager
def ignoring_write_errors() -> Iterator[None]:
    """A context manager in which a message that cannot be printed is lost, for example because the disk is full.

    A closed pipe still raises `BrokenPipeError`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


@contextlib.contextmanager
def run_warnings_to(receive: Callable[[str], None], action: Literal["default", "always"] = "always") -> Iterator[None]:
    """A context manager that passes the messages of `RunWarning`s to a function instead of printing them.

    Args:
        receive: the function.
        action: "default" passes the same warning only once, "always" each time.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(action, RunWarning)
        show = warnings.showwarning

        def receive_or_show(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, RunWarning):
                receive(str(message))
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = receive_or_show
        yield


def one_line(value: object) -> str:
    """Text without line breaks, such as the message of an error of another library."""
    return " ".join(str(value).split())


def missing_package(what: str, error: Exception, package: str | None) -> UserError:
    """The error that says how to install an optional package.

    Args:
        what: what needs the package.
        error: the failed import.
        package: the name for pip, such as "rl-lnlstm[report]"; None if it is not known.
    """
    argument = f'"{package}"' if package and "[" in package else package  # a shell could expand the brackets
    hint = f": pip install {argument}" if package else ""
    return UserError(f"{what} needs a package that is not installed ({error}){hint}")


def printable(value: object, limit: int = 200) -> str:
    """Makes text from a file or an environment safe to print on a terminal.

    Control characters and other unprintable characters are escaped as in Python literals. Long text is shortened.

    Args:
        value: the text, or any object.
        limit: the largest length, in characters.
    """
    text = "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in str(value)[: limit + 1]
    )
    return text if len(text) <= limit else f"{text[:limit]}..."
