"""How many frames it takes to remember for 10, 50 and 200 steps: T-mazes with corridors of these lengths.

    python benchmarks/long_memory.py [--lengths 10 50 200] [--seeds 3] [--frames 1000000] [--grow] [--record]

A rollout is at least twice as long as an episode of the best policy, and backpropagation through time goes through all
of it. After every fifth iteration, the policy runs 50 episodes with its most probable actions. The task is learnt at
the first of three evaluations in a row with a mean return of at least 0.95. Without memory the mean is 0.

With `--grow`, each length starts from the policy that has learnt the length before.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any, NamedTuple

from measure import Table, Worker, record

IN_A_ROW = 3


@dataclasses.dataclass
class Options:
    lengths: tuple[int, ...] = (10, 50, 200)
    """lengths of the corridor"""
    seeds: int = 3
    """number of seeds"""
    frames: int = 1_000_000
    """frames to train for at each length, at most"""
    grow: bool = False
    """start each length from the policy that has learnt the length before"""
    record: bool = False
    """write the results to RESULTS.md"""


class Result(NamedTuple):
    frames: int | None  # until the task was learnt
    mean_reward: float  # at the end
    seconds: float


class Run:
    def __init__(self, options: Options) -> None:
        self._options = options

    def run(self, seed: int) -> list[Result]:
        """Learns all lengths, one after the other."""
        results, policy = [], None
        for length in self._options.lengths:
            result, learnt = self._learn(length, seed, policy)
            results.append(result)
            policy = learnt if self._options.grow else None
            print(f"corridor of {length}, seed {seed}: {result}", flush=True)
        return results

    def _learn(self, length: int, seed: int, start: Any) -> tuple[Result, Any]:
        from rl_lnlstm import PPO

        started, frames, scores = time.perf_counter(), list[int](), list[float]()
        num_steps = 64
        while num_steps < 2 * (length + 1):
            num_steps *= 2
        ppo = PPO(
            "auto" if start is None else start,
            "TMaze-v0",
            env_kwargs={"corridor_length": length},
            num_envs=16,
            num_steps=num_steps,
            sequence_length=num_steps,
            learning_rate=1e-3,
            num_minibatches=4,
            update_epochs=4,
            gamma=0.99 if length <= 50 else 0.999,
            ent_coef=0.01,
            shared_lstm=True,
            total_timesteps=self._options.frames,
            seed=seed,
        )

        def look(metrics: dict[str, float]) -> bool:
            if metrics["time/iterations"] % 5 and not ppo.finished:
                return True
            frames.append(int(metrics["time/total_timesteps"]))
            scores.append(ppo.evaluation(50).mean)
            return len(scores) < IN_A_ROW or min(scores[-IN_A_ROW:]) < 0.95

        with ppo:
            ppo.learn(callback=look)
        learnt = len(scores) >= IN_A_ROW and min(scores[-IN_A_ROW:]) >= 0.95
        result = Result(frames[-IN_A_ROW] if learnt else None, scores[-1], time.perf_counter() - started)
        return result, ppo.policy


def main(options: Options) -> None:
    results = []
    for seed in range(options.seeds):
        worker = Worker(Run, options)
        results.append(worker.call("run", seed))
        worker.close()
    table = table_of(results, options)
    table.print()
    if options.record:
        start = "each length starts from the policy of the length before" if options.grow else "each from new weights"
        record("long_memory.py", f"TMaze-v0, seeds 0 to {options.seeds - 1}, {start}.", [table])


def table_of(results: list[list[Result]], options: Options) -> Table:
    rows = []
    for length, runs in zip(options.lengths, zip(*results, strict=True), strict=True):
        learnt = [run.frames for run in runs if run.frames is not None]
        median = f"{statistics.median(learnt):,.0f}" if learnt else f"not within {options.frames:,}"
        rows.append([str(length), f"{len(learnt)} of {len(runs)}", median])
    return Table("Frames until the cue is remembered", ["corridor", "seeds that learn it", "frames (median)"], rows)


if __name__ == "__main__":
    import os

    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
