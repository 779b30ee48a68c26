"""Learning with a critic that sees the hidden state (`critic_keys`), and with one that sees what the actor sees.

    python benchmarks/critic_keys.py [--tasks hidden-goal ...] [--seeds 5] [--frames 100000] [--record]

Both train in the same environments with PPO's default options. Every 8 iterations, the policy is evaluated with its
most probable actions. It has learnt a task after the first of two evaluations in a row that reach the threshold.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from measure import Table, Worker, record

HIDDEN, SEEN = "hidden", "seen"


class HiddenGoal(gym.Env):
    """Find a goal that the agent does not see. It sees its position and its distance to the goal.

    The agent moves on a square. Each step costs the distance. Observations are Dicts: `seen` is what the agent sees,
    `hidden` is the goal.
    """

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            {SEEN: gym.spaces.Box(-3, 3, (3,)), HIDDEN: gym.spaces.Box(-1, 1, (2,))}
        )
        self.action_space = gym.spaces.Box(-1, 1, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.position, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> Any:
        self.position = np.clip(self.position + 0.2 * action, -1, 1).astype(np.float32)
        self.steps += 1
        return self._observation(), -self._distance(), False, self.steps == 30, {}

    def _distance(self) -> float:
        return float(np.linalg.norm(self.position - self.goal))

    def _observation(self) -> dict[str, np.ndarray]:
        return {SEEN: np.append(self.position, np.float32(self._distance())), HIDDEN: self.goal}


class VelocitiesForTheCritic(gym.ObservationWrapper):
    """Splits a vector: `seen` are the positions, `hidden` the velocities."""

    def __init__(self, env: gym.Env, velocities: list[int]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        self._velocities = velocities
        self._positions = [index for index in range(space.shape[0]) if index not in velocities]
        parts = {SEEN: self._positions, HIDDEN: velocities}
        self.observation_space = gym.spaces.Dict(
            {name: gym.spaces.Box(space.low[rows], space.high[rows]) for name, rows in parts.items()}
        )

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {SEEN: observation[self._positions], HIDDEN: observation[self._velocities]}


class Task(NamedTuple):
    make: Any
    threshold: float  # mean return at which the task counts as learnt


TASKS = {
    "hidden-goal": Task(HiddenGoal, -10.0),
    "Pendulum-v1 without velocity": Task(lambda: VelocitiesForTheCritic(gym.make("Pendulum-v1"), [2]), -250.0),
    "CartPole-v1 without velocities": Task(lambda: VelocitiesForTheCritic(gym.make("CartPole-v1"), [1, 3]), 475.0),
}
CRITICS: dict[str, tuple[str, ...]] = {"sees what the actor sees": (), "sees the hidden state": (HIDDEN,)}


@dataclasses.dataclass
class Options:
    tasks: tuple[str, ...] = tuple(TASKS)
    """tasks to learn"""
    frames: int = 100_000
    """frames to train for, over all environments"""
    seeds: int = 5
    """number of seeds"""
    episodes: int = 50
    """number of episodes of each evaluation"""
    record: bool = False
    """write the results to RESULTS.md"""


class Result(NamedTuple):
    frames: int | None  # until the task was learnt
    mean_reward: float  # at the end


class Run:
    def __init__(self, options: Options) -> None:
        self._options = options

    def run(self, name: str, critic_keys: tuple[str, ...], seed: int) -> Result:
        from rl_lnlstm import PPO

        task, scores = TASKS[name], dict[int, float]()

        def make() -> gym.Env:
            env = task.make()
            return env if critic_keys else gym.wrappers.FilterObservation(env, [SEEN])

        def look(metrics: dict[str, float]) -> None:
            if metrics["time/iterations"] % 8 == 0 or ppo.finished:
                scores[int(metrics["time/total_timesteps"])] = ppo.evaluation(self._options.episodes).mean

        with PPO("auto", make, critic_keys=critic_keys, seed=seed) as ppo:
            ppo.learn(self._options.frames, callback=look)
        frames, reached = list(scores), [score >= task.threshold for score in scores.values()]
        first = [at for at, *both in zip(frames, reached, reached[1:] or reached, strict=False) if all(both)]
        print(scores, flush=True)
        return Result(first[0] if first else None, scores[frames[-1]])


def main(options: Options) -> None:
    results: dict[tuple[str, str], list[Result]] = {}
    for task in options.tasks:
        for seed in range(options.seeds):
            for critic, keys in CRITICS.items():
                worker = Worker(Run, options)
                result = worker.call("run", task, keys, seed)
                worker.close()
                results.setdefault((task, critic), []).append(result)
                print(f"{task}, critic {critic}, seed {seed}: {result}", flush=True)
    table = table_of(results, options)
    table.print()
    if options.record:
        intro = f"{options.frames:,} frames, seeds 0 to {options.seeds - 1}; PPO's default options."
        record("critic_keys.py", intro, [table])


def table_of(results: dict[tuple[str, str], list[Result]], options: Options) -> Table:
    rows = []
    for (task, critic), runs in results.items():
        frames = [options.frames + 1 if run.frames is None else run.frames for run in runs]
        median = statistics.median(frames)
        learnt = f"{sum(run.frames is not None for run in runs)} of {len(runs)}"
        shown = f"{median:,.0f}" if median <= options.frames else f"more than {options.frames:,}"
        rows.append([task, critic, learnt, shown, f"{statistics.mean(run.mean_reward for run in runs):.1f}"])
    heads = ["task", "the critic", "seeds that learn it", "frames (median)", "mean return at the end"]
    return Table("Frames until the task is learnt", heads, rows)


if __name__ == "__main__":
    import os

    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
