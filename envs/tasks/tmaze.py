"""The T-maze: a memory task in which a memoryless policy provably cannot beat chance."""

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.tasks.memory_task import (
    AGENT,
    FLOOR,
    GOOD,
    WALL,
    MemoryEnv,
    MemoryVectorEnv,
    enlarged,
    require_integer,
)
from rl_lnlstm.errors import UserError

FORWARD, LEFT, RIGHT = 0, 1, 2


class TMaze:
    """T-maze: a cue that is shown once, a corridor, and a junction where the cue says which way to turn.

    The task follows Bakker (2001), "Reinforcement Learning with Long Short-Term Memory", section 4. The agent starts in
    front of the corridor and sees a cue, left or right with equal probability. Every action there leads into the
    corridor. In the corridor, going forward moves the agent; turning bumps into the wall, which costs `bump_penalty`
    and does not move it. After `corridor_length` moves it reaches the junction. There, going forward is a bump, and
    turning ends the episode. The reward is 1 in the arm that the cue named and -1 in the other arm.

    Observation, float32 `[4]`, one-hot: cue left, cue right, corridor, junction. Actions: 0 forward, 1 left, 2 right.
    The best return is 1, in `corridor_length + 1` steps.

    A memoryless policy's expected return is never above 0. Proof: the cue changes only the first observation and the
    sign of the last reward. The first action has no effect, and no later action of a memoryless policy depends on the
    first observation. So the trajectory up to and including the turn is independent of the cue. If the agent turns
    before the time limit, the turn is right with probability 1/2, and its expected reward is 0. All other rewards are
    penalties. The proof holds for every policy that forgets the first observation after its first action, even if it
    counts steps.

    In Bakker's task the first action can have an effect. Here it has none, because an agent that waits after one of the
    cues could tell the cues apart by the time that has passed.

    Args:
        num_envs: number of environments.
        corridor_length: moves from the start to the junction, at least 1.
        bump_penalty: cost of bumping into a wall, at least 0.
        time_limit: steps after which an episode is truncated, more than `corridor_length`;
            None stands for `4 * (corridor_length + 1)`.

    Raises:
        UserError: an argument is out of range.
    """

    def __init__(
        self, num_envs: int, corridor_length: int = 10, bump_penalty: float = 0.1, time_limit: int | None = None
    ) -> None:
        require_integer("corridor_length", corridor_length, 1)
        if time_limit is None:
            time_limit = 4 * (corridor_length + 1)
        require_integer("time_limit", time_limit, corridor_length + 1)
        if not (isinstance(bump_penalty, int | float) and 0 <= bump_penalty < np.inf):
            raise UserError(f"bump_penalty={bump_penalty!r}: expected a finite number of at least 0")
        self.corridor_length, self.bump_penalty, self.time_limit = corridor_length, bump_penalty, time_limit
        self.observation_space: gym.Space = gym.spaces.Box(0, 1, (4,), np.float32)
        self.action_space: gym.Space = gym.spaces.Discrete(3)
        self._one_hot = np.eye(4, dtype=np.float32)
        self._cues = np.full(num_envs, LEFT)
        self._turns = np.full(num_envs, FORWARD)
        self._positions = np.zeros(num_envs, int)
        self._times = np.zeros(num_envs, int)

    def begin(self, index: int, rng: np.random.Generator) -> None:
        """Draws the cue of environment `index` and puts the agent at the start."""
        self._cues[index] = rng.integers(LEFT, RIGHT + 1)
        self._turns[index] = FORWARD
        self._positions[index] = self._times[index] = 0

    def observe(self) -> np.ndarray:
        """Returns the observations, float32 `[num_envs, 4]`."""
        after_start = np.where(self._positions == self.corridor_length, 3, 2)
        return self._one_hot[np.where(self._positions == 0, self._cues - LEFT, after_start)]

    def act(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Moves every agent; see `MemoryTask.act`."""
        turning = actions != FORWARD
        at_start, at_junction = self._positions == 0, self._positions == self.corridor_length
        moves = at_start | ~(at_junction | turning)
        terminated = at_junction & turning
        self._turns = np.where(terminated, actions, FORWARD)
        self._positions += moves
        self._times += 1
        arm_rewards = np.where(actions == self._cues, 1.0, -1.0)
        rewards = np.where(terminated, arm_rewards, np.where(moves, 0.0, -self.bump_penalty))
        return rewards, terminated, ~terminated & (self._times >= self.time_limit)

    def frame(self, index: int) -> np.ndarray:
        """Returns the maze from above, the agent blue and the arm that the cue names green."""
        junction = self.corridor_length
        cells = np.full((3, junction + 1, 3), WALL, np.uint8)
        cells[1, :] = cells[:, junction] = FLOOR
        cells[_ROW_AFTER[self._cues[index]], junction] = GOOD
        cells[_ROW_AFTER[self._turns[index]], self._positions[index]] = AGENT
        return enlarged(cells)


_ROW_AFTER = {LEFT: 0, FORWARD: 1, RIGHT: 2}


class TMazeEnv(MemoryEnv):
    """`TMaze-v0` as a single environment; see `TMaze` for the task and the arguments."""

    task_class = TMaze


class TMazeVectorEnv(MemoryVectorEnv):
    """`TMaze-v0` as a vector environment; see `TMaze` for the task and the arguments."""

    task_class = TMaze
