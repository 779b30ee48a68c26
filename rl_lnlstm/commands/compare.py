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
from rl_lnlstm.files import output_file
from rl_lnlstm.runs.comparison_plot import comparison_plot
from rl_lnlstm.runs.groups import Group, Score, differing_options, read_group, score, score_name


def plot(options: PlotOptions) -> int:
    """Draws the learning curves of groups of runs, and prints a table of their scores; returns the exit code.

    Raises:
        UserError: a directory contains no run, or the picture cannot be written.
    """
    if not options.out.suffix:
        raise UserError(f"--out {options.out} needs an extension, such as .png, which determines the format")
    groups = _groups(options.runs)
    try:
        with output_file(options.out) as path:
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
    several = min(len(one), len(other)) > 1  # a single run says nothing about other seeds
    result: dict[str, Any] = {
        "score": by,
        "groups": [_row(group, found) for group, found in zip(groups, scores, strict=True)],
        "difference_of_means": float(one.mean() - other.mean()),
        "difference_interval": list(difference_interval(one, other)) if several else None,
        "probability_of_improvement": float(probability_of_improvement(one, other)),
        "probability_interval": list(improvement_interval(one, other)) if several else None,
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
    difference, interval = result["difference_of_means"], result["difference_interval"]
    digits = decimals([difference, *(interval or [])])
    lines = [
        f"score: {result['score']}",
        "",
        _table(result["groups"], "text"),
        "",
        f"{first} minus {second}: {difference:,.{digits}f}, {_in_text(interval, digits, '95% confidence ')}",
        f"probability that a run of {first} beats one of {second}: {result['probability_of_improvement']:.2f}, "
        f"{_in_text(result['probability_interval'], 2, '95% confidence ')}",
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
    unknown = None, None
    (mean_low, mean_high), (iqm_low, iqm_high) = found.mean_interval or unknown, found.iqm_interval or unknown
    return {
        "group": printable(group.name),
        "runs": len(group.runs),
        "mean": found.mean,
        "mean_low": mean_low,
        "mean_high": mean_high,
        "iqm": found.iqm,
        "iqm_low": iqm_low,
        "iqm_high": iqm_high,
    }


def _in_text(interval: Sequence[float | None] | None, digits: int, before: str = "") -> str:
    """An interval, or why there is none."""
    if interval is None or None in interval:
        return "no interval for a single run"
    low, high = interval
    return f"{before}{low:,.{digits}f} to {high:,.{digits}f}"


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
        low, high = result[interval] or ("", "")
        rows.append({"name": interval, "first": low, "second": high})
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
            _in_text((row["mean_low"], row["mean_high"]), digits),
            f"{row['iqm']:,.{digits}f}",
            _in_text((row["iqm_low"], row["iqm_high"]), digits),
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
