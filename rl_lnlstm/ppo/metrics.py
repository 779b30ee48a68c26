"""What an iteration reports, and to whom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np

from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.errors import UserError

Metrics = dict[str, float]
Callback = Callable[[Metrics], bool | None]


def rollout_metrics(episodes: Collection[Episode], info_keys: Iterable[str]) -> Metrics:
    """Means over the last episodes: return, length in frames, and the infos that have these keys. NaN: no episode."""
    return {
        "rollout/ep_rew_mean": _mean([episode.episode_return for episode in episodes]),
        "rollout/ep_len_mean": _mean([episode.length for episode in episodes]),
        **{
            f"rollout/{key}": _mean([episode.info[key] for episode in episodes if key in episode.info])
            for key in info_keys
        },
    }


def as_callbacks(given: Callback | Iterable[Callback] | None) -> list[Callback]:
    """One callback, several or none as a list.

    Raises:
        UserError: what was given is no function.
    """
    if given is None or callable(given):
        return [] if given is None else [given]
    callbacks = list(given) if isinstance(given, Iterable) else [given]
    if not all(map(callable, callbacks)):
        raise UserError(f"callback must be a function of the metrics, or several of them, got {given!r:.100}")
    return callbacks


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
