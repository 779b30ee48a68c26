"""Memory tasks in which a memoryless policy provably cannot beat chance, vectorised in NumPy.

Each task is one class of dynamics over arrays of environments (`TMaze`, `RepeatPrevious`). A `gymnasium.Env` holds one
of size 1, a `gymnasium.vector.VectorEnv` one of size `num_envs`, and so the two cannot differ.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rl_lnlstm.errors import UserError

FORWARD, LEFT, RIGHT = 0, 1, 2

_WALL, _FLOOR, _AGENT, _GOOD, _BAD = (40, 40, 40), (225, 225, 225), (40, 90, 220), (60, 180, 75), (230, 60, 60)


class MemoryTask(Protocol):
    """The dynamics of `num_envs` independent environments, state and all in arrays of that length."""

    observation_space: gym.Space
    action_space: gym.Space

    def begin(self, index: int, rng: np.random.Generator) -> None:
        """Starts an episode in environment `index`; all that is random in the episode is drawn from `rng` here."""

    def observe(self) -> np.ndarray:
        """Returns the observations, a new float32 array `[num_envs, n]`."""

    def act(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Takes int actions `[num_envs]`; returns float64 rewards and bool terminated, truncated, each `[num_envs]`."""

    def frame(self, index: int) -> np.ndarray:
        """Returns a picture of environment `index`, uint8 `[height, width, 3]`."""


class TMaze:
    """T-maze: a cue seen once, a corridor, and a junction at which the cue says where to turn.

    After Bakker (2001), "Reinforcement Learning with Long Short-Term Memory", section 4. The agent starts in front of
    the corridor and sees a cue, left or right with equal probability. Whatever it does there leads into the corridor;
    from then on it may go forward, or bump into the wall by turning, which costs `bump_penalty` and does not move it.
    After `corridor_length` moves it is at the junction, where going forward is a bump, and turning ends the episode:
    reward 1 in the arm that the cue named, -1 in the other.

    Observation, float32 `[4]`, one-hot: cue left, cue right, corridor, junction. Actions: 0 forward, 1 left, 2 right.
    The best return is 1, in `corridor_length + 1` steps.

    A memoryless policy's expected return is never above 0. Proof: the cue changes only the first observation and the
    sign of the last reward. The action that the first observation is answered with changes nothing, and no later
    action of a memoryless policy depends on the first observation. So the trajectory up to and including the turn has
    the same distribution under both cues and is independent of the cue, and the turn, if it comes before the time
    limit, is right with probability 1/2: the expected reward for turning is 0. All other rewards are penalties. The
    proof holds for every policy that does not carry the first observation past its first action, also one that counts
    steps. (That the first action has no effect is our change to Bakker's task: could the agent dawdle when it sees one
    of the cues, then its clock or the time limit would remember the cue for it.)

    Args:
        num_envs: number of environments.
        corridor_length: moves from the start to the junction, at least 1.
        bump_penalty: cost of bumping into a wall, at least 0.
        time_limit: steps after which an episode is truncated, more than `corridor_length`;
            None stands for `4 * (corridor_length + 1)`.

    Raises:
        UserError: an argument outside of what is said above.
    """

    def __init__(
        self, num_envs: int, corridor_length: int = 10, bump_penalty: float = 0.1, time_limit: int | None = None
    ) -> None:
        _require_integer("corridor_length", corridor_length, 1)
        if time_limit is None:
            time_limit = 4 * (corridor_length + 1)
        _require_integer("time_limit", time_limit, corridor_length + 1)
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
        cells = np.full((3, junction + 1, 3), _WALL, np.uint8)
        cells[1, :] = cells[:, junction] = _FLOOR
        cells[_ROW_AFTER[self._cues[index]], junction] = _GOOD
        cells[_ROW_AFTER[self._turns[index]], self._positions[index]] = _AGENT
        return _enlarged(cells)


_ROW_AFTER = {LEFT: 0, FORWARD: 1, RIGHT: 2}


class RepeatPrevious:
    """Repeat-previous: in each step, name the symbol that was shown `delay` steps ago.

    As the environment of that name in POPGym (Morad et al. 2023, "POPGym: Benchmarking Partially Observable
    Reinforcement Learning"), but with symbols that are drawn independently and uniformly instead of dealt from a deck,
    and without negative rewards. The action that answers the symbol of time t is right if it names the symbol of time
    `t - delay`; in the first `delay` steps there is none and nothing is scored. A right action is worth
    `1 / (episode_length - delay)`, a wrong one 0. The episode terminates after `episode_length` steps.

    Observation, float32 `[num_symbols]`: the symbol, one-hot. Action: a symbol, Discrete `num_symbols`.
    The best return is 1 (with the defaults exactly so in floating point: 32 times 1/32).

    A memoryless policy's expected return is exactly `1 / num_symbols`. Proof: what it does at time t depends on the
    symbol of time t and on chance. The symbol of time `t - delay` is independent of both and uniform, so the action is
    right with probability `1 / num_symbols`, and expectations add. The same holds for every policy that remembers
    fewer than the last `delay` symbols, also one that counts steps.

    Args:
        num_envs: number of environments.
        num_symbols: at least 2.
        delay: at least 1.
        episode_length: steps of an episode, more than `delay`.

    Raises:
        UserError: an argument outside of what is said above.
    """

    def __init__(self, num_envs: int, num_symbols: int = 4, delay: int = 4, episode_length: int = 36) -> None:
        _require_integer("num_symbols", num_symbols, 2)
        _require_integer("delay", delay, 1)
        _require_integer("episode_length", episode_length, delay + 1)
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
        # In the first steps the index is negative and reads a symbol from the end, which is not scored.
        right = (self._times >= self.delay) & (actions == self._symbols[self._all, self._times - self.delay])
        self._answers = actions
        self._times += 1
        return right / (self.episode_length - self.delay), self._times >= self.episode_length, np.zeros_like(right)

    def frame(self, index: int) -> np.ndarray:
        """Returns two rows of one cell per symbol: the one shown now, and the last answer, green if it was right."""
        time = self._times[index]
        cells = np.full((2, self.num_symbols, 3), _WALL, np.uint8)
        cells[0, self._symbols[index, time]] = _FLOOR
        if time > self.delay:
            answer = self._answers[index]
            cells[1, answer] = _GOOD if answer == self._symbols[index, time - 1 - self.delay] else _BAD
        return _enlarged(cells)


class _MemoryEnv(gym.Env):
    """One environment of a task, for `gymnasium.make`."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012
    task_class: ClassVar[Callable[..., MemoryTask]]

    def __init__(self, *, render_mode: str | None = None, **task_kwargs: Any) -> None:
        self.render_mode = render_mode
        self.task = self.task_class(1, **task_kwargs)
        self.observation_space, self.action_space = self.task.observation_space, self.task.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; takes no options."""
        super().reset(seed=seed)
        self.task.begin(0, self.np_random)
        return self.task.observe()[0], {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes an action; gymnasium.error.InvalidAction if it is not in the action space."""
        rewards, terminated, truncated = self.task.act(_valid_actions([action], 1, self.action_space))
        return self.task.observe()[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:
        """Returns a picture, uint8 `[height, width, 3]`, if `render_mode` is "rgb_array"."""
        return self.task.frame(0) if self.render_mode == "rgb_array" else None


class _MemoryVectorEnv(VectorEnv):
    """`num_envs` environments of a task, step by step equal to a SyncVectorEnv over that many of the single ones."""

    metadata: dict[str, Any] = {**_MemoryEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    task_class: ClassVar[Callable[..., MemoryTask]]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **task_kwargs: Any,
    ) -> None:
        _require_integer("num_envs", num_envs, 1)
        self.num_envs, self.render_mode = num_envs, render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**type(self).metadata, "autoreset_mode": self.autoreset_mode}
        self.task = self.task_class(num_envs, **task_kwargs)
        self.single_observation_space, self.single_action_space = self.task.observation_space, self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        # A generator for each environment: an episode is the same whichever others run beside it.
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._seeds: list[int | None] = [None] * num_envs
        self._done = np.zeros(num_envs, bool)

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator | None, ...]:  # type: ignore[override]
        """The generator of each environment, None before its first reset."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of each environment's generator, None before its first reset."""
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts episodes in all environments, or in those that `options["reset_mask"]`, bool `[num_envs]`, selects.

        Args:
            seed: an int s seeds environment i with `s + i`, a list gives each its own, None keeps the generators.
            options: see above; nothing else is used.
        """
        seeds: Sequence[int | None]
        if isinstance(seed, int | np.integer):
            seeds = [int(seed) + index for index in range(self.num_envs)]
        else:
            seeds = [None] * self.num_envs if seed is None else seed
        if len(seeds) != self.num_envs:
            raise UserError(f"seed: expected one for each of num_envs={self.num_envs} environments, got {len(seeds)}")
        mask = np.ones(self.num_envs, bool)
        if options is not None and "reset_mask" in options:
            mask = options["reset_mask"]
            if not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (self.num_envs,)):
                raise UserError(f"options['reset_mask']: expected a bool array [{self.num_envs}], got {mask!r}")
        for index in np.flatnonzero(mask):
            if seeds[index] is not None or self._generators[index] is None:
                self._generators[index], self._seeds[index] = seeding.np_random(seeds[index])
        self._begin(mask)
        self._done = self._done & ~mask
        return self.task.observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes an action in every environment, with the autoreset semantics of `gymnasium.vector.SyncVectorEnv`.

        Args:
            actions: int `[num_envs]`.

        Returns:
            Observations float32 `[num_envs, n]`, rewards float64, terminated and truncated bool, each `[num_envs]`, and
            infos: empty, but for `final_obs` and `final_info` of the environments that ended, in SAME_STEP mode.

        Raises:
            gymnasium.error.InvalidAction: an action is not in the action space.
            gymnasium.error.ResetNeeded: no reset before the first step, or, in DISABLED mode, after an episode's end.
        """
        if None in self._generators:
            raise gym.error.ResetNeeded("step() before reset()")
        if self.autoreset_mode is AutoresetMode.DISABLED and self._done.any():
            ended = np.flatnonzero(self._done).tolist()
            raise gym.error.ResetNeeded(f"the episodes of environments {ended} ended: reset them with 'reset_mask'")
        rewards, terminated, truncated = self.task.act(_valid_actions(actions, self.num_envs, self.single_action_space))
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.NEXT_STEP and self._done.any():
            self._begin(self._done)
            rewards[self._done] = 0
            terminated, truncated = terminated & ~self._done, truncated & ~self._done
        self._done = terminated | truncated
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._done.any():
            final_obs = np.full(self.num_envs, None, object)
            for index, observation in enumerate(self.task.observe()):
                if self._done[index]:
                    final_obs[index] = observation
            infos = {
                "final_obs": final_obs,
                "final_info": {},
                "_final_obs": self._done,
                "_final_info": self._done.copy(),
            }
            self._begin(self._done)
        return self.task.observe(), rewards, terminated, truncated, infos

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Returns a picture of each environment, uint8 `[height, width, 3]`, if `render_mode` is "rgb_array"."""
        if self.render_mode != "rgb_array":
            return None
        return tuple(self.task.frame(index) for index in range(self.num_envs))

    def _begin(self, mask: np.ndarray) -> None:
        for index in np.flatnonzero(mask):
            self.task.begin(index, self._generators[index])  # type: ignore[arg-type]


class TMazeEnv(_MemoryEnv):
    """`TMaze-v0`, one environment; the arguments are those of `TMaze`, which describes the task."""

    task_class = TMaze


class TMazeVectorEnv(_MemoryVectorEnv):
    """`TMaze-v0`, `num_envs` environments in arrays; the other arguments are those of `TMaze`."""

    task_class = TMaze


class RepeatPreviousEnv(_MemoryEnv):
    """`RepeatPrevious-v0`, one environment; the arguments are those of `RepeatPrevious`, which describes the task."""

    task_class = RepeatPrevious


class RepeatPreviousVectorEnv(_MemoryVectorEnv):
    """`RepeatPrevious-v0`, `num_envs` environments in arrays; the other arguments are those of `RepeatPrevious`."""

    task_class = RepeatPrevious


def register_memory() -> None:
    """Registers the memory tasks with Gymnasium, single and vectorised."""
    for env_id, name in (("TMaze-v0", "TMaze"), ("RepeatPrevious-v0", "RepeatPrevious")):
        if env_id not in gym.registry:
            gym.register(
                id=env_id,
                entry_point=f"{__name__}:{name}Env",
                vector_entry_point=f"{__name__}:{name}VectorEnv",
                reward_threshold=0.95,
            )


def _require_integer(name: str, value: int, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        raise UserError(f"{name}={value!r}: expected an integer of at least {minimum}")


def _valid_actions(actions: Any, num_envs: int, space: gym.Space) -> np.ndarray:
    assert isinstance(space, gym.spaces.Discrete)
    array = np.asarray(actions)
    if array.shape != (num_envs,) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= space.n:
        raise gym.error.InvalidAction(f"expected {num_envs} integers in 0..{space.n - 1}, got {actions!r}")
    return array


def _enlarged(cells: np.ndarray) -> np.ndarray:
    return cells.repeat(16, axis=0).repeat(16, axis=1)
