"""What PPO needs of a policy: to act in `collect.py`, and to learn in `update.py`."""

from __future__ import annotations

from typing import Any, Protocol

import keras
import numpy as np


class ActingPolicy(Protocol):
    """What the runner needs of a policy."""

    action_head: Any  # only used if `step` has an argument `noise`

    def initial_state(self, batch_size: int) -> Any:
        """The state before an episode: a NamedTuple of arrays `[batch_size, width]`."""

    def step(
        self, observations: Any, state: Any, episode_starts: np.ndarray, *action_masks: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """Returns actions, values, log-probabilities and the new state. Masks are passed only if there are any.

        If it has an argument `noise`, the runner passes what the policy's `action_head` draws from the generators of
        the environments.
        """

    def rewarded(self, state: Any, rewards: np.ndarray) -> Any:
        """Returns the state with the rewards of the step added. Only called if `previous_reward` is true."""

    def value(self, observations: Any, state: Any, episode_starts: np.ndarray) -> np.ndarray:
        """Returns the values of observations. The state does not change."""

    def clip_actions(self, actions: Any) -> Any:
        """Returns what to send to the environments for sampled actions."""

    def reset_noise(self, batch_size: int) -> None:
        """Draws new noise for gSDE. Only called if there is a `sde_sample_freq`."""


class LearningPolicy(Protocol):
    """What the update needs of a policy."""

    trainable_variables: list[keras.Variable]
    is_convolutional: bool
    previous_reward: bool
    losses: list[Any]  # penalties of regularizers, which Keras collects in a call

    def evaluate_actions(
        self,
        observations: Any,
        actions: Any,
        state: Any,
        episode_starts: Any,
        action_masks: Any = None,
        rewards: Any = None,
    ) -> tuple[Any, Any, Any]:
        """Recomputes log-probabilities, entropies and values `[batch, time]` of a recorded rollout."""
