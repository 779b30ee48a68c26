"""Which episodes the environments of an evaluation run, and with which seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.seeding import derived_seed, seed_sequence


class Plan(Protocol):
    """Which episodes the environments run.

    Attributes:
        numbers: the number of each environment's episode, `[num_envs]`; -1 where it does not count.
        seeds: the seed of each environment's episode, or None.
        generators: the generator that samples the actions of each environment; None for the policy's own.
    """

    numbers: np.ndarray

    @property
    def seeds(self) -> Sequence[int | None]: ...  # noqa: D102

    @property
    def generators(self) -> Sequence[np.random.Generator] | None: ...  # noqa: D102

    def start(self, envs: VectorEnv) -> Stepper:
        """Resets the environments for their first episodes."""

    def ended(self, index: int) -> None:
        """Called when the environment's episode has ended."""

    def give_up(self, stepper: Stepper, rows: np.ndarray, again: bool) -> None:
        """Abandons the unfinished episodes where `rows` is true. With `again`, they are run again."""

    def begin_again(self, stepper: Stepper) -> bool:
        """Called when no environment runs an episode that counts. Resets all environments if episodes are left."""


class InOrder:
    """Each episode has its own seed, and an environment that becomes free takes the next episode.

    Episodes and sampled actions depend only on the seeds of the episodes, and not on the number of environments. The
    environments must be in autoreset mode DISABLED.

    Args:
        seeds: the seeds of all episodes.
        num_envs: number of environments, not more than episodes.
    """

    def __init__(self, seeds: Sequence[int], num_envs: int) -> None:
        self._all = list(seeds)
        self.numbers = np.arange(num_envs)
        self.seeds = self._all[:num_envs]
        self.generators = [_sampling(seed) for seed in self.seeds]
        self._next = num_envs
        self._attempts = np.zeros(num_envs, int)  # failures in the current episode
        self._given_up, self._again = np.zeros((2, num_envs), bool)
        self.before_reset: Callable[[np.ndarray], None] | None = None  # called with the rows that ended by themselves

    def start(self, envs: VectorEnv) -> Stepper:
        """Resets each environment with the seed of its episode."""
        return Stepper(envs, self.seeds, self._begin)

    def ended(self, index: int) -> None:
        """Does nothing, because `_begin` has already assigned the next episode."""

    def give_up(self, stepper: Stepper, rows: np.ndarray, again: bool) -> None:
        """Begins new episodes where `rows` is true. With `again`, the same episode numbers with other seeds."""
        self._given_up, self._again = rows, rows & again
        stepper.begin_episodes(rows)

    def begin_again(self, stepper: Stepper) -> bool:
        """Returns False, because no episode is left."""
        return False

    def _begin(self, rows: np.ndarray) -> list[int]:
        """Assigns the next episodes where `rows` is true, and returns the seeds of all environments."""
        if self.before_reset is not None:
            self.before_reset(rows & ~self._given_up)
        self._given_up = np.zeros_like(rows)
        for index in np.flatnonzero(rows):
            if self._again[index]:
                self._attempts[index] += 1
                seed = derived_seed(self._all[self.numbers[index]], "evaluation", int(self._attempts[index]))
            else:
                self._attempts[index] = 0
                self.numbers[index] = self._next if self._next < len(self._all) else -1
                # If no episode is left, the number is -1: the last seed is used again, and the episode does not count.
                seed = self._all[self.numbers[index]]
                self._next += 1
            self._again[index] = False
            self.seeds[index], self.generators[index] = seed, _sampling(seed)
        return self.seeds


class EvenlySpread:
    """Each environment runs an equal share of the episodes, because a `VectorEnv` cannot be seeded one by one.

    Shares are fixed in advance, because otherwise short episodes would count more often.

    Args:
        n_eval_episodes: number of episodes.
        num_envs: number of environments.
        seed: seed of the first reset.
    """

    def __init__(self, n_eval_episodes: int, num_envs: int, seed: int | None = None) -> None:
        self._seed = seed
        self._left = np.array([(n_eval_episodes + index) // num_envs for index in range(num_envs)])
        self._next = np.arange(num_envs)[::-1].copy()  # numbers; the last environments have the largest shares
        self._waiting = np.zeros(num_envs, bool)  # in an episode that was cut
        self.numbers = self._numbers()
        self.seeds = [None] * num_envs
        self.generators: None = None

    def start(self, envs: VectorEnv) -> Stepper:
        """Resets all environments."""
        return Stepper(envs, self._seed)

    def ended(self, index: int) -> None:
        """Gives the environment its next episode, if it has one left."""
        self._left[index] -= 1
        self._next[index] += len(self._next)
        self.numbers = self._numbers()

    def give_up(self, stepper: Stepper, rows: np.ndarray, again: bool) -> None:
        """Waits for the others, because the environments cannot be reset one by one.

        With `again`, does nothing, because the environments have begun new episodes themselves.
        """
        if not again:
            self._waiting |= rows
            self.numbers = self._numbers()

    def begin_again(self, stepper: Stepper) -> bool:
        """Resets all environments, if there are episodes left for environments whose episodes were cut."""
        if not self._left.any():
            return False
        stepper.restart()
        self._waiting[:] = False
        self.numbers = self._numbers()
        return True

    def _numbers(self) -> np.ndarray:
        return np.where((self._left > 0) & ~self._waiting, self._next, -1)


def _sampling(seed: int) -> np.random.Generator:
    """The generator that samples the actions of an episode."""
    return np.random.default_rng(seed_sequence(seed, "sampling"))
