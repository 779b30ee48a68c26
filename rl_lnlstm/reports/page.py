"""The HTML page of a report: one file that needs no network.

Texts come from files and environments that need not be trusted. All of them are escaped. In addition, the page's
content security policy admits only the two scripts of this package, by their hashes, and no connections.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from rl_lnlstm.errors import printable
from rl_lnlstm.evaluation.record import EpisodeArrays
from rl_lnlstm.evaluation.result import Evaluation, decimals
from rl_lnlstm.reports.charts import cut_curve, gradient_curve, histograms, learning_curves
from rl_lnlstm.reports.memory_use import MemoryUse, cut_name
from rl_lnlstm.reports.pictures import data_uri, fitting, is_small
from rl_lnlstm.reports.replay import Replay
from rl_lnlstm.reports.timeline import shown_steps, timeline
from rl_lnlstm.runs.metrics_file import FRAMES
from rl_lnlstm.version import __version__

MAX_PAGE_BYTES = 19 << 20  # of a report


class ShownEpisode(NamedTuple):
    """An episode of the report.

    Attributes:
        title: why it is shown, such as "Best".
        episode_return: its return; the rewards in `arrays` may be clipped.
        arrays: the recorded episode, as from `record_episodes`.
        replayed: its replay.
        pictures: WebP files: one for each of the `shown_steps`, and one at the end; empty if there are none.
    """

    title: str
    episode_return: float
    arrays: EpisodeArrays
    replayed: Replay
    pictures: list[bytes]


@dataclasses.dataclass(frozen=True)
class Content:
    """Everything that a report shows.

    Attributes:
        env_id: the environment.
        run_dir: where the policy is from.
        memory: the scores, and what the policy remembers.
        episodes: the episodes to show.
        config: the options of the run; empty if they are not known.
        metrics: the columns of `metrics.csv`; empty if there is none.
        problems: what is missing in the report, and why; a sentence each.
    """

    env_id: str
    run_dir: Path
    memory: MemoryUse
    episodes: Sequence[ShownEpisode]
    config: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    problems: Mapping[str, str]


def page(content: Content) -> str:
    """The report as HTML."""
    score = content.memory.score
    plotly, script = get_plotlyjs(), _resource("page.js")
    values = {
        "version": __version__,
        "title": _text(f"{content.env_id}: report"),
        "subtitle": _text(_subtitle(content)),
        "style": _resource("page.css"),
        "tiles": _tiles(content.memory),
        "histograms": _chart("histograms", histograms(score)),
        "score_note": _text(_score_note(score)),
        "finding": _text(finding(content.memory)),
        "cut_curve": _chart("cut-curve", cut_curve(content.memory)),
        "gradient_curve": _chart("gradient-curve", gradient_curve(content.memory)),
        "learning": _note(content, "metrics") or _learning(content.metrics),
        "options": _note(content, "config") or _options(content.config),
        "plotly": plotly,
        "script": script,
        "script_hashes": " ".join(map(_hash, (plotly, script))),
    }
    budget = MAX_PAGE_BYTES - sum(len(part.encode()) for part in values.values())
    values["episodes_note"] = _text(_episodes_note(content))
    values["episodes"] = _episodes(content.episodes, budget)
    return Template(_resource("page.html")).substitute(values)


def finding(memory: MemoryUse) -> str:
    """What the score with the memory cut says, in words."""
    digits, harmless = decimals(memory.score.returns), memory.harmless_cut

    def score(every: int) -> str:
        return f"{memory.cut_scores[every].mean:,.{digits}f}"

    whole, shortest = f"{memory.score.mean:,.{digits}f}", min(memory.cut_scores)
    if harmless == shortest:
        longer = "no memory" if shortest == 1 else "no longer memory"
        return (
            f"The score does not fall, even with the memory cut {cut_name(shortest)}: it is {score(shortest)}, and "
            f"{whole} with the whole memory. The policy needs {longer} here."
        )
    harmful = max(every for every in memory.cut_scores if harmless is None or every < harmless)
    falls = f"with the memory cut {cut_name(harmful)}, the score falls from {whole} to {score(harmful)}."
    if harmless is None:
        return f"The policy uses its memory: even {falls}"
    return f"The policy uses its memory: {falls} With a cut every {harmless} steps or less often, it does not fall."


def _subtitle(content: Content) -> str:
    seed, frames = content.config.get("seed"), content.metrics.get(FRAMES, np.array([]))
    parts = [str(content.run_dir)]
    parts += [f"seed {seed}"] if seed is not None else []
    parts += [f"trained for {frames[-1]:,.0f} frames"] if len(frames) else []
    return ", ".join(parts)


def _tiles(memory: MemoryUse) -> str:
    score = memory.score
    digits = decimals(score.returns)

    def interval(bounds: tuple[float, float]) -> str:
        return f"95%: {bounds[0]:,.{digits}f} to {bounds[1]:,.{digits}f}"

    harmless, longest = memory.harmless_cut, max(memory.cut_scores)
    cut = f"not every {longest:,}" if harmless is None else f"every {harmless:,}"
    tiles = [
        ("mean return", f"{score.mean:,.{digits}f}", interval(score.mean_interval)),
        ("interquartile mean", f"{score.iqm:,.{digits}f}", interval(score.iqm_interval)),
        ("median return", f"{score.median:,.{digits}f}", f"{min(score.returns):,.6g} to {max(score.returns):,.6g}"),
        ("mean length", f"{score.mean_length:,.0f}", f"{min(score.lengths):,} to {max(score.lengths):,} frames"),
        ("memory can be cut", cut, f"{'step' if (harmless or longest) == 1 else 'steps'}, without loss"),
    ]
    return "".join(
        f'<div class="tile"><span>{_text(name)}</span><b>{_text(value)}</b><span>{_text(below)}</span></div>'
        for name, value, below in tiles
    )


def _score_note(score: Evaluation) -> str:
    actions = "the most probable actions" if score.deterministic else "sampled actions"
    cut = f" {sum(score.cut)} of them did not end within the limit of steps and were cut." if any(score.cut) else ""
    return (
        f"{len(score.returns)} episodes with {actions}, seed {score.seed}.{cut} The dashed line is the interquartile "
        "mean. Intervals are percentile bootstraps over episodes."
    )


def _episodes_note(content: Content) -> str:
    how = "Drag the slider, press Play, or click into a chart: the picture and the cursor in all charts move together."
    reset = "The orange line at the left is the reset of the memory at the start of the episode."
    state = "h and c are those that enter each step: blue is negative, red is positive."
    return " ".join(filter(None, [how, reset, state, content.problems.get("pictures")]))


def _note(content: Content, name: str) -> str:
    """What is missing, as a paragraph; empty if nothing is."""
    return f'<p class="note">{_text(content.problems[name])}</p>' if name in content.problems else ""


def _learning(metrics: Mapping[str, np.ndarray]) -> str:
    first, *others = learning_curves(metrics)
    small = "".join(_chart(f"metric-{number}", figure) for number, figure in enumerate(others))
    return f'{_chart("learning-curve", first)}<div class="grid">{small}</div>'


def _options(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{_text(name)}</th><td>{_text(json.dumps(value) if not isinstance(value, str) else value)}</td></tr>"
        for name, value in config.items()
    )
    return f'<div class="columns"><table>{rows}</table></div>'


# ------------------------------------------------------------------------------------------------------- episodes


def _episodes(episodes: Sequence[ShownEpisode], budget: int) -> str:
    charts = [_chart(f"timeline-{n}", timeline(own.arrays, own.replayed)) for n, own in enumerate(episodes)]
    shown = [_positions(own) for own in episodes]
    # base64 makes pictures larger by a third, and the first one is there twice.
    left = int((budget - sum(map(len, charts))) * 0.7) - 40_000 * len(episodes)
    pictures = fitting([picture for own in shown for picture in own.pictures], left)
    parts, first = [], 0
    for number, (own, chart, positions) in enumerate(zip(episodes, charts, shown, strict=True)):
        chosen = pictures[first : first + len(positions.pictures)]
        first += len(positions.pictures)
        parts.append(_episode(number, own, chart, positions._replace(pictures=chosen)))
    return "".join(parts)


class _Positions(NamedTuple):
    """The positions of an episode's slider."""

    steps: list[int]
    texts: list[str]
    pictures: list[bytes]


def _positions(episode: ShownEpisode) -> _Positions:
    arrays, length = episode.arrays, len(episode.arrays["rewards"])
    steps = [*shown_steps(length).tolist(), length]
    sums = np.concatenate([[0.0], np.cumsum(arrays["rewards"])])
    texts = [
        f"step {step:,} of {length:,}\n{_acted(arrays, step)}rewards so far {sums[step]:,.6g}" for step in steps[:-1]
    ]
    end = "terminated" if arrays["terminated"] else "truncated"
    texts.append(f"end after {length:,} steps: {end}\nreturn {episode.episode_return:,.6g}")
    return _Positions(steps, texts, episode.pictures if len(episode.pictures) == len(steps) else [])


def _acted(arrays: EpisodeArrays, step: int) -> str:
    names = [name for name in arrays if name == "actions" or name.startswith("actions/")]
    actions = ", ".join(
        (f"{name.removeprefix('actions/')} " if "/" in name else "")
        + np.array2string(np.asarray(arrays[name][step]), precision=3, threshold=12)
        for name in names
    )
    value = f"value {arrays['values'][step]:.4g}\n" if "values" in arrays else ""
    return f"{value}action {printable(actions)}\nreward {arrays['rewards'][step]:.4g}\n"


def _episode(number: int, episode: ShownEpisode, chart: str, positions: _Positions) -> str:
    arrays, length = episode.arrays, len(episode.arrays["rewards"])
    uris = [data_uri(picture) for picture in positions.pictures]
    seed = f", seed {int(arrays['seed'])}" if "seed" in arrays else ""
    title = f"{episode.title} episode: return {episode.episode_return:,.6g}, {length:,} steps{seed}"
    image = ""
    if uris:
        enlarged = ' class="pixels"' if is_small(positions.pictures[0]) else ""
        image = f'<img{enlarged} src="{uris[0]}" alt="{_text(episode.title)} episode, picture of the step">'
    data = {"steps": positions.steps, "texts": positions.texts, "pictures": uris, "last": length - 1}
    return (
        f'<article class="episode" data-steps="steps-{number}"><h3>{_text(title)}</h3>'
        f'<div class="player"><div class="screen">{image}<p class="readout">{_text(positions.texts[0])}</p></div>'
        f'<div class="controls"><button type="button">Play</button><input type="range" min="0" '
        f'max="{len(positions.steps) - 1}" value="0" aria-label="step of the {_text(episode.title.lower())} episode">'
        f"</div></div>{chart}{_json(f'steps-{number}', json.dumps(data))}</article>"
    )


# ---------------------------------------------------------------------------------------------------------- pieces


def _resource(name: str) -> str:
    return resources.files("rl_lnlstm.reports").joinpath(name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(printable(value, 2000))


def _json(name: str, text: str) -> str:
    """JSON for a script of the page. No text in it can end the element, because `<` is escaped."""
    return f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'


def _chart(name: str, figure: go.Figure) -> str:
    height = figure.layout.height
    return f'<div class="chart" data-figure="figure-{name}" style="min-height:{height}px"></div>' + _json(
        f"figure-{name}", figure.to_json()
    )


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
