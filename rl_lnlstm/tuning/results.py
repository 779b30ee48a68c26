"""Tables of the trials of a sweep."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl_lnlstm.errors import one_line, printable
from rl_lnlstm.evaluation.result import decimals
from rl_lnlstm.files import replacing_file
from rl_lnlstm.tuning.records import Trial
from rl_lnlstm.tuning.space import PER_MINIBATCH, PER_ROLLOUT, SEARCHED

# What the tables call the searched ratios, which are no options.
NAMES = {PER_ROLLOUT: "num_steps / sequence_length", PER_MINIBATCH: "sequences per minibatch"}
LONGEST = 150  # longest reason of a failure, in characters


def varying(trials: Sequence[Trial]) -> list[str]:
    """The searched options that differ between the trials."""
    return [name for name in SEARCHED if len({trial.options.get(name) for trial in trials}) > 1]


def table(trials: Sequence[Trial]) -> str:
    """The trials and the options in which they differ, as aligned text. Long names take several lines."""
    names = varying(trials)
    digits = decimals([trial.score for trial in trials if trial.has_score])
    heads = [["trial"], ["return"], ["frames"], ["state"], *(name.split("_") for name in names)]
    rows = [
        [
            str(trial.number),
            f"{trial.score:,.{digits}f}" if trial.has_score else "-",
            f"{trial.frames:,}",
            trial.state,
            *(short(trial.options.get(name)) for name in names),
        ]
        for trial in trials
    ]
    height = max(map(len, heads))
    above = [[""] * (height - len(head)) + head for head in heads]
    lines = [list(line) for line in zip(*above, strict=True)] + rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    failed = [trial for trial in trials if trial.reason]
    return "\n".join([*text, *(f"trial {trial.number} failed: {shortened(trial.reason)}" for trial in failed)])


def finalists_table(finalists: Sequence[Trial]) -> str:
    """The finalists and their evaluations, as lines of text."""
    lines = []
    for trial in finalists:
        if trial.scores.evaluation is None:
            lines.append(f"trial {trial.number}: failed, {shortened(trial.reason)}")
            continue
        returns, digits = np.array(trial.scores.evaluation), decimals(trial.scores.evaluation)
        lines.append(
            f"trial {trial.number}: {returns.mean():,.{digits}f} +/- {returns.std():,.{digits}f} over {len(returns)} "
            f"episodes; mean return at the end of training {trial.score:,.{digits}f}"
        )
    return "\n".join(lines)


def importance_table(importances: Mapping[str, float]) -> str:
    """The importances, the largest first, as lines of text."""
    width = max(len(NAMES.get(name, name)) for name in importances)
    return "\n".join(f"{NAMES.get(name, name).ljust(width)}  {value:4.0%}" for name, value in importances.items())


def write_csv(path: Path, trials: Sequence[Trial], finalists: Sequence[Trial]) -> None:
    """Writes a row for each trial, with all searched options. Raises `OSError` if the file cannot be written."""
    evaluations = {trial.number: trial.scores.evaluation for trial in finalists}
    with replacing_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["trial", "state", "return", "frames", "evaluation", "reason", *SEARCHED])
        for trial in trials:
            evaluation = evaluations.get(trial.number)
            writer.writerow(
                [
                    trial.number,
                    trial.state,
                    trial.score if trial.has_score else "",
                    trial.frames,
                    "" if evaluation is None else float(np.mean(evaluation)),
                    trial.reason,
                    *(trial.options.get(name) for name in SEARCHED),
                ]
            )


def shortened(reason: str) -> str:
    """The reason of a failure, in one line."""
    return printable(one_line(reason), LONGEST)


def short(value: Any) -> str:
    """The value of an option as a short word."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
