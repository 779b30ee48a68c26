"""Gathers what a report shows: scores, memory, and the best, the median and the worst episode."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.errors import EnvironmentFailure, UserError, printable
from rl_lnlstm.evaluation.environments import MAX_ENVS, MakeEnvs
from rl_lnlstm.evaluation.episodes import EvaluatedEpisode
from rl_lnlstm.evaluation.evaluate import run_episodes, seeds_of_episodes
from rl_lnlstm.evaluation.video import rgb
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.reports.memory_use import MAX_LAG, measure_memory_use
from rl_lnlstm.reports.page import Content, ShownEpisode, page
from rl_lnlstm.reports.pictures import PictureRecorder
from rl_lnlstm.reports.replay import replay
from rl_lnlstm.reports.timeline import shown_steps
from rl_lnlstm.runs.layout import METRICS
from rl_lnlstm.runs.metrics_file import FRAMES, RETURN, column, read_rows

MAX_KEPT = 512 << 20  # bytes of recorded episodes that are kept, where episodes cannot be repeated
MAX_METRICS_BYTES = 256 << 20  # bytes of a metrics.csv


def make_report(
    policy: RecurrentPolicy,
    make_envs: MakeEnvs,
    env_id: str,
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    n_episodes: int = 20,
    deterministic: bool = True,
    seed: int = 0,
    cuts: Sequence[int] | None = None,
    max_lag: int = MAX_LAG,
    max_steps: int | None = None,
    num_envs: int = MAX_ENVS,
    progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Evaluates a policy, and returns a report as an HTML page.

    Args:
        policy: the policy.
        make_envs: makes the environments.
        env_id: the name of the environment.
        run_dir: the run directory, or the folder of the policy.
        config: the options of the run; empty if they are not known.
        n_episodes, deterministic, seed, cuts, max_lag, max_steps, num_envs: as for `memory_use`.
        progress: called with a line of text after each evaluation.

    Raises:
        UserError: the spaces of the environments differ from the policy's, or an option is out of range.
        EnvironmentFailure: an environment failed.
    """
    metrics, unread = read_metrics(run_dir)  # before an environment changes the current folder
    seeds = seeds_of_episodes(seed, n_episodes)
    kept: list[EvaluatedEpisode] = []
    with contextlib.closing(make_envs(min(num_envs, n_episodes), render=False)) as envs:

        def run(acts: Any, record: bool = False) -> Iterator[EvaluatedEpisode]:
            return run_episodes(acts, envs, seeds, seed, deterministic, max_steps, record)

        recorded = _keeping(run(policy, record=True), kept)
        memory = measure_memory_use(policy, recorded, run, deterministic, seed, cuts, max_lag, progress)
    problems = {} if config else {"config": f"{run_dir} has no config.json that can be read."}
    if unread:
        problems["metrics"] = unread
    chosen = _chosen(kept)
    pictures: list[list[bytes]] = [[] for _ in chosen]
    if all(episode.seed is not None for episode in chosen.values()):
        again, pictures, problem = _run_again_with_pictures(
            policy, make_envs, env_id, list(chosen.values()), deterministic, max_steps
        )
        chosen = dict(zip(chosen, again, strict=True))
    else:
        problem = f"There are no pictures: the environments of {env_id} cannot be seeded one by one."
    if problem:
        problems["pictures"] = problem
        progress(problem)
    shown = [
        ShownEpisode(title, episode.episode_return, episode.arrays, replay(policy, episode.arrays), own)
        for (title, episode), own in zip(chosen.items(), pictures, strict=True)
    ]
    return page(Content(env_id, run_dir, memory, shown, config, metrics, problems))


def _keeping(episodes: Iterable[EvaluatedEpisode], kept: list[EvaluatedEpisode]) -> Iterator[EvaluatedEpisode]:
    """Passes the episodes on and keeps them: without their arrays if they can be repeated by their seeds."""
    size = 0
    for episode in episodes:
        yield episode
        if episode.seed is not None:
            kept.append(episode._replace(arrays={}))
            continue
        size += sum(array.nbytes for array in episode.arrays.values())
        if size <= MAX_KEPT or not kept:
            kept.append(episode)


def _chosen(episodes: Sequence[EvaluatedEpisode]) -> dict[str, EvaluatedEpisode]:
    """The best, the median and the worst episode; fewer if there are fewer episodes."""
    ordered = sorted(episodes, key=lambda episode: (-episode.episode_return, episode.number))
    if len(ordered) == 1:
        return {"Only": ordered[0]}
    middle = {"Median": ordered[len(ordered) // 2]} if len(ordered) > 2 else {}
    return {"Best": ordered[0], **middle, "Worst": ordered[-1]}


def _run_again_with_pictures(
    policy: RecurrentPolicy,
    make_envs: MakeEnvs,
    env_id: str,
    chosen: Sequence[EvaluatedEpisode],
    deterministic: bool,
    max_steps: int | None,
) -> tuple[list[EvaluatedEpisode], list[list[bytes]], str | None]:
    """Runs the episodes with the same seeds again, recorded, with pictures if the environments have any.

    Returns:
        The episodes, the pictures of the steps of each that are shown, and why there are none, or None.
    """
    problem, seeds = None, [episode.seed for episode in chosen if episode.seed is not None]
    envs = _rendering(make_envs, len(seeds))
    if envs is None:
        problem = f"There are no pictures: {env_id} has no render mode rgb_array."
        envs = make_envs(len(seeds), render=False)
    wanted = [{*shown_steps(episode.length).tolist(), episode.length} for episode in chosen]
    recorder = None if problem else PictureRecorder(wanted)
    with contextlib.closing(envs):
        again = run_episodes(policy, envs, seeds, None, deterministic, max_steps, record=True, video=recorder)
        episodes = sorted(again, key=lambda episode: episode.number)
    return episodes, [[] for _ in chosen] if recorder is None else recorder.pictures, problem


def _rendering(make_envs: MakeEnvs, num_envs: int) -> VectorEnv | None:
    """Environments that return pictures; None if they cannot."""
    try:
        envs = make_envs(num_envs, render=True)
    except (UserError, EnvironmentFailure):
        return None
    try:
        envs.reset(seed=0)
        pictures: Any = envs.render()
        for picture in pictures:
            rgb(picture)
        return envs
    except Exception:  # any error of the environment means that it has no pictures
        pass
    envs.close()
    return None


def read_metrics(run_dir: Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The columns of `metrics.csv`, each `[iterations]`, or why there are none."""
    path = run_dir / METRICS
    if not path.is_file():
        return {}, f"{run_dir} has no {METRICS}."
    try:
        rows = read_rows(path, MAX_METRICS_BYTES)
        if not rows:
            raise ValueError("it has no rows")
        columns = {name: column(rows, name) for name in rows[0]}
        if not {FRAMES, RETURN} <= set(columns):
            raise ValueError(f"it has no column {FRAMES} or {RETURN}")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        return {}, f"{path} cannot be read: {printable(error)}"
    return columns, None
