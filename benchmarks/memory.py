"""What is learnt on partially observable tasks from the same number of frames, by this library and by sb3-contrib.

    python benchmarks/memory.py                                             # all tasks, 5 seeds, 100,000 frames
    python benchmarks/memory.py --tasks RepeatPreviousEasy CountRecallEasy --seeds 7 8 9 --variants defaults sb3-contrib
    python benchmarks/memory.py --variants defaults ent_coef=0.01 "gae_lambda=0.9 num_steps=256"
    python benchmarks/memory.py --record --picture docs/images/memory.png   # only the tables, if all runs are done

The tasks are from public packages: POPGym (Morad et al. 2023), MiniGrid, and Gymnasium's control tasks without
velocities. A variant is `defaults`, options that differ from the defaults, `sb3-contrib` (RecurrentPPO with its own
defaults), or `random` (actions drawn uniformly, which is score 0). No task has a preset here.

Each run adds one line to the file of results as soon as it ends, and no run in that file is repeated: you can stop the
script at any time and start it again. If the code has changed what is learnt, use a new file (`--results`).

Policies are evaluated with sampled actions, because the best strategy of some of the games is a mixed one.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from aggregate import Statistic, iqm, mean, profile, stratified_interval
from measure import Table, record
from memory_runs import CANDIDATES, PEER, RANDOM, TASKS, Results, Run, compute, options_of, task_of

RESULTS = Path(__file__).with_name("memory.jsonl")


@dataclasses.dataclass
class Options:
    tasks: tuple[str, ...] = tuple(TASKS)
    """names in TASKS; POPGym's Medium and Hard tasks too, such as CountRecallHard"""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """seeds"""
    frames: int = 100_000
    """frames to train for, over all environments"""
    variants: tuple[str, ...] = ("defaults", PEER)
    """what to compare; differences are those to the first one"""
    episodes: int = 100
    """number of episodes of each evaluation"""
    num_envs: int = 8
    """number of environments, unless a variant says another"""
    processes: int = 1
    """number of runs at a time, each with one thread"""
    results: Path = RESULTS
    """the file of results, one JSON line for each run"""
    picture: Path | None = None
    """draw the scores here"""
    record: bool = False
    """write the tables to RESULTS.md; runs that are missing stay missing"""


class Scores:
    """The returns of all runs by task and variant, and their normalised scores."""

    def __init__(self, options: Options, results: Results) -> None:
        self.options, self._results = options, results

    def results(self, task: str, variant: str) -> list[dict[str, Any]]:
        """The results of all seeds that are done; errors are left out."""
        found = (self._results.found.get(run) for run in runs_of(self.options, [task], [variant]))
        return [result for result in found if result is not None and "error" not in result]

    def error(self, task: str, variant: str) -> str | None:
        """Why the first of the runs failed, if one did."""
        found = (self._results.found.get(run) or {} for run in runs_of(self.options, [task], [variant]))
        return next((result["error"] for result in found if "error" in result), None)

    def normalised(self, tasks: Sequence[str], variant: str) -> np.ndarray:
        """`[tasks, seeds]`: 0 is a random policy's return, 1 is the task's best."""
        scores = []
        for task in tasks:
            low = self.results(task, RANDOM)[0]["return"]
            returns = np.array([result["return"] for result in self.results(task, variant)])
            scores.append((returns - low) / (task_of(task).best - low))
        return np.array(scores)

    def complete(self, *variants: str) -> list[str]:
        """The tasks on which all seeds of these variants have a result."""
        expected = len(self.options.seeds)
        return [
            task
            for task in self.options.tasks
            if self.results(task, RANDOM) and all(len(self.results(task, one)) == expected for one in variants)
        ]


def runs_of(options: Options, tasks: Sequence[str], variants: Sequence[str]) -> list[Run]:
    """The runs of these variants, seed after seed. Random actions have a single run, which does not train."""
    runs = (
        Run(task, variant, seed, options.frames, options.episodes, options.num_envs)
        for seed in options.seeds
        for task in tasks
        for variant in variants
    )
    return list(dict.fromkeys(run._replace(seed=0, frames=0) if run.variant == RANDOM else run for run in runs))


def table_of_returns(scores: Scores) -> Table:
    options, rows = scores.options, []
    for task in options.tasks:
        row = [task]
        for variant in dict.fromkeys((*options.variants, RANDOM)):
            returns = [result["return"] for result in scores.results(task, variant)]
            if not returns:
                row.append(scores.error(task, variant) or "-")
            elif len(returns) == 1:
                row.append(f"{returns[0]:.2f}")
            else:
                row.append(f"{np.mean(returns):.2f} +/- {np.std(returns, ddof=1) / len(returns) ** 0.5:.2f}")
        rows.append(row)
    seeds = ", ".join(map(str, options.seeds))
    title = f"Mean return, +/- its standard error, seeds {seeds}, {options.episodes} episodes each"
    return Table(title, ["", *dict.fromkeys((*options.variants, RANDOM))], rows)


def table_of_scores(scores: Scores) -> Table:
    """Interquartile means, and mean differences to the first variant on the same tasks and seeds."""
    first, rows = scores.options.variants[0], []
    for variant in scores.options.variants:
        tasks = scores.complete(variant, first)
        cells = ["-"] * 3
        if tasks:
            own, its = scores.normalised(tasks, variant), scores.normalised(tasks, first)
            cells = [with_interval(own, iqm), with_interval(its, iqm), with_interval(own - its, mean)]
        rows.append([variant, str(len(tasks)), *([cells[0], "", ""] if variant == first else cells)])
    title = "Normalised scores: interquartile means with 95% intervals, on the tasks that both have completed"
    return Table(title, ["", "tasks", "IQM", f"IQM of {first} there", "mean difference"], rows)


def with_interval(scores: np.ndarray, statistic: Statistic) -> str:
    """The statistic, and its interval if there are several seeds."""
    value = f"{statistic(scores):.3f}"
    if scores.shape[1] == 1:
        return value
    low, high = stratified_interval(scores, statistic)
    return f"{value} [{low:.3f}, {high:.3f}]"


def draw(scores: Scores, path: Path) -> None:
    """Interquartile means and performance profiles of the variants, on the tasks that all of them have completed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    variants = scores.options.variants
    tasks = scores.complete(*variants)
    if not tasks:
        raise SystemExit("no picture: there is no task that all variants have completed")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5))
    thresholds = np.linspace(-0.2, 1.1, 131)
    for place, variant in enumerate(variants):
        own = scores.normalised(tasks, variant)
        low, high = stratified_interval(own)
        left.barh(place, high - low, left=low, height=0.5, alpha=0.5, label=variant)
        left.vlines(iqm(own), place - 0.25, place + 0.25, color="black")
        right.plot(thresholds, profile(own, thresholds), label=variant)
    left.set(yticks=range(len(variants)), yticklabels=variants, xlabel="interquartile mean of normalised scores, 95%")
    left.set_xlim(0, 1.05)
    left.invert_yaxis()
    right.set(xlabel="normalised score", ylabel="fraction of runs above it", ylim=(0, 1.02))
    right.legend()
    frames, seeds = scores.options.frames, len(scores.options.seeds)
    figure.suptitle(f"{len(tasks)} partially observable tasks, {seeds} seed{'s' * (seeds > 1)}, {frames:,} frames")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    results = Results(options.results)
    for variant in options.variants:
        if variant not in CANDIDATES:
            options_of(variant)  # a mistake is reported now rather than after hours
    if not options.record:
        compute(runs_of(options, options.tasks, (RANDOM, *options.variants)), results, options.processes)
    scores = Scores(options, results)
    tables = [table_of_scores(scores), table_of_returns(scores)]
    for table in tables:
        table.print()
    if options.picture is not None:
        draw(scores, options.picture)
    if options.record:
        intro = (
            f"{options.frames:,} frames of {options.num_envs} environments, one thread a run; each library with its "
            "default hyperparameters, except for the options that name a variant. Actions are sampled. Score 0 is the "
            "return of random actions, score 1 the best return of the task."
        )
        record("memory.py", intro, tables)


if __name__ == "__main__":
    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(tyro.cli(Options, description=__doc__))
