"""The picture of a run's learning curve."""

from __future__ import annotations

from matplotlib.figure import Figure


def learning_curve(rows: list[dict[str, float]], title: str) -> Figure:
    """Draws the mean return of the last 100 episodes against frames.

    Args:
        rows: the metrics of each iteration.
        title: of the figure.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    frames = [row["time/total_timesteps"] for row in rows]
    axes.plot(frames, [row["rollout/ep_rew_mean"] for row in rows], linewidth=1.8)
    axes.set(title=title, xlabel="frames", ylabel="mean return of the last 100 episodes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
