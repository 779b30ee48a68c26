"""Repeat-previous: a memory task in which a memoryless policy provably cannot beat chance."""

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.tasks.memory_task import (
    BAD,
    FLOOR,
    GOOD,
    WALL,
    MemoryEnv,
    MemoryVectorEnv,
    enlarged,
    require_integer,
)


class RepeatPrevious:
    """Repeat-previous: in each step, name the symbol that was shown `delay` steps ago.

    The task follows POPGym's environment of this name (Morad et al. 2023, "POPGym: Benchmarking Partially Observable
    Reinforcement Learning"). Two things differ: symbols are drawn independently and uniformly instead of dealt from a
    deck, and there are no negative rewards.

    The action at time t is right if it names the symbol of time `t - delay`. The first `delay` steps are not scored,
    because there is no such symbol yet. A right action earns `1 / (episode_length - delay)`, a wrong one 0. The episode
    terminates after `episode_length` steps.

    Observation, float32 `[num_symbols]`: the symbol, one-hot. Action: a symbol, Discrete `num_symbols`.
    The best return is 1. With the defaults it is exact in floating point, as 32 times 1/32.

    A memoryless policy's expected return is exactly `1 / num_symbols`. Proof: its action at time t depends only on the
    symbol of time t and on chance. The symbol of time `t - delay` is uniform and independent of both, so the action is
    right with probability `1 / num_symbols`. Expectations add up. The same holds for every policy that remembers fewer
    than the last `delay` symbols, even if it counts steps.

    Args:
        num_envs: number of environments.
        num_symbols: at least 2.
        delay: at least 1.
        episode_length: steps of an episode, more than `delay`.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(self, num_envs: int, num_symbols: int = 4, delay: int = 4, episode_length: int = 36) -> None:
        require_integer("num_symbols", num_symbols, 2)
        require_integer("delay", delay, 1)
        require_integer("episode_length", episode_length, delay + 1)
        self.num_symbols, self.delay, self.episode_length = num_symbols, delay, episode_length
        self.observation_space: gym.Space = gym.spaces.Box(0, 1, (num_symbols,), np.float32)
        self.action_space: gym.Space = gym.spaces.Discrete(num_symbols)
        self._one_hot = np.eye(num_symbols, dtype=np.float32)
        self._all = np.arange(num_envs)
        self._symbols = np.zeros((num_envs, episode_length + 1), int)
        self._answers = np.zeros(num_envs, int)
        self._times = np.zeros(num_envs, int)

    def begin(self, index: int, rng: np.random.Generator) -> None:
        """Draws all symbols of the next episode of environment `index`."""
        self._symbols[index] = rng.integers(self.num_symbols, size=self.episode_length + 1)
        self._times[index] = 0

    def observe(self) -> np.ndarray:
        """Returns the observations, float32 `[num_envs, num_symbols]`."""
        return self._one_hot[self._symbols[self._all, self._times]]

    def act(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores the answers and shows the next symbols; see `MemoryTask.act`."""
        # In the first steps the index is negative. It reads a symbol from the end, but these steps are not scored.
        right = (self._times >= self.delay) & (actions == self._symbols[self._all, self._times - self.delay])
        self._answers = actions
        self._times += 1
        return right / (self.episode_length - self.delay), self._times >= self.episode_length, np.zeros_like(right)

    def frame(self, index: int) -> np.ndarray:
        """Returns two rows of one cell per symbol: the one shown now, and the last answer, green if it was right."""
        time = self._times[index]
        cells = np.full((2, self.num_symbols, 3), WALL, np.uint8)
        cells[0, self._symbols[index, time]] = FLOOR
        if time > self.delay:
            answer = self._answers[index]
            cells[1, answer] = GOOD if answer == self._symbols[index, time - 1 - self.delay] else BAD
        return enlarged(cells)


class RepeatPreviousEnv(MemoryEnv):
    """`RepeatPrevious-v0` as a single environment; see `RepeatPrevious` for the task and the arguments."""

    task_class = RepeatPrevious


class RepeatPreviousVectorEnv(MemoryVectorEnv):
    """`RepeatPrevious-v0` as a vector environment; see `RepeatPrevious` for the task and the arguments."""

    task_class = RepeatPrevious
