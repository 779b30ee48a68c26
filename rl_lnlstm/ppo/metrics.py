"""The metrics of an iteration that describe its episodes."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.ppo.callbacks import Metrics


def rollout_metrics(episodes: Collection[Episode], info_keys: Iterable[str]) -> Metrics:
    """Statistics of the last episodes: mean and standard deviation of returns, mean length, and means of infos.

    Args:
        episodes: the episodes. Without any, all metrics are NaN.
        info_keys: the infos to average. For a dict of numbers, each has a metric `rollout/KEY/INNER`.
    """
    returns = [episode.episode_return for episode in episodes]
    infos = [episode.info for episode in episodes]
    inner = {key: sorted({name for info in infos for name in info if name.startswith(f"{key}/")}) for key in info_keys}
    return {
        "rollout/ep_rew_mean": _mean(returns),
        "rollout/ep_rew_std": float(np.std(returns)) if returns else float("nan"),
        "rollout/ep_len_mean": _mean([episode.length for episode in episodes]),
        **{
            f"rollout/{name}": _mean([info[name] for info in infos if name in info])
            for key in info_keys
            for name in inner[key] or [key]
        },
    }


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
