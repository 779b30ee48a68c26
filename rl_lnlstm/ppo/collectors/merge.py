"""Joining rollouts and states of several workers on the axis of environments, and dividing states among workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.ppo.rollout import Rollout
from rl_lnlstm.spaces import map_arrays

# Of the guard's state: what is not a list or an array `[num_envs]`
FAILURES, STEPS, ENDED = "failures", "_steps", "_ended"


def joined_rollouts(parts: Sequence[Rollout], shares: Sequence[Share]) -> Rollout:
    """Joins the rollouts of the workers to the rollout that all environments would have made in one process.

    Its arrays are new: what comes from a worker may be read-only.
    """
    ended = [
        (t, episode._replace(environment=episode.environment + share.first))
        for part, share in zip(parts, shares, strict=True)
        for t, episode in zip(part.episode_steps, part.episodes, strict=True)
    ]
    ended.sort(key=lambda pair: (pair[0], pair[1].environment))
    columns = {
        name: map_arrays(lambda *arrays: np.concatenate(arrays, 1), *(getattr(part, name) for part in parts))
        for name in Rollout._fields
        if name not in ("episodes", "episode_steps")
    }
    return Rollout(**columns, episodes=[episode for _, episode in ended], episode_steps=tuple(t for t, _ in ended))


def join_states(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Joins the states of the workers' collectors to the state of one collector of all environments."""
    runners, guards = ([part[name] for part in parts] for name in ("runner", "environments"))
    joined = {
        name: _concatenate_leaves([guard[name] for guard in guards])
        for name in guards[0]
        if name not in (FAILURES, STEPS)
    }
    joined[ENDED] = tuple(np.concatenate(rows) for rows in zip(*(guard[ENDED] for guard in guards), strict=True))
    return {
        "runner": _concatenate_leaves(runners),
        "environments": {
            **joined,
            FAILURES: sum(guard[FAILURES] for guard in guards),
            STEPS: max(guard[STEPS] for guard in guards),
        },
    }


def divide_state(state: dict[str, Any], shares: Sequence[Share]) -> list[dict[str, Any]]:
    """Divides the state of all environments among shares. It is the inverse of `join_states`.

    The number of failures so far goes to the first share, so that the sum over all shares stays the same.
    """
    guard = state["environments"]
    return [
        {
            "runner": _part(state["runner"], share),
            "environments": {
                **{name: _part(value, share) for name, value in guard.items() if name not in (FAILURES, STEPS, ENDED)},
                ENDED: tuple(np.array(rows[share.rows]) for rows in guard[ENDED]),
                FAILURES: 0 if share.first else guard[FAILURES],
                STEPS: guard[STEPS],
            },
        }
        for share in shares
    ]


def _concatenate_leaves(parts: Sequence[Any]) -> Any:
    """Joins lists and arrays on their first axis, in dicts and tuples."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: _concatenate_leaves([part[name] for part in parts]) for name in first}
    if isinstance(first, tuple):
        return tuple(_concatenate_leaves(column) for column in zip(*parts, strict=True))
    if isinstance(first, list):
        return [entry for part in parts for entry in part]
    return None if first is None else np.concatenate(parts)


def _part(whole: Any, share: Share) -> Any:
    """The rows of a share."""
    if isinstance(whole, dict):
        return {name: _part(value, share) for name, value in whole.items()}
    if isinstance(whole, tuple):
        return tuple(_part(value, share) for value in whole)
    if whole is None:
        return None
    rows = whole[share.rows]
    return rows if isinstance(rows, list) else np.array(rows)
