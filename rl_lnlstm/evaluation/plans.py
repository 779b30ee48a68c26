"""Which episodes the environments of an evaluation run, and with which seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs.action_masks import environment_name
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.errors import EnvironmentFailure
from rl_lnlstm.seeding import derived_seed, seed_sequence


class Plan(Protocol):
    """Which episodes the environments run.

    Attributes:
        numbers: the number of each environment's episode, `[num_envs]`; -1 where it does not count.
        seeds: the seed of each environment's episode, or None.
        generators: what each environment's actions are sampled with; None if the policy's own generator is used.
    """

    numbers: np.ndarray

    @property
    def seeds(self) -> Sequence[int | None]: ...  # noqa: D102

    @property
    def generators(self) -> Sequence[np.random.Generator] | None: ...  # noqa: D102

    def start(self, envs: VectorEnv) -> Stepper:
        """Resets the environments for their first episodes."""

    def ended(self, index: int) -> None:
        """That environment's episode is over."""

    def give_up(self, stepper: Stepper, rows: np.ndarray, again: bool) -> None:
        """Leaves the episodes where `rows` is true, which have not ended; with `again` they are run once more."""


class InOrder:
    """Each episode has a seed of its own, and an environment that is free takes the next episode.

    Episodes, and the actions that are sampled in them, depend on their seeds only and not on the number of
    environments. The environments must be in autoreset mode DISABLED.

    Args:
        seeds: the seeds of all episodes.
        num_envs: number of environments, at most that of the episodes.
    """

    def __init__(self, seeds: Sequence[int], num_envs: int) -> None:
        self._all = list(seeds)
        self.numbers = np.arange(num_envs)
        self.seeds = self._all[:num_envs]
        self.generators = [_sampling(seed) for seed in self.seeds]
        self._next = num_envs
        self._attempts = np.zeros(num_envs, int)  # failures in the current episode
        self._again = np.zeros(num_envs, bool)
        self.before_reset: Callable[[np.ndarray], None] | None = None  # called with the rows that begin new episodes

    def start(self, envs: VectorEnv) -> Stepper:
        """Resets each environment with the seed of its episode."""
        return Stepper(envs, self.seeds, self._begin)

    def ended(self, index: int) -> None:
        """Nothing: `_begin` has handed out the next episode."""

    def give_up(self, stepper: Stepper, rows: np.ndarray, again: bool) -> None:
        """Begins other episodes there; with `again` the same ones, with other seeds."""
        self._again = rows & again
        stepper.begin_episodes(rows)

    def _begin(self, rows: np.ndarray) -> list[int]:
        """The seeds of all environments, when those where `rows` is true begin new episodes."""
        if self.before_reset is not None:
            self.before_reset(rows)
        for index in np.flatnonzero(rows):
            if self._again[index]:
                self._attempts[index] += 1
                seed = derived_seed(self._all[self.numbers[index]], "evaluation", int(self._attempts[index]))
            else:
                self._attempts[index] = 0
                self.numbers[index] = self._next if self._next < len(self._all) else -1
                seed = self._all[self.numbers[index]]  # the last one where no episode is left, which does not count
                self._next += 1
            self._again[index] = False
            self.seeds[index], self.generators[index] = seed, _sampling(seed)
        return self.seeds


class EvenlySpread:
    """Each environment runs its share of the episodes, whatever their seeds: for environments of somebody else.

    Shares are fixed beforehand, because environments with short episodes would otherwise count more often.

    Args:
        n_eval_episodes: number of episodes.
        num_envs: number of environments.
        seed: of the first reset.
    """

    def __init__(self, n_eval_episodes: int, num_envs: int, seed: int | None = None) -> None:
        self._seed = seed
        self._left = np.array([(n_eval_episodes + index) // num_envs for index in range(num_envs)])
        self.numbers = np.where(self._left > 0, 0, -1)
        self.seeds = [None] * num_envs
        self.generators: None = None
        self._ended = 0

    def start(self, envs: VectorEnv) -> Stepper:
        """Resets all environments."""
        return Stepper(envs, self._seed)

    def ended(self, index: int) -> None:
        """Numbers are given in the order in which episodes end."""
        self._left[index] -= 1
        self._ended += 1
        self.numbers = np.where(self._left > 0, self._ended, -1)

    def give_up(self, stepper: Stepper, rows: np.ndarray, again: bool) -> None:
        """With `again`, does nothing, because the environments have begun new episodes themselves.

        Raises:
            EnvironmentFailure: without `again`, because somebody else's environments cannot be reset one by one.
        """
        if not again:
            raise EnvironmentFailure(
                f"an episode of {environment_name(stepper.envs)} did not end within the limit of steps: give its "
                "environments a time limit, with gymnasium.wrappers.TimeLimit, or allow more with max_steps"
            )


def _sampling(seed: int) -> np.random.Generator:
    """What an episode's actions are sampled with."""
    return np.random.default_rng(seed_sequence(seed, "sampling"))
