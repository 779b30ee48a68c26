"""The entry point of the command line: runs a command, and turns errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rl_lnlstm.commands.console import discard, open_standard_streams, output, tell
from rl_lnlstm.commands.import_tensorflow import import_tensorflow_quietly
from rl_lnlstm.commands.options import (
    BuildKernelOptions,
    CardOptions,
    CompareOptions,
    EvaluateOptions,
    ExportOptions,
    ImportSb2Options,
    Options,
    PlotOptions,
    ReportOptions,
    parse,
)
from rl_lnlstm.commands.program_cache import use_program_cache
from rl_lnlstm.commands.seeds import train_seeds
from rl_lnlstm.commands.signals import Stop, signals
from rl_lnlstm.commands.training_options import TrainOptions
from rl_lnlstm.commands.tuning_options import TuneOptions
from rl_lnlstm.errors import RunFailure, UserError, run_warnings_to

EXIT_FAILURE, EXIT_USAGE = 1, 2
SIGPIPE = getattr(signal, "SIGPIPE", 13)  # Windows has none


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    The code is 0 for success, 1 for a failure and 2 for a mistake of the user. If a signal ended the command, it is 128
    plus the number of the signal: 130 for SIGINT, 141 for SIGPIPE, 143 for SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    open_standard_streams()
    with signals() as stop, run_warnings_to(lambda text: tell(f"warning: {text}"), "default"):
        code = EXIT_FAILURE
        try:
            code = _answer(arguments, stop)
        except BrokenPipeError:  # the reader of the output or of the messages, such as `head`, has closed the pipe
            discard(sys.stdout, sys.stderr)
            code = 128 + SIGPIPE
        except KeyboardInterrupt:
            stop.signal = stop.signal or signal.SIGINT
    return code if stop.signal is None else 128 + stop.signal


def _answer(arguments: Sequence[str], stop: Stop) -> int:
    """Runs a command, prints the message of an error, and returns the exit code."""
    try:
        options = parse(list(arguments))
        return 0 if options is None else _run(options, arguments[1:], stop)
    except UserError as error:
        tell(f"error: {error}")
        return EXIT_USAGE
    except RunFailure as error:
        _tell_failure(error)
        return EXIT_FAILURE
    except SystemExit as ended:  # of the parser, after help or an error; or of the user's code
        if isinstance(ended.code, str):
            tell(f"error: {ended.code}")
        return EXIT_FAILURE if isinstance(ended.code, str) else int(ended.code or 0)


def _run(options: Options, arguments: Sequence[str], stop: Stop) -> int:
    if isinstance(options, TrainOptions) and options.seeds:
        return train_seeds(options, arguments, stop)
    if isinstance(options, TuneOptions):
        from rl_lnlstm.commands.tune import tune  # imports Gymnasium

        with _current_folder_importable(), stop.at_once():
            return tune(options, arguments)
    if isinstance(options, PlotOptions | CompareOptions):
        from rl_lnlstm.commands.compare import compare, plot  # imports matplotlib

        with stop.at_once():
            return plot(options) if isinstance(options, PlotOptions) else compare(options)
    import_tensorflow_quietly()
    # Import here, because these modules import TensorFlow.
    from rl_lnlstm.commands.card import card
    from rl_lnlstm.commands.evaluate import evaluate
    from rl_lnlstm.commands.export import export
    from rl_lnlstm.commands.import_sb2 import import_sb2
    from rl_lnlstm.commands.report import report
    from rl_lnlstm.commands.train import train

    commands: dict[type, Callable[[Any], int]] = {
        EvaluateOptions: evaluate,
        CardOptions: card,
        ImportSb2Options: import_sb2,
        ReportOptions: report,
        ExportOptions: export,
    }
    with _current_folder_importable():
        if isinstance(options, TrainOptions):
            use_program_cache()
            return train(options, stop)
        if type(options) in commands:
            with stop.at_once():
                return commands[type(options)](options)
    assert isinstance(options, BuildKernelOptions)
    with stop.at_once():
        return _build_kernel(options)


@contextlib.contextmanager
def _current_folder_importable() -> Iterator[None]:
    """A context manager in which modules in the current folder can be imported, for `--env-id module:id`."""
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _tell_failure(error: RunFailure) -> None:
    """Prints the message of an error, and the lines of the user's code where it happened."""
    from rl_lnlstm.envs.faults import user_frames  # `--help` should not wait for Gymnasium

    tell("\n".join(filter(None, [f"error: {error}", user_frames(error.__cause__)])))


def _build_kernel(options: BuildKernelOptions) -> int:
    from rl_lnlstm.lstm.kernel.build import library  # imports TensorFlow

    output(str(library(options.force)))
    return 0
