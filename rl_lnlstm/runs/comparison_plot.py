"""Plots several groups of runs."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rl_lnlstm.runs.groups import Group, curve


def comparison_plot(groups: Sequence[Group]) -> Figure:
    """Draws the learning curves of groups of runs: the mean over runs, its interval, and the interquartile mean."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for index, group in enumerate(groups):
        found, color = curve(group), f"C{index}"
        name = f" {group.name}" if group.name.startswith("_") else group.name  # matplotlib leaves out such labels
        runs = f"{len(group.runs)} run" + "s" * (len(group.runs) > 1)
        axes.plot(found.frames, found.mean, color=color, linewidth=1.8, label=f"{name}, {runs}: mean")
        if len(group.runs) > 1:
            axes.fill_between(found.frames, found.low, found.high, color=color, alpha=0.2, linewidth=0)
            axes.plot(found.frames, found.iqm, color=color, linestyle="--", linewidth=1.2, label="interquartile mean")
    environments = {str(run.config.get("env_id")) for group in groups for run in group.runs}
    axes.set(title=", ".join(sorted(environments)), xlabel="frames", ylabel="mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
