"""Learning with a critic that sees the hidden state (`critic_keys`), and with one that sees what the actor sees.

    python benchmarks/critic_keys.py [--luck 0 1 4] [--seeds 3] [--frames 30000] [--record]

The task is to recall a cue, while luck changes all rewards. Both train with normalised rewards and the same options.
Every second iteration, the policy is evaluated with its most probable actions and without luck, where the hidden state
is missing. The task is learnt at the first of two evaluations in a row with a mean of at least 15 of 16.
"""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from measure import Table, Worker, record

HIDDEN, SEEN = "hidden", "seen"
CRITICS: dict[str, tuple[str, ...]] = {"sees what the actor sees": (), "sees the hidden state": (HIDDEN,)}
THRESHOLD = 15.0
PPO_OPTIONS: dict[str, Any] = {"learning_rate": 1e-3, "num_minibatches": 4, "update_epochs": 10}


class Recall(gym.Env):
    """Recall a cue, while luck that the agent neither sees nor influences changes all rewards.

    The cue, one of eight, is in the first observation only. In each of 16 steps, the right action earns 1. All rewards
    of an episode also contain its luck, a normal number. Observations are Dicts: `seen` is the cue, `hidden` the luck.
    """

    def __init__(self, luck: float) -> None:
        self.observation_space = gym.spaces.Dict(
            {SEEN: gym.spaces.Box(0, 1, (9,)), HIDDEN: gym.spaces.Box(-np.inf, np.inf, (1,))}
        )
        self.action_space = gym.spaces.Discrete(8)
        self._size = luck

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.cue, self.luck = int(self.np_random.integers(8)), self._size * self.np_random.normal()
        self.steps = 0
        return self._observation(self.cue), {}

    def step(self, action: int) -> Any:
        self.steps += 1
        return self._observation(8), float(action == self.cue) + self.luck, False, self.steps == 16, {}

    def _observation(self, shown: int) -> dict[str, np.ndarray]:
        return {SEEN: np.eye(9, dtype=np.float32)[shown], HIDDEN: np.array([self.luck], np.float32)}


@dataclasses.dataclass
class Options:
    luck: tuple[float, ...] = (0.0, 1.0, 4.0)
    """standard deviations of the luck"""
    frames: int = 30_000
    """frames to train for, over all environments"""
    seeds: int = 3
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

    def run(self, luck: float, critic_keys: tuple[str, ...], seed: int) -> Result:
        from rl_lnlstm import PPO, evaluate

        frames, scores = list[int](), list[float]()

        def make(luck: float, keep: bool) -> gym.Env:
            env = Recall(luck)
            return env if keep else gym.wrappers.FilterObservation(env, [SEEN])

        def look(metrics: dict[str, float]) -> bool:
            if metrics["time/iterations"] % 2 == 0:
                frames.append(int(metrics["time/total_timesteps"]))
                found = evaluate(ppo.policy, lambda: make(0.0, False), self._options.episodes, seed=0, num_envs=8)
                scores.append(found.mean)
            return min([0.0, 0.0, *scores][-2:]) < THRESHOLD

        options = {**PPO_OPTIONS, "critic_keys": critic_keys, "seed": seed}
        with PPO("auto", lambda: make(luck, bool(critic_keys)), **options) as ppo:
            ppo.learn(self._options.frames, callback=look)
        learnt = min(scores[-2:]) >= THRESHOLD
        return Result(frames[-2] if learnt else None, scores[-1])


def main(options: Options) -> None:
    results: dict[tuple[float, str], list[Result]] = {}
    for luck in options.luck:
        for seed in range(options.seeds):
            for critic, keys in CRITICS.items():
                worker = Worker(Run, options)
                result = worker.call("run", luck, keys, seed)
                worker.close()
                results.setdefault((luck, critic), []).append(result)
                print(f"luck {luck}, critic {critic}, seed {seed}: {result}", flush=True)
    table = table_of(results, options)
    table.print()
    if options.record:
        intro = f"Up to {options.frames:,} frames, seeds 0 to {options.seeds - 1}; rewards are normalised."
        record("critic_keys.py", intro, [table])


def table_of(results: dict[tuple[float, str], list[Result]], options: Options) -> Table:
    rows = []
    for (luck, critic), runs in results.items():
        frames = [f"{run.frames:,}" if run.frames else f"not within {options.frames:,}" for run in runs]
        rows.append([f"{luck:g}", critic, ", ".join(frames), f"{statistics.mean(run.mean_reward for run in runs):.1f}"])
    heads = ["luck", "the critic", "frames until it is learnt, each seed", "mean return at the end"]
    return Table("Recall with luck", heads, rows)


if __name__ == "__main__":
    import os

    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
