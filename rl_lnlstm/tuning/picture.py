"""The picture of a sweep: the learning curves of the trials, and what decided their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

from rl_lnlstm.tuning.records import Trial
from rl_lnlstm.tuning.results import NAMES, short
from rl_lnlstm.tuning.space import Choice, Space, encoded, point_of

SCATTERED = 4  # options whose values are drawn against the scores
COLORS = {"completed": "C0", "pruned": "0.6", "failed": "C3", "running": "C1"}


def sweep_picture(
    trials: Sequence[Trial], finalists: Sequence[Trial], importances: Mapping[str, float], space: Space, title: str
) -> Figure:
    """Draws curves of all trials and finalists, the importances, and scores against the most important options.

    Args:
        trials: the trials, the best first.
        finalists: the finalists, the best first.
        importances: names of parts of the search space, the most important first, and their importances.
        space: the search space.
        title: the title of the figure.
    """
    figure = Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    if not importances:
        _draw_curves(figure.add_subplot(), trials, finalists)
        return figure
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 2))
    above, below = parts
    curves, bars = above.subplots(1, 2, width_ratios=(3, 2))
    _draw_curves(curves, trials, finalists)
    names, values = list(importances)[::-1], list(importances.values())[::-1]
    bars.barh([NAMES.get(name, name) for name in names], values, color="C0")
    bars.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    bars.set(title="importance")
    _tidy(bars)
    shown = list(importances)[:SCATTERED]
    for index, axes in enumerate(below.subplots(1, len(shown), squeeze=False, sharey=True)[0]):
        _draw_scores(axes, trials, shown[index], space)
        if index == 0:
            axes.set(ylabel="return at the last report")
    return figure


def _draw_curves(axes: Axes, trials: Sequence[Trial], finalists: Sequence[Trial]) -> None:
    labelled = set[str]()
    for trial in reversed(trials):
        if not trial.has_score:
            continue
        frames, scores = zip(*trial.scores.reports, strict=True)
        label = trial.state if trial.state not in labelled else None
        labelled.add(trial.state)
        color = COLORS[trial.state]
        axes.plot(frames, scores, color=color, linewidth=1.2, alpha=0.7, label=label, marker="o", markersize=2)
        axes.annotate(
            str(trial.number), (frames[-1], scores[-1]), xytext=(3, 0), textcoords="offset points", fontsize=7
        )
    for place, trial in enumerate(finalists):
        if trial.has_score:
            frames, scores = zip(*trial.scores.reports, strict=True)
            best = place == 0
            axes.plot(
                frames,
                scores,
                "--",
                color="C2",
                linewidth=2.2 if best else 1,
                alpha=1 if best else 0.6,
                label="best, again with another seed" if best else None,
            )
    axes.set(title="trials", xlabel="frames", ylabel="mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes)


def _draw_scores(axes: Axes, trials: Sequence[Trial], name: str, space: Space) -> None:
    for trial in trials:
        point = point_of(trial.options, space)
        if point is not None and trial.has_score:
            marker = "o" if trial.state == "completed" else "x"
            axes.plot(encoded(name, point[name], space), trial.score, marker, color=COLORS[trial.state])
    values = space[name]
    if isinstance(values, Choice):  # at equal distances
        axes.set_xticks(range(len(values.values)), [short(value) for value in values.values], fontsize=8)
        axes.set_xlim(-0.5, len(values.values) - 0.5)
    else:
        axes.set_xscale("log")
        axes.set_xlim(values.low, values.high)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=NAMES.get(name, name))
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
