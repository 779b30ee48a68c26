"""Plots the learning curve of a run."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from rl_lnlstm.runs.metrics_file import EVALUATION, FRAMES, RETURN, STD


def learning_curve(rows: list[dict[str, float]], title: str) -> Figure:
    """Draws the mean return of the last 100 episodes against frames, a band of one standard deviation, and evaluations.

    Args:
        rows: the metrics of each iteration.
        title: the title of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    frames = np.array([row[FRAMES] for row in rows])
    mean = np.array([row.get(RETURN, np.nan) for row in rows])
    std = np.array([row.get(STD, np.nan) for row in rows])
    if np.isfinite(std).any():
        label = "standard deviation of these episodes"
        axes.fill_between(frames, mean - std, mean + std, alpha=0.2, linewidth=0, label=label)
    axes.plot(frames, mean, linewidth=1.8, label="mean of the last 100 episodes")
    evaluations = np.array([row.get(EVALUATION, np.nan) for row in rows])
    if np.isfinite(evaluations).any():
        axes.plot(frames, evaluations, "o", markersize=4, label="evaluation, most probable actions")
    axes.set(title=title, xlabel="frames", ylabel="return")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure
