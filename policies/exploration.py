"""The noise for sampling actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.heads import ActionHead

Generators = np.random.Generator | Sequence[np.random.Generator]


class Exploration:
    """Draws the noise for a policy's action head. With `std="gsde"`, keeps it for several steps.

    `step` and `predict` keep separate noise, so that an evaluation does not disturb a rollout.

    Args:
        head: the policy's action head.
        generator: the random generator, unless a call passes its own.
    """

    def __init__(self, head: ActionHead, generator: np.random.Generator) -> None:
        self.generator = generator
        self._head, self._columns = head, head.held()
        self._held: dict[str, np.ndarray | None] = {"step": None, "predict": None}

    def reset(self, batch_size: int) -> None:
        """Draws new noise for the `batch_size` environments of `step`. `predict` then draws new noise too."""
        self._held = {"step": self._head.noise(self.generator, batch_size), "predict": None}

    def for_step(self, batch_size: int) -> np.ndarray:
        """Noise `[batch_size, noise_size]` for `step`."""
        noise = self._head.noise(self.generator, batch_size)
        if self._columns.any():
            held = self._held["step"]
            if held is None or len(held) != batch_size:
                held = self._held["step"] = self._head.noise(self.generator, batch_size)
            noise[:, self._columns] = held[:, self._columns]
        return noise

    def for_predict(self, batch_size: int, rng: Generators | None, episode_starts: np.ndarray) -> np.ndarray:
        """Noise for `predict`. Noise that is kept is drawn again at the start of each episode."""
        noise = self._draw(batch_size, rng)
        if self._columns.any():
            held = self._held["predict"]
            if held is None or len(held) != batch_size:
                held = noise
            else:
                held = np.where(episode_starts[:, np.newaxis], noise, held)
            self._held["predict"] = held = held.copy()
            noise[:, self._columns] = held[:, self._columns]
        return noise

    def _draw(self, batch_size: int, rng: Generators | None) -> np.ndarray:
        if rng is None or isinstance(rng, np.random.Generator):
            return self._head.noise(self.generator if rng is None else rng, batch_size)
        if not isinstance(rng, Sequence) or not all(isinstance(one, np.random.Generator) for one in rng):
            raise UserError(f"rng must be a numpy.random.Generator or a list of them, got {type(rng).__name__}")
        if len(rng) != batch_size:
            raise UserError(f"rng must have a generator for each of {batch_size} observations, got {len(rng)}")
        return np.concatenate([self._head.noise(one, 1) for one in rng]) if rng else self._head.no_noise(0)

    def get_state(self) -> dict[str, Any]:
        """Returns the state of the generator and the noise that is kept, for `set_state`."""
        return {"generator": self.generator, "held": self._held}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called."""
        self.generator, self._held = state["generator"], state["held"]
