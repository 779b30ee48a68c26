"""What a sweep keeps on disk. It is enough to resume the sweep, whatever ended it.

    sweep.json              the options of the sweep
    trials/0003/trial.json  options and state of a trial, written by the sweep
    trials/0003/reports.json, checkpoint/    its scores so far, and its newest checkpoint, written by the trial
    finals/0001/            the same for a finalist, and its policy/

Every file is replaced as a whole.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from rl_lnlstm.config import from_saved
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import read_json, replacing_file
from rl_lnlstm.option_types import from_json

SWEEP, TRIALS, FINALS = "sweep.json", "trials", "finals"
TRIAL, REPORTS, CHECKPOINT, POLICY = "trial.json", "reports.json", "checkpoint", "policy"
State = Literal["running", "completed", "pruned", "failed"]


class Report(NamedTuple):
    """What a trial reports: its frames so far, and the mean return of its last episodes."""

    frames: int
    score: float


class Scores(NamedTuple):
    """What a trial wrote.

    Attributes:
        reports: its reports, in the order of frames.
        evaluation: the return of each episode of its evaluation, if it was evaluated.
    """

    reports: list[Report]
    evaluation: list[float] | None = None


@dataclasses.dataclass
class Trial:
    """A trial of a sweep, or a finalist.

    Attributes:
        number: it counts from 1.
        options: the arguments of `PPOConfig`.
        state: a trial that is running when the sweep is interrupted is resumed.
        reason: why it failed.
        scores: what it reported.
    """

    number: int
    options: dict[str, Any]
    state: State = "running"
    reason: str = ""
    scores: Scores = dataclasses.field(default_factory=lambda: Scores([]))

    @property
    def score(self) -> float:
        """The mean return of the last training episodes."""
        return self.scores.reports[-1].score if self.scores.reports else math.nan

    @property
    def has_score(self) -> bool:
        """Whether there is a score."""
        return bool(self.scores.reports)

    @property
    def frames(self) -> int:
        """The number of frames at the last report."""
        return self.scores.reports[-1].frames if self.scores.reports else 0


def folder_of(folder: Path, number: int) -> Path:
    """The folder of a trial."""
    return folder / f"{number:04d}"


def write_trial(folder: Path, trial: Trial) -> None:
    """Writes number, options and state of a trial to its folder in `folder`.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    content = {"number": trial.number, "state": trial.state, "reason": trial.reason, "options": trial.options}
    _write(folder_of(folder, trial.number) / TRIAL, content)


def read_trials(folder: Path) -> list[Trial]:
    """Reads all trials in `folder`, in the order of their numbers.

    Raises:
        UserError: the files of a trial are damaged.
    """
    return [_read_trial(path.parent) for path in sorted(folder.glob(f"*/{TRIAL}"))]


def _read_trial(folder: Path) -> Trial:
    try:
        content = read_json(folder / TRIAL)
        trial = Trial(
            content["number"],
            from_json(from_saved(content["options"])),
            content["state"],
            str(content["reason"]),
            read_scores(folder),
        )
        if trial.state not in get_args(State) or folder_of(folder.parent, trial.number) != folder:
            raise ValueError("it does not belong to a trial here")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / TRIAL} is damaged, {printable(error)}: remove {folder}") from error
    return trial


def write_scores(folder: Path, scores: Scores) -> None:
    """Writes what a trial reports to its folder. Raises `OSError` if the disk is full or cannot be written."""
    _write(folder / REPORTS, scores._asdict())


def read_scores(folder: Path) -> Scores:
    """Reads what a trial reported so far, which may be nothing.

    Raises:
        OSError, ValueError, KeyError, TypeError: the file is damaged.
    """
    if not (folder / REPORTS).is_file():
        return Scores([])
    content = read_json(folder / REPORTS)
    evaluation = content["evaluation"]
    return Scores(
        [Report(int(frames), float(score)) for frames, score in content["reports"]],
        None if evaluation is None else [float(value) for value in evaluation],
    )


def write_sweep(folder: Path, content: dict[str, Any]) -> None:
    """Writes the options of a sweep. Raises `OSError` if the disk is full or cannot be written."""
    _write(folder / SWEEP, content)


def by_score(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that completed, the best first; then pruned ones, the best first; then the others."""
    order = {"completed": 0, "pruned": 1}

    def key(trial: Trial) -> tuple[float, float, int]:
        score = -math.inf if math.isnan(trial.score) else trial.score
        return order.get(trial.state, 2), -score, trial.number

    return sorted(trials, key=key)


def _write(path: Path, content: Any) -> None:
    with replacing_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
