"""The commands `plot` and `compare`, which compare finished runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_lnlstm.commands.console import output, tell
from rl_lnlstm.commands.options import CompareOptions, PlotOptions
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.evaluation.result import decimals
from rl_lnlstm.evaluation.statistics import difference_interval, improvement_interval, probability_of_improvement
from rl_lnlstm.files import replacing_file
from rl_lnlstm.runs.comparison_plot import comparison_plot
from rl_lnlstm.runs.groups import Group, Score, differing_options, read_group, score, score_name


def plot(options: PlotOptions) -> int:
    """Draws the learning curves of groups of runs, and prints a table of their scores; returns the exit code.

    Raises:
        UserError: a directory contains no run, or the picture cannot be written.
    """
    groups = _groups(options.runs)
    try:
        with replacing_file(options.out) as path:
            comparison_plot(groups).savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"the picture cannot be written to {options.out}: {error}") from error
    by = score_name(groups)
    rows = [_row(group, score(group, by)) for group in groups]
    tell(f"picture: {options.out}; scores: {by}")
    output(_table(rows, options.format))
    return 0


def compare(options: CompareOptions) -> int:
    """Prints how the scores of two groups of runs differ, and the options that differ; returns the exit code.

    Raises:
        UserError: a directory contains no run.
    """
    groups = _groups([options.first, options.second])
    first, second = groups
    by = score_name(groups)
    scores = [score(group, by) for group in groups]
    one, other = (found.values for found in scores)
    difference, improvement = difference_interval(one, other), improvement_interval(one, other)
    result: dict[str, Any] = {
        "score": by,
        "groups": [_row(group, found) for group, found in zip(groups, scores, strict=True)],
        "difference_of_means": float(one.mean() - other.mean()),
        "difference_interval": list(difference),
        "probability_of_improvement": float(probability_of_improvement(one, other)),
        "probability_interval": list(improvement),
        "options": {name: list(values) for name, values in differing_options(first, second).items()},
    }
    if options.format == "json":
        output(json.dumps(result))
    elif options.format == "csv":
        output(_table(_flat(result), "csv"))
    else:
        output(_in_words(result))
    return 0


def _in_words(result: dict[str, Any]) -> str:
    first, second = (row["group"] for row in result["groups"])
    digits = decimals([result["difference_of_means"], *result["difference_interval"]])
    low, high = result["difference_interval"]
    lines = [
        f"score: {result['score']}",
        "",
        _table(result["groups"], "text"),
        "",
        f"{first} minus {second}: {result['difference_of_means']:,.{digits}f}, 95% confidence {low:,.{digits}f} to "
        f"{high:,.{digits}f}",
        f"probability that a run of {first} beats one of {second}: {result['probability_of_improvement']:.2f}, 95% "
        "confidence {:.2f} to {:.2f}".format(*result["probability_interval"]),
        "",
    ]
    if not result["options"]:
        lines.append("no option differs")
    for name, (one, other) in result["options"].items():
        lines.append(f"{name}: {_values(one)} | {_values(other)}")
    return "\n".join(lines)


def _values(values: list[Any]) -> str:
    return " or ".join(printable(value, 60) for value in values)


def _groups(paths: Sequence[Path]) -> list[Group]:
    """Reads the groups in these directories, and gives them different names."""
    groups = [read_group(path) for path in paths]
    names = [group.name for group in groups]
    return [
        group if names.count(group.name) == 1 else group._replace(name=str(path))
        for group, path in zip(groups, paths, strict=True)
    ]


def _row(group: Group, found: Score) -> dict[str, Any]:
    return {
        "group": printable(group.name),
        "runs": len(group.runs),
        "mean": found.mean,
        "mean_low": found.mean_interval.low,
        "mean_high": found.mean_interval.high,
        "iqm": found.iqm,
        "iqm_low": found.iqm_interval.low,
        "iqm_high": found.iqm_interval.high,
    }


def _flat(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparison as rows with a name and a value for each group."""
    rows = [
        {"name": name, "first": result["groups"][0][name], "second": result["groups"][1][name]}
        for name in result["groups"][0]
    ]
    for name, interval in (
        ("difference_of_means", "difference_interval"),
        ("probability_of_improvement", "probability_interval"),
    ):
        rows.append({"name": name, "first": result[name], "second": ""})
        rows.append({"name": interval, "first": result[interval][0], "second": result[interval][1]})
    for name, (one, other) in result["options"].items():
        rows.append({"name": f"option {name}", "first": _values(one), "second": _values(other)})
    return rows


def _table(rows: list[dict[str, Any]], form: str) -> str:
    """Formats rows as aligned text, CSV or JSON."""
    if form == "json":
        return json.dumps(rows)
    if form == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().rstrip("\n")
    digits = decimals([row[name] for row in rows for name in ("mean", "iqm")])
    head = ("group", "runs", "mean", "95% confidence", "IQM", "95% confidence")
    body = [
        (
            row["group"],
            str(row["runs"]),
            f"{row['mean']:,.{digits}f}",
            f"{row['mean_low']:,.{digits}f} to {row['mean_high']:,.{digits}f}",
            f"{row['iqm']:,.{digits}f}",
            f"{row['iqm_low']:,.{digits}f} to {row['iqm_high']:,.{digits}f}",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in (head, *body)
    )
