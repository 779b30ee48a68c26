"""What PPO needs of a collector."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium as gym

from rl_lnlstm.ppo.rollout import Rollout


class Collector(Protocol):
    """Owns the training environments, and collects rollouts in them.

    Attributes:
        single_observation_space, single_action_space: the spaces of a single environment.
        has_time_limit: whether the environments have a time limit, as far as is known.
    """

    single_observation_space: gym.Space
    single_action_space: gym.Space
    has_time_limit: bool

    @property
    def failures(self) -> int:
        """How often an environment failed so far."""

    def begin(self, policy: Any) -> None:
        """Begins the first episodes. `policy` acts from now on."""

    def collect(self) -> Rollout:
        """Collects the next rollout."""

    def restart(self, *numbers: int) -> None:
        """Begins new episodes. Other `numbers` give other seeds."""

    def get_state(self) -> dict[str, Any]:
        """Returns all state except the policy and the environments, for `set_state`."""

    def take_snapshot(self) -> list[bytes]:
        """The environments, pickled. Raises ValueError with the reason if that is not possible."""

    def set_state(self, state: dict[str, Any], snapshot: list[bytes] | None) -> str | None:
        """Continues from a state and a snapshot. Returns None, or why the environments cannot be restored."""

    def close(self) -> None:
        """Closes the environments, unless the user gave them."""
