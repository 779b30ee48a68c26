"""The timeline of an episode: rewards, values, action distributions, state and gates, one below the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rl_lnlstm.reports.charts import BLUE, ORANGE, label, styled
from rl_lnlstm.reports.replay import ActionPart, LayerMemory, Replay

MAX_SHOWN_STEPS = 300  # of an episode
MAX_UNITS, MAX_IN_ALL = 64, 384  # units that are shown: of an LSTM layer, and of all layers of a deep policy
MAX_LINES = 6  # more probabilities are shown as a heat map
MAX_PARTS = 6  # entries of an action space
COLORS = (BLUE, "#d9822b", "#3a9a6a", "#b5476b", "#7a5fc0", "#6b7785")
LINE, MAP = 90, 130  # heights of the rows, in pixels
GAP = 34  # between two rows
SIGNED = [[0, "#2f6fb7"], [0.5, "#ffffff"], [1, "#c0392b"]]  # negative, zero, positive
UNSIGNED = [[0, "#ffffff"], [1, "#14532d"]]  # 0 to 1


class _Row(NamedTuple):
    title: str
    height: int
    traces: list[Any]
    bounds: tuple[float, float] | None = None  # of the y axis


def shown_steps(length: int) -> np.ndarray:
    """The steps of an episode that are shown: all, or every n-th."""
    return np.arange(0, length, math.ceil(length / MAX_SHOWN_STEPS))


def timeline(episode: Mapping[str, np.ndarray], replayed: Replay) -> go.Figure:
    """Draws the timeline of an episode.

    The first shape of the figure is the cursor. If there are several LSTM layers, a menu in the figure selects one.

    Args:
        episode: the episode, as from `record_episodes`.
        replayed: its replay.
    """
    steps = shown_steps(len(episode["rewards"]))
    rows = [_rewards(episode, steps)]
    if "values" in episode:
        rows.append(_values(episode, steps))
    rows += [_action_row(part, steps) for part in replayed.actions[:MAX_PARTS]]
    plain = sum(len(row.traces) for row in rows)
    max_units = min(MAX_UNITS, max(1, MAX_IN_ALL // len(replayed.layers)))
    layers = [_layer_rows(layer, steps, max_units, shown=number == 0) for number, layer in enumerate(replayed.layers)]
    for row_of_layers in zip(*layers, strict=True):
        first = row_of_layers[0]
        rows.append(first._replace(traces=[trace for row in row_of_layers for trace in row.traces]))
    heights = [row.height for row in rows]
    inner = sum(heights) + GAP * (len(rows) - 1)
    figure = make_subplots(
        len(rows),
        1,
        shared_xaxes=True,
        subplot_titles=[row.title for row in rows],
        row_heights=heights,
        vertical_spacing=GAP / inner,
    )
    for number, row in enumerate(rows, 1):
        for trace in row.traces:
            figure.add_trace(trace, row=number, col=1)
            if isinstance(trace, go.Heatmap):  # names such as "3" are no numbers
                figure.update_yaxes(type="category", row=number)
        if row.bounds is not None:
            figure.update_yaxes(range=row.bounds, row=number)
    figure = styled(figure, inner + 110, showlegend=False, hovermode="x")
    figure.update_layout(margin={"l": 52, "r": 16, "t": 64 if len(layers) > 1 else 34, "b": 44}, bargap=0)
    figure.update_annotations(x=0, xanchor="left")
    figure.update_xaxes(title_text="step", row=len(rows))
    figure.update_xaxes(range=[-0.5, len(episode["rewards"]) - 0.5])
    figure.update_yaxes(nticks=4)
    _mark(figure, 0, "#1c2530", 1.5)  # the cursor
    _mark(figure, -0.5, ORANGE, 6)  # the reset before the first step; half of the line is outside
    if len(layers) > 1:
        figure.update_layout(updatemenus=[_menu(replayed.layers, plain, len(layers[0]))])
    return figure


def _mark(figure: go.Figure, x: float, color: str, width: float) -> None:
    """A vertical line through all rows."""
    figure.add_shape(type="line", x0=x, x1=x, y0=0, y1=1, xref="x", yref="paper", line={"color": color, "width": width})


def _rewards(episode: Mapping[str, np.ndarray], steps: np.ndarray) -> _Row:
    sums = np.add.reduceat(np.asarray(episode["rewards"], float), steps)
    over = "" if len(steps) < 2 or steps[1] == 1 else f", summed over {steps[1]} steps"
    return _Row(f"reward{over}", LINE, [go.Bar(x=steps, y=sums, marker={"color": BLUE}, name="reward")])


def _values(episode: Mapping[str, np.ndarray], steps: np.ndarray) -> _Row:
    return _Row("value", LINE, [_line(steps, episode["values"][steps], "value", BLUE)])


def _action_row(part: ActionPart, steps: np.ndarray) -> _Row:
    of = f" of {label(part.name)}" if part.name else ""
    if part.probabilities is not None:
        chances = part.probabilities[steps]
        if len(part.labels) > MAX_LINES:
            trace = _heat_map(steps, chances.T, part.labels, UNSIGNED, 0, 1)
            return _Row(f"action probabilities{of}, 0 (white) to 1", MAP, [trace])
        lines = [
            _line(steps, column, label(name), color)
            for name, column, color in zip(part.labels, chances.T, COLORS, strict=False)
        ]
        return _Row(f"action probabilities{of}: {_legend(part.labels)}", LINE, lines, (-0.04, 1.04))
    assert part.mean is not None
    assert part.std is not None
    mean, std = part.mean[steps], part.std[steps]
    if len(part.labels) > MAX_LINES:
        largest = _largest(mean)
        trace = _heat_map(steps, mean.T, part.labels, SIGNED, -largest, largest)
        return _Row(f"mean of the action{of}, {_range(largest)}", MAP, [trace])
    traces: list[Any] = []
    for column, (name, color) in enumerate(zip(part.labels, COLORS, strict=False)):
        low, high = mean[:, column] - std[:, column], mean[:, column] + std[:, column]
        around = np.concatenate([high, low[::-1]])
        traces.append(
            go.Scatter(
                x=np.concatenate([steps, steps[::-1]]),
                y=around,
                fill="toself",
                mode="lines",
                line={"width": 0, "color": color},
                opacity=0.25,
                hoverinfo="skip",
            )
        )
        traces.append(_line(steps, mean[:, column], label(name), color))
    return _Row(f"action{of}, mean and std: {_legend(part.labels)}", LINE, traces)


def _legend(names: list[str]) -> str:
    """The names in the colours of their lines."""
    return "  ".join(
        f'<span style="color:{color}">■ {label(name, 20)}</span>' for name, color in zip(names, COLORS, strict=False)
    )


def _layer_rows(layer: LayerMemory, steps: np.ndarray, max_units: int, shown: bool) -> list[_Row]:
    """Heat maps of a layer's state and gates: the units that vary most, in their order."""
    units = np.sort(np.argsort(-layer.c.std(0), kind="stable")[:max_units])
    names = [str(unit) for unit in units]
    of = f"{len(units)} of {layer.c.shape[1]} units" if len(units) < layer.c.shape[1] else f"{len(units)} units"
    rows = []
    for title, values in (("h, the output", layer.h), ("c, the cell", layer.c)):
        part = values[np.ix_(steps, units)].T
        largest = _largest(part)
        trace = _heat_map(steps, part, names, SIGNED, -largest, largest, shown)
        rows.append(_Row(f"{title}: {of}", MAP, [trace]))
    for title, values in (("i, the input", layer.i), ("f, the forget", layer.f), ("o, the output", layer.o)):
        part = values[np.ix_(steps, units)].T
        rows.append(_Row(f"{title} gate: 0 (white) to 1", MAP, [_heat_map(steps, part, names, UNSIGNED, 0, 1, shown)]))
    return rows


def _largest(values: np.ndarray) -> float:
    return float(np.abs(values).max(initial=0)) or 1.0


def _range(largest: float) -> str:
    return f"{-largest:.3g} (blue) to {largest:.3g} (red)"


def _line(x: np.ndarray, y: np.ndarray, name: str, color: str) -> go.Scatter:
    mode = "lines" if len(x) > 1 else "markers"
    return go.Scatter(x=x, y=y, name=name, mode=mode, line={"color": color, "width": 1.6, "shape": "hvh"})


def _heat_map(
    x: np.ndarray, z: np.ndarray, names: list[str], colors: Any, low: float, high: float, shown: bool = True
) -> go.Heatmap:
    """A heat map of `z`, `[names, steps]`."""
    return go.Heatmap(
        x=x,
        y=[label(name, 20) for name in names],
        z=z.astype(np.float32),
        colorscale=colors,
        zmin=low,
        zmax=high,
        showscale=False,
        visible=shown,
        hovertemplate="step %{x}, %{y}: %{z:.3f}<extra></extra>",
    )


def _menu(layers: list[LayerMemory], plain: int, maps: int) -> dict[str, Any]:
    """A menu that shows one LSTM layer. The maps of all layers follow `plain` traces, row by row."""
    buttons = []
    for chosen, layer in enumerate(layers):
        visible = [True] * plain + [number == chosen for _ in range(maps) for number in range(len(layers))]
        name = label(layer.name.replace("_", " "))
        buttons.append({"label": name, "method": "restyle", "args": [{"visible": visible}]})
    return {"buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 26}}
