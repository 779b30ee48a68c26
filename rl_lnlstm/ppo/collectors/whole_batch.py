"""`WholeBatch`: lets a policy act for a share of the environments as it would for all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.spaces import map_arrays


class WholeBatch:
    """A policy that acts for a share of a batch, and computes the whole batch, with each row in its place.

    TensorFlow rounds a matrix product differently for another number of rows, and in another place. The rows of other
    environments are filled with copies, which changes nothing: a row does not depend on the others.

    Everything but acting is the policy's own.

    Args:
        policy: the policy.
        share: the environments.
    """

    def __init__(self, policy: Any, share: Share) -> None:
        self._policy, self._own = policy, share.rows
        self._rows = np.zeros(share.total, int)
        self._rows[self._own] = np.arange(share.count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def step(
        self,
        observations: Any,
        state: Any,
        episode_starts: np.ndarray,
        action_masks: np.ndarray | None = None,
        noise: np.ndarray | None = None,
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """See `RecurrentPolicy.step`."""
        given = self._filled((observations, state, episode_starts, action_masks, noise))
        return map_arrays(lambda part: part[self._own].copy(), self._policy.step(*given))

    def value(self, observations: Any, state: Any, episode_starts: np.ndarray) -> np.ndarray:
        """See `RecurrentPolicy.value`."""
        return self._policy.value(*self._filled((observations, state, episode_starts)))[self._own].copy()

    def _filled(self, parts: Any) -> Any:
        return map_arrays(lambda part: part[self._rows], parts)


def as_in_whole_batch(policy: Any, share: Share) -> Any:
    """The policy, in a `WholeBatch` if its bits would otherwise depend on the number of environments.

    The compiled step computes every row in the same way. Through a graph, convolutions would take too long for all
    environments.
    """
    if share.count == share.total or policy.acts_row_by_row or policy.is_convolutional:
        return policy
    return WholeBatch(policy, share)
