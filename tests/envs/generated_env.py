"""Generated environments with simple dynamics, which misbehave in every way that is allowed."""

import copy
from typing import NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from rl_lnlstm.spaces import flatten, map_leaves

OBSERVATIONS = {
    "floats": spaces.Box(-10, 10, (2,), np.float32),
    "bytes": spaces.Box(0, 255, (2, 3), np.uint8),
    "discrete": spaces.Discrete(5, start=-1, dtype=np.int32),
    "multi-discrete": spaces.MultiDiscrete([3, 4], start=[1, 0]),
    "multi-binary": spaces.MultiBinary(3),
    "nested": spaces.Dict(
        z=spaces.Box(-10, 10, (), np.float64),
        a=spaces.Tuple([spaces.Discrete(3), spaces.Dict({"x": spaces.Box(0, 255, (3,), np.uint8)})]),
    ),
}
ACTIONS = {
    "discrete": spaces.Discrete(4, start=2, dtype=np.int32),
    "multi-discrete": spaces.MultiDiscrete([[3, 2], [4, 5]], dtype=np.int16),
    "multi-binary": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-2, 3, (2,), np.float64),
    "nested": spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])),
}

ENDS = {
    "bool": bool,
    "int": int,
    "float": float,
    "numpy": np.bool_,
    "0-d": np.array,
    "list": lambda end: [end],
    "one": lambda end: np.array([int(end)]),
}
REWARDS = {
    "float": float,
    "numpy": np.float32,
    "0-d": lambda reward: np.array(reward, np.float32),
    "one": lambda reward: np.array([reward], np.float32),
    "list": lambda reward: [reward],
}
INFOS = {
    "nothing": lambda time, ended: {},
    "none": lambda time, ended: {"x": 1 if ended else None},
    "text": lambda time, ended: {"x": "won" if ended else 0, "final_obs": time, "episode": {"r": time}},
    "ragged": lambda time, ended: {"x": np.zeros(time), "_x": "y"},
    "dict": lambda time, ended: {"x": {"a": 1} if ended else [time]},
    "objects": lambda time, ended: {"x": object if time % 2 else {"y": object()}, 3: 4},
}


class Plan(NamedTuple):
    """How an environment behaves: episodes, each of so many steps and whether it is truncated, over and over."""

    episodes: tuple = ((3, False),)
    reuses: str = "nothing"  # "own": it returns the same arrays again and again; "class": all environments do
    spoils: bool = False  # what it returned it overwrites when it is called again; and the actions that it is given
    wider: bool = False  # it returns numbers of another dtype, and lists
    end: str = "bool"
    reward: str = "float"
    info: str = "nothing"


def content(space, seed, episode, time):
    """The observation of that step: an element of the space that depends on these numbers alone."""
    rng = np.random.default_rng([seed, episode, time])

    def of_leaf(leaf):
        if isinstance(leaf, spaces.Box):
            return rng.integers(leaf.low, leaf.high, endpoint=True).astype(leaf.dtype)
        if isinstance(leaf, spaces.MultiBinary):
            return rng.integers(0, 2, leaf.shape).astype(leaf.dtype)
        sizes = leaf.n if isinstance(leaf, spaces.Discrete) else leaf.nvec
        value = (leaf.start + rng.integers(0, sizes)).astype(leaf.dtype)
        return value if isinstance(leaf, spaces.MultiDiscrete) else leaf.dtype.type(value)

    return map_leaves(of_leaf, space)


def reward_of(space, action, time):
    """A reward that tells the action, exactly in float32."""
    weights = 1 + np.arange(64)
    flat = np.concatenate([np.ravel(part).astype(np.float64) for part in flatten(space, action)])
    return float(np.float32(np.round(flat @ weights[: flat.size], 2) + time / 4))


class GeneratedEnv(gym.Env):
    """What happens depends on the seed of the first reset, the episode, the step and, for rewards, the action."""

    shared = None  # what all environments with reuses="class" return

    def __init__(self, observations, actions, plan=None):
        self.observation_space, self.action_space = OBSERVATIONS[observations], ACTIONS[actions]
        self.plan = plan or Plan()
        self.buffer, self.returned = None, []

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.seed, self.episode = seed, -1
        self.episode += 1
        self.time = 0
        return self._returned(), INFOS[self.plan.info](0, False)

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.time += 1
        reward = reward_of(self.action_space, action, self.time)
        if self.plan.spoils:
            self._spoil(flatten(self.action_space, action))
        length, truncates = self.plan.episodes[self.episode % len(self.plan.episodes)]
        over = self.time == length
        end = ENDS[self.plan.end]
        observation = self._returned()
        info = INFOS[self.plan.info](self.time, over)
        return (
            observation,
            REWARDS[self.plan.reward](reward),
            end(over and not truncates),
            end(over and truncates),
            info,
        )

    def _returned(self):
        observation = content(self.observation_space, self.seed, self.episode, self.time)
        if self.plan.spoils:
            self._spoil(self.returned)
        if self.plan.reuses != "nothing":
            observation = self._in_buffer(observation)
        elif self.plan.wider:
            observation = map_leaves(_widened, self.observation_space, observation)
        self.returned = flatten(self.observation_space, observation)
        return observation

    def _in_buffer(self, observation):
        owner = type(self) if self.plan.reuses == "class" else self
        if getattr(owner, "buffer", None) is None:
            owner.buffer = map_leaves(lambda leaf, part: np.array(part), self.observation_space, observation)
        arrays = flatten(self.observation_space, owner.buffer)
        for array, part in zip(arrays, flatten(self.observation_space, observation), strict=True):
            array[...] = part
        return owner.buffer

    def _spoil(self, parts):
        for part in parts:
            if isinstance(part, np.ndarray):
                part[...] = 77


def _widened(leaf, part):
    if isinstance(leaf, spaces.Box) and leaf.dtype.kind == "f":
        return np.asarray(part, np.float64)
    return np.asarray(part).astype(np.int64).tolist()


class GeneratedVectorEnv(VectorEnv):
    """The same environments, in one vector environment that behaves as badly: it reuses all that it returns."""

    def __init__(self, num_envs, observations, actions, plan, autoreset_mode):
        self.mode, self.num_envs, self.plan = AutoresetMode(autoreset_mode), num_envs, plan
        self.metadata = {"autoreset_mode": self.mode}
        self.envs_inside = [GeneratedEnv(observations, actions, Plan(plan.episodes)) for _ in range(num_envs)]
        self.single_observation_space = self.envs_inside[0].observation_space
        self.single_action_space = self.envs_inside[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.parts = [None] * num_envs
        self.batch = create_empty_array(self.single_observation_space, num_envs)
        self.rewards, self.over = np.zeros(num_envs), np.zeros((2, num_envs), bool)

    def reset(self, *, seed=None, options=None):
        rows = (options or {}).get("reset_mask", np.ones(self.num_envs, bool))
        for index in np.flatnonzero(rows):
            self.parts[index], _ = self.envs_inside[index].reset(seed=None if seed is None else seed + int(index))
        self.over[:, rows] = False
        return self._batch(), INFOS[self.plan.info](0, False)

    def step(self, actions):
        ended, infos = self.over.any(0), INFOS[self.plan.info](1, True)
        infos.pop("final_obs", None)
        final = [None] * self.num_envs
        for index, action in enumerate(iterate(self.action_space, copy.deepcopy(actions))):
            env = self.envs_inside[index]
            if self.mode is AutoresetMode.NEXT_STEP and ended[index]:
                self.parts[index], _ = env.reset()
                self.rewards[index], self.over[:, index] = 5.0, False  # a reward for a reset does not count
                continue
            self.parts[index], self.rewards[index], terminated, truncated, _ = env.step(action)
            self.over[:, index] = terminated, truncated
            if self.mode is AutoresetMode.SAME_STEP and (terminated or truncated):
                final[index], (self.parts[index], _) = self.parts[index], env.reset()
        if self.mode is AutoresetMode.SAME_STEP and self.over.any():
            infos["final_obs"] = final
        if self.plan.spoils:
            for part in flatten(self.single_action_space, actions):
                part[...] = 77
        end = {"list": list, "one": lambda ends: ends[:, None].astype(int), "int": lambda ends: ends.astype(int)}
        ends = [end.get(self.plan.end, lambda ends: ends)(ends) for ends in self.over]
        return self._batch(), self.rewards.tolist() if self.plan.reward == "list" else self.rewards, *ends, infos

    def _batch(self):
        return concatenate(self.single_observation_space, self.parts, self.batch)
