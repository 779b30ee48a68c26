"""From the environment's units of actions to the policy's: the body of `RecurrentPolicy.scale_actions`."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_lnlstm.policies.heads import ActionHead, CompositeHead, GaussianHead


def scaled(head: ActionHead, actions: Any) -> Any:
    """The inverse of `head.clip` for actions within the bounds of the action space."""
    if isinstance(head, CompositeHead):
        parts = [scaled(part, actions[key]) for part, key in zip(head.parts, head.keys, strict=True)]
        return dict(zip(head.keys, parts, strict=True)) if head.is_dict else tuple(parts)
    if not isinstance(head, GaussianHead):
        return actions
    # Where both bounds are the same, every action of the policy becomes this bound.
    size = np.where(head.rescaled & (head.high > head.low), head.high - head.low, 1.0)
    unit = 2 * (np.asarray(actions, np.float64) - head.low) / size - 1
    return np.where(head.rescaled, unit, actions).astype(np.float32)
