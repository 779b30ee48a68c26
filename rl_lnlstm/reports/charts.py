"""The charts of a report, as Plotly figures: learning curves, scores and memory."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rl_lnlstm.errors import printable
from rl_lnlstm.evaluation.result import Evaluation
from rl_lnlstm.reports.memory_use import MemoryUse
from rl_lnlstm.runs.metrics_file import EVALUATION, FRAMES, RETURN, STD

BLUE, BAND, ORANGE = "#2f6fb7", "rgba(47,111,183,0.18)", "#d9822b"
# The smaller curves, in this order, if the run has them.
OTHERS = {
    "rollout/ep_len_mean": "episode length",
    "train/entropy_loss": "entropy loss",
    "train/value_loss": "value loss",
    "train/explained_variance": "explained variance",
    "train/approx_kl": "approximate KL divergence",
    "train/clip_fraction": "clip fraction",
}
MAX_POINTS = 2000  # of a curve
BINS = 20


def label(text: object, limit: int = 60) -> str:
    """Text from a file or an environment for a chart. Plotly reads tags in texts, so they are escaped."""
    return html.escape(printable(text, limit))


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The same look for all charts."""
    font = {"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12, "color": "#28323f"}
    figure.update_layout(
        template="none",
        height=height,
        font=font,
        margin={"l": 56, "r": 16, "t": 36, "b": 44},
        hoverlabel={"font": font},
        paper_bgcolor="white",
        plot_bgcolor="white",
        **layout,
    )
    axis = {"gridcolor": "#e8ecf1", "linecolor": "#c9d1db", "zeroline": False, "ticks": "", "automargin": True}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(font={"size": 13})
    return figure


def learning_curves(metrics: Mapping[str, np.ndarray]) -> list[go.Figure]:
    """Charts of metrics against frames. The first one is the mean return of the last 100 episodes.

    Args:
        metrics: columns of `metrics.csv`, each `[iterations]`.
    """
    stride = math.ceil(len(metrics[FRAMES]) / MAX_POINTS)
    columns = {name: values[::stride] for name, values in metrics.items()}
    frames, mean = columns[FRAMES], columns[RETURN]
    figure = go.Figure()
    if STD in columns and np.isfinite(columns[STD]).any():
        known = np.isfinite(mean) & np.isfinite(columns[STD])
        std, at, middle = columns[STD][known], frames[known], mean[known]
        _band(figure, at, middle - std, middle + std, "standard deviation")
    name = "mean of the last 100 episodes"
    figure.add_scatter(x=frames, y=mean, name=name, line={"color": BLUE}, mode=_mode(mean))
    evaluations = metrics.get(EVALUATION, np.array([]))
    if (known := np.isfinite(evaluations)).any():
        at, name = metrics[FRAMES][known], "evaluation, most probable actions"
        figure.add_scatter(x=at, y=evaluations[known], name=name, mode="markers", marker={"color": ORANGE})
    figure = styled(figure, 360, legend=_below())
    figure.update_xaxes(title_text="frames", tickformat="~s")
    figure.update_yaxes(title_text="return")
    others = [name for name in OTHERS if np.isfinite(columns.get(name, np.nan)).any()]
    return [figure, *(_small_curve(frames, columns[name], OTHERS[name]) for name in others)]


def _small_curve(frames: np.ndarray, values: np.ndarray, title: str) -> go.Figure:
    figure = go.Figure()
    figure.add_scatter(x=frames, y=values, name=title, mode=_mode(values), line={"color": BLUE, "width": 1.4})
    figure = styled(figure, 190, title={"text": title, "font": {"size": 13}}, showlegend=False)
    figure.update_xaxes(nticks=5, tickformat="~s")
    return figure


def _mode(values: np.ndarray) -> str:
    """A line through few points would be invisible."""
    return "lines" if np.isfinite(values).sum() > 2 else "lines+markers"


def histograms(score: Evaluation) -> go.Figure:
    """How the returns and the lengths of the episodes are distributed."""
    figure = make_subplots(1, 2, subplot_titles=["returns", "lengths, in frames"], horizontal_spacing=0.1)
    for column, values in enumerate((score.returns, score.lengths), 1):
        figure.add_histogram(
            x=values, nbinsx=BINS, marker={"color": BLUE, "line": {"color": "white", "width": 1}}, row=1, col=column
        )
    figure.add_vline(score.iqm, line={"color": ORANGE, "dash": "dash"}, row=1, col=1)
    figure = styled(figure, 260, showlegend=False, bargap=0.02)
    figure.update_yaxes(title_text="episodes", col=1)
    if len(set(score.returns)) == 1:  # a single bar as wide as the chart says nothing
        figure.update_xaxes(range=[score.returns[0] - 1, score.returns[0] + 1], col=1)
    if len(set(score.lengths)) == 1:
        figure.update_xaxes(range=[score.lengths[0] - 1, score.lengths[0] + 1], col=2)
    return figure


def cut_curve(memory: MemoryUse) -> go.Figure:
    """The mean return with the memory cut every k steps, with intervals."""
    cuts, scores = list(memory.cut_scores), list(memory.cut_scores.values())
    low, high = np.array([score.mean_interval for score in scores]).T
    means = np.array([score.mean for score in scores])
    figure = go.Figure()
    whole = memory.score.mean_interval
    figure.add_hrect(whole.low, whole.high, fillcolor="rgba(217,130,43,0.15)", line_width=0, layer="below")
    figure.add_hline(memory.score.mean, line={"color": ORANGE, "dash": "dash"})
    figure.add_scatter(
        x=cuts,
        y=means,
        error_y={"type": "data", "array": high - means, "arrayminus": means - low, "thickness": 1.2, "width": 4},
        name="memory cut",
        mode="lines+markers",
        line={"color": BLUE},
    )
    figure.add_scatter(  # only for the legend
        x=[None], y=[None], name="whole memory", mode="lines", line={"color": ORANGE, "dash": "dash"}
    )
    figure = styled(figure, 360, title={"text": "score with the memory cut", "font": {"size": 14}}, legend=_below())
    logarithmic = max(cuts) > 2 * len(cuts)
    figure.update_xaxes(
        title_text="steps between two cuts", type="log" if logarithmic else "linear", tickvals=cuts, ticktext=cuts
    )
    figure.update_yaxes(title_text="mean return")
    return figure


def gradient_curve(memory: MemoryUse) -> go.Figure:
    """The norm of the gradient with respect to earlier observations, with intervals."""
    lags = np.arange(memory.gradient_norms.shape[1])
    low, high = np.array(memory.gradient_intervals).T
    figure = go.Figure()
    smallest = memory.gradient[memory.gradient > 0].min(initial=1.0) / 10
    _band(figure, lags, np.maximum(low, smallest), np.maximum(high, smallest), "95% confidence")
    figure.add_scatter(
        x=lags, y=memory.gradient, name="mean over episodes", mode=_mode(memory.gradient), line={"color": BLUE}
    )
    title = {"text": "gradient of the action's log-probability", "font": {"size": 14}}
    figure = styled(figure, 360, title=title, legend=_below())
    figure.update_xaxes(title_text="steps from the observation to the action")
    figure.update_yaxes(title_text="norm", type="log", exponentformat="power", dtick=1)
    return figure


def _below() -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": -0.26, "yanchor": "top"}


def _band(
    figure: go.Figure,
    x: Sequence[float] | np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    name: str,
) -> None:
    """Fills the area between two curves."""
    around = np.concatenate([x, np.asarray(x)[::-1]])
    figure.add_scatter(
        x=around,
        y=np.concatenate([high, low[::-1]]),
        name=name,
        fill="toself",
        fillcolor=BAND,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
    )
