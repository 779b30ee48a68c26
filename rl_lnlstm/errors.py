"""The errors that tell a user what to change."""


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
