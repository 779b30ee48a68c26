"""The progress display of a training: a bar on a terminal, and plain lines in a file."""

from __future__ import annotations

import contextlib
import datetime
import math
import os
import threading
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rl_lnlstm.errors import ignoring_write_errors
from rl_lnlstm.evaluation.result import decimals
from rl_lnlstm.ppo.callbacks import Callback, Training
from rl_lnlstm.terminal import MessageConsole

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.2  # of the line in a notebook
BAR = 20  # characters of the bar in a notebook


class ProgressBar(Callback):
    """Shows the progress of training: frames, frames/s, return, time left, and the current phase.

    On a terminal and in a notebook this is a bar, which is redrawn in its place. In a file, and if a command is run
    with `!` in a notebook, it is a plain line about every 10 seconds and one at the end. These lines also show the
    length of episodes and the result of the last evaluation.

    Args:
        console: where to show it; standard error if None.
        seconds_between_lines: time between two plain lines.
    """

    def __init__(self, console: Console | None = None, seconds_between_lines: float = SECONDS_BETWEEN_LINES) -> None:
        self.console = MessageConsole() if console is None else console
        self._pause = seconds_between_lines
        self._bar: Progress | None = None
        self._notebook: _NotebookBar | None = None
        self._lines: _Ticker | None = None
        self._active = False
        self._metrics: dict[str, float] = {}
        self._evaluation = math.nan

    def on_training_start(self, ppo: Training) -> None:
        """Shows the bar, unless there is nothing left to train."""
        self._frames, self._target, self._num_envs = ppo.num_timesteps, ppo.target, ppo.config.num_envs
        self._rollout = ppo.config.num_envs * ppo.config.num_steps
        self._phase, self._phase_began, self._metrics = "starting", time.monotonic(), {}
        self._compiled: tuple[float, int] | None = None  # when the first iteration ended, and the frames then
        self._active = self._frames < self._target
        self._last_line = time.monotonic()
        self._printed = ""
        if self._active and self.console.is_jupyter:
            self._notebook = _NotebookBar()
        elif self._active and self.console.is_terminal and not _run_from_notebook():
            self._bar = Progress(BarColumn(bar_width=12), TextColumn("{task.fields[text]}"), console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, completed=self._frames, text=self._text())
        elif self._active:
            self._lines = _Ticker(max(self._pause, 1.0), self._show)

    def on_phase(self, phase: str) -> None:
        """Shows the current phase."""
        self._phase, self._phase_began = phase, time.monotonic()
        self._show()

    def __call__(self, metrics: dict[str, float]) -> None:
        """Shows the metrics of an iteration."""
        self._metrics, self._frames = metrics, int(metrics["time/total_timesteps"])
        self._phase, self._phase_began = "collecting", time.monotonic()
        if self._compiled is None:
            self._compiled = time.monotonic(), self._frames
        self._evaluation = metrics.get("eval/mean_reward", self._evaluation)
        self._show()

    def on_training_end(self) -> None:
        """Stops updating the bar, or prints a last line."""
        if self._lines is not None:
            self._lines.stop()
        self._target = min(self._target, self._frames)
        self._phase = "done"
        self._show(last=True)
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._notebook, self._lines, self._active = None, None, None, False

    def _show(self, last: bool = False) -> None:
        if not self._active:
            return
        if self._bar is not None:
            self._bar.update(self._task, total=self._total, completed=self._frames, text=self._text())
        elif self._notebook is not None:
            self._notebook.show(self._frames / max(1, self._total), self._text(), last)
        elif self._lines is not None:
            with self._lines.lock:
                self._show_line(last)

    def _show_line(self, last: bool) -> None:
        if not last and time.monotonic() - self._last_line < self._pause:
            return
        line = self._line()
        if line != self._printed and (self._frames or not last):  # a run that failed at once has nothing to say
            with ignoring_write_errors():
                self.console.print(line, markup=False, soft_wrap=True)
        self._last_line, self._printed = time.monotonic(), line

    @property
    def _total(self) -> int:
        """The number of frames at the end. It may exceed the number asked for, because the last rollout is finished."""
        return self._frames + math.ceil(max(0, self._target - self._frames) / self._rollout) * self._rollout

    def _text(self) -> str:
        """The text beside the bar. It is short enough for both to fit in 80 columns."""
        parts = [f"{self._frames:,}/{self._total:,} frames"]
        if self._metrics:
            parts += [f"{self._metrics['time/fps']:,.0f}/s", *self._score()]
        if self._phase in QUICK and self._metrics:
            parts += [] if self._frames >= self._target else [f"{self._left} left"]
        elif self._phase != "done":
            parts.append(self._phase)
        return "  ".join(parts)

    def _line(self) -> str:
        parts = [f"{self._frames:,} of {self._total:,} frames"]
        if self._metrics:
            parts += [f"{self._metrics['time/fps']:,.0f} frames/s", *self._score()]
            length = self._metrics["rollout/ep_len_mean"]
            parts += [] if math.isnan(length) else [f"length {length:,.0f}"]
            parts += [] if math.isnan(self._evaluation) else [f"evaluation {shown(self._evaluation)}"]
            parts += [] if self._frames >= self._target else [f"{self._left} left"]
        lasted = time.monotonic() - self._phase_began
        if self._phase in QUICK and lasted >= LONG:
            parts.append(f"{self._phase} for {lasted:.0f} s")
        elif self._phase not in (*QUICK, "done"):
            parts.append(self._phase)
        return ", ".join(parts)

    def _score(self) -> list[str]:
        mean = self._metrics["rollout/ep_rew_mean"]
        if not math.isnan(mean):
            return [f"return {shown(mean)}"]
        return [f"no episode ended in {self._frames // self._num_envs:,} steps"]

    @property
    def _left(self) -> str:
        rate = self._metrics["time/fps"]
        if self._compiled is not None and self._frames > self._compiled[1]:
            since, frames = self._compiled
            rate = (self._frames - frames) / (time.monotonic() - since)
        seconds = (self._total - self._frames) / max(rate, 1e-9)
        return str(datetime.timedelta(seconds=round(min(seconds, 1e9))))


def _run_from_notebook() -> bool:
    """Whether this process was started with `!` in a notebook.

    It then has a terminal, but a notebook keeps everything that was written, so a bar would fill it.
    """
    return "JPY_PARENT_PID" in os.environ


class _NotebookBar:
    """A bar in the output of a notebook's cell. rich's own needs ipywidgets, which few notebooks have installed."""

    def __init__(self) -> None:
        from IPython.display import display  # installed wherever a notebook runs

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        self._shown = -math.inf

    def show(self, done: float, text: str, last: bool) -> None:
        """Redraws the bar, unless it was redrawn just before."""
        if last or time.monotonic() - self._shown >= SECONDS_BETWEEN_UPDATES:
            full = math.floor(done * BAR)
            line = "█" * full + "░" * (BAR - full) + "  " + text
            self._handle.update({"text/plain": line}, raw=True)
            self._shown = time.monotonic()


class _Ticker:
    """Calls a function again and again in a thread, so that a log shows life during a long rollout or compilation."""

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.lock = threading.Lock()
        self._stopped = threading.Event()
        self._seconds, self._function = seconds, function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._seconds):
            with contextlib.suppress(OSError):  # the training thread notices a closed pipe or a full disk itself
                self._function()


QUICK = "collecting", "updating"  # phases that are usually too short to be worth showing
LONG = 5.0  # seconds after which they are shown


def shown(value: float) -> str:
    """Formats a return with as many decimals as it needs."""
    return f"{value:,.{decimals([value])}f}"
