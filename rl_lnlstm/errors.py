"""The errors that tell a user what to change, and the warning of what a run lives with."""

import warnings


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was got and what was expected.

    The commands print its message, without a traceback, and exit with code 2.
    """

    # AutoGraph raises an error anew, as what it was, only if its class takes this very __init__; otherwise what leaves
    # a tf.function is an internal error of AutoGraph's, which `except UserError` does not catch.
    __init__ = Exception.__init__


class RunFailure(RuntimeError):
    """A run cannot go on, through no mistake in what the user gave that could have been named before.

    The commands print its message, without a traceback, and exit with code 1.
    """


class EnvironmentFailure(RunFailure):
    """An environment raised, died, hung, or returned what it must not (NaN, infinity).

    The message names the environment and the step.
    """


class TrainingFailure(RunFailure):
    """Losses or gradients were NaN or infinite, update after update.

    The message names the first of them.
    """


class RunWarning(UserWarning):
    """What a run lives with and its user should know: a disk that is full, environments that cannot be snapshotted."""


def warn(message: str) -> None:
    """Gives a `RunWarning`; the same one again is told only once."""
    warnings.warn(message, RunWarning, stacklevel=2)


def printable(value: object, limit: int = 200) -> str:
    """Text from a file or an environment, safe to print on a terminal.

    Control characters and others that cannot be printed are escaped as in Python's literals, and the text is cut.

    Args:
        value: the text, or any object.
        limit: of the length, in characters.
    """
    text = "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in str(value)[: limit + 1]
    )
    return text if len(text) <= limit else f"{text[:limit]}..."
