"""`train --seeds`: trains once with each seed, with one run directory for each in a common folder."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rl_lnlstm.commands.console import output, tell
from rl_lnlstm.commands.signals import Stop
from rl_lnlstm.commands.training_options import TrainOptions
from rl_lnlstm.commands.words import given_options, without
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.result import decimals
from rl_lnlstm.files import check_is_free
from rl_lnlstm.runs.groups import read_group, score, score_name
from rl_lnlstm.runs.layout import default_run_dir
from rl_lnlstm.runs.lock import locked

POLL = 0.1  # seconds


def train_seeds(options: TrainOptions, arguments: Sequence[str], stop: Stop) -> int:
    """Trains with each seed of `--seeds`, each in a process of its own, `--parallel` at once.

    At the end, prints the interquartile mean over the seeds, with its bootstrap interval.

    Args:
        options: the options of the command.
        arguments: the command line of these options, without the command.
        stop: if requested, no more runs start, and running ones end after their iteration.

    Returns:
        The exit code of the first run that failed, or 0.

    Raises:
        UserError: the folder or the options cannot be used.
    """
    if options.resume is not None:
        raise UserError("--seeds starts new runs: use --resume to resume each run")
    if given_options(arguments, ["seed"]):
        raise UserError("--seeds gives each run its seed: leave out --seed")
    if len(set(options.seeds)) < len(options.seeds):
        raise UserError(f"--seeds must be different, got {' '.join(map(str, options.seeds))}")
    folder = options.run_dir or default_run_dir(options.env_id, "seeds")
    check_is_free(folder, "folder", "--run-dir")
    with locked(folder):
        check_is_free(folder, "folder", "--run-dir")  # again: another process may have begun runs there
        codes = _train(folder, options, without(arguments, "seeds", "parallel", "run_dir"), stop)
    failed = next((128 - code if code < 0 else code for code in codes if code), 0)  # below 0: minus a signal
    if not failed and not stop.requested:
        _report(folder)
    tell(f"next: {shlex.join(['rl-lnlstm', 'plot', str(folder)])}")
    return failed


def _train(folder: Path, options: TrainOptions, shared: Sequence[str], stop: Stop) -> list[int]:
    """Runs a process for each seed, and returns their exit codes."""
    runs, waiting = _Runs(folder, shared, options.parallel > 1), list(options.seeds)
    try:
        while runs.running or (waiting and not stop.requested):
            while waiting and len(runs.running) < options.parallel and not stop.requested:
                runs.start(waiting.pop(0))
            if stop.signal is not None:
                runs.stop(stop.signal)
            runs.poll()
            time.sleep(POLL)
    except BaseException:  # the second Ctrl-C stops the runs at once; if a run cannot be started, the others end too
        runs.stop(signal.SIGINT, again=True)
        raise
    return runs.codes


def _report(folder: Path) -> None:
    """Prints the interquartile mean of the runs' scores, and its interval."""
    try:
        group = read_group(folder)
    except UserError as error:  # such as that no episode ended
        tell(str(error))
        return
    by = score_name([group])
    found = score(group, by)
    digits = decimals(found.values)
    text = f"interquartile mean {found.iqm:,.{digits}f}"
    if found.iqm_interval is not None:
        low, high = found.iqm_interval
        text += f", 95% confidence {low:,.{digits}f} to {high:,.{digits}f}"
    output(f"{text}, over {len(found.values)} seed{'s' * (len(found.values) > 1)} ({by})")


class _Runs:
    """The processes of the runs."""

    def __init__(self, folder: Path, arguments: Sequence[str], logged: bool) -> None:
        self.folder, self.arguments, self.logged = folder, arguments, logged
        self.running: dict[int, subprocess.Popen] = {}
        self.codes: list[int] = []
        self._stopped = False

    def start(self, seed: int) -> None:
        run_dir, log = self.folder / f"seed-{seed}", self.folder / f"seed-{seed}.log"
        command = [sys.executable, "-m", "rl_lnlstm", "train", *self.arguments]
        command += ["--seed", str(seed), "--run-dir", str(run_dir)]
        tell(f"seed {seed}: {run_dir}" + (f", messages in {log}" if self.logged else ""))
        with contextlib.ExitStack() as files:
            try:
                to = files.enter_context(log.open("w")) if self.logged else None
                # Start a new session. Otherwise Ctrl-C would reach the run twice, from the terminal and from `stop`.
                self.running[seed] = subprocess.Popen(command, stdout=to, stderr=to, start_new_session=True)
            except OSError as error:
                raise UserError(f"the run with seed {seed} cannot be started: {error}") from error

    def stop(self, number: int, again: bool = False) -> None:
        """Sends a signal to the runs, but only once."""
        if self._stopped and not again:
            return
        self._stopped = True
        for process in self.running.values():
            process.send_signal(number)

    def poll(self) -> None:
        for seed, process in list(self.running.items()):
            if process.poll() is not None:
                del self.running[seed]
                self.codes.append(process.returncode)
                if process.returncode:
                    tell(f"seed {seed} ended with exit code {process.returncode}")
