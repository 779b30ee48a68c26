"""A policy whose memory is cut at regular intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from rl_lnlstm.policies import RecurrentPolicy


class CutMemory:
    """Acts as `policy` does, but its state is reset every `every` steps of an episode.

    At the steps 0, `every`, 2 * `every`, ... of an episode the mask is 0: the policy gets `episode_start=True` while
    the episode continues. So its actions depend on at most the last `every` observations. The last action and reward
    are part of the state, and are reset too.

    The state has one more part than the policy's: the number of steps in the episode, `[batch]`.

    Args:
        policy: the policy that acts.
        every: the number of steps between two resets, at least 1. With 1 the policy has no memory.
    """

    def __init__(self, policy: RecurrentPolicy, every: int) -> None:
        self._policy, self._every = policy, every

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def initial_state(self, batch_size: int) -> tuple[np.ndarray, ...]:
        """The state before an episode."""
        return *self._policy.initial_state(batch_size), np.zeros(batch_size, int)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
        rng: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """As `RecurrentPolicy.predict`, for batches of observations, and with `episode_start` given."""
        *own, steps = self.initial_state(len(episode_start)) if state is None else state
        steps = np.where(episode_start, 0, steps)
        cut = steps % self._every == 0
        actions, after = self._policy.predict(observation, tuple(own), cut, deterministic, action_masks, rng)
        return actions, (*after, steps + 1)

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """As `RecurrentPolicy.rewarded`."""
        *own, steps = state
        return *self._policy.rewarded(tuple(own), rewards), steps
