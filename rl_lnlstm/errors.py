"""The errors that tell a user what to change."""


class UserError(ValueError):
    """A mistake in what the user gave: the message says what was got and what was expected.

    The commands print its message, without a traceback, and exit with code 2.
    """


class EnvironmentFailure(RuntimeError):
    """An environment raised, or returned what it must not (NaN, infinity).

    The message names the environment and the step.
    """
