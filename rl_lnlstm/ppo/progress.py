"""The progress display of a run, as a callback of `PPO.learn`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress_bar(console: Console, total: int, completed: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Shows a bar while the block runs, and gives the callback that updates it.

    Args:
        console: where to show it.
        total: frames at the end.
        completed: frames so far.
    """
    columns = (
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} frames"),
        TextColumn("{task.fields[fps]:,.0f} frames/s"),
        TextColumn("return {task.fields[episode_return]:.1f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=min(total, completed), fps=0.0, episode_return=float("nan"))

        def show(metrics: dict[str, float]) -> None:
            bar.update(
                task,
                completed=min(total, int(metrics["time/total_timesteps"])),
                fps=metrics["time/fps"],
                episode_return=metrics["rollout/ep_rew_mean"],
            )

        yield show
