"""The noise for sampling the actions of a rollout, from one random generator for each environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_lnlstm.seeding import seed_sequence


def acting_generators(seed: int, environments: Sequence[int]) -> list[np.random.Generator]:
    """The generators that sample the actions of these environments, given by their numbers in the run.

    An environment has its own generator, so its actions do not depend on which environments are stepped with it.
    """
    return [np.random.default_rng(seed_sequence(seed, "acting", number)) for number in environments]


class RolloutNoise:
    """Draws the noise of whole rollouts, which costs less than drawing it at every step.

    Args:
        head: the policy's action head.
        generators: one for each environment.
        num_steps: steps of a rollout.
        hold: steps for which columns of the noise stay the same, if the head holds any (`std="gsde"`).
    """

    def __init__(self, head: Any, generators: Sequence[np.random.Generator], num_steps: int, hold: int | None) -> None:
        self.generators = list(generators)
        self._head, self._num_steps, self._hold = head, num_steps, hold or num_steps
        self._columns = head.held()
        self._fresh = self._held = np.zeros(0, np.float32)

    def draw(self) -> None:
        """Draws the noise of the next rollout."""
        if not self._columns.all():
            self._fresh = self._rows(self._num_steps)
        if self._columns.any():
            self._held = self._rows(-(-self._num_steps // self._hold))

    def at(self, t: int) -> np.ndarray:
        """The noise of step `t`, `[num_envs, noise_size]` float32."""
        if not self._columns.any():
            return self._fresh[t]
        held = self._held[t // self._hold]
        return held if self._columns.all() else np.where(self._columns, held, self._fresh[t])

    def _rows(self, count: int) -> np.ndarray:
        return np.stack([self._head.noise(generator, count) for generator in self.generators], 1)

    def get_state(self) -> list[dict[str, Any]]:
        """The states of the generators, for `set_state`."""
        return [dict(generator.bit_generator.state) for generator in self.generators]

    def set_state(self, states: Sequence[Any]) -> None:
        """Continues the generators from these states. If there are fewer states, the other generators are new."""
        for generator, state in zip(self.generators, states, strict=False):
            generator.bit_generator.state = state
