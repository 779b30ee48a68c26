"""Workers on Ray: how collecting scales with slow environments, and what an iteration costs beside it.

    python benchmarks/scale.py [--workers 1 2 4 8 16] [--iterations 5] [--record]

The slow environment sleeps 5 ms in each step, so it needs no core. The ideal is the speed at which the environments
alone would give frames. The overhead is the time from the call of `collect` to the rollout in the learner, without the
time of the slowest worker: weights out, rollouts back and joined.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from measure import Table, record

SLEEP = 0.005
EACH = 4  # environments of a worker
STEPS = 64
SIZES = {"MLP, 128 units": (4,), "Atari-sized, 84 x 84 x 4": (84, 84, 4)}


@dataclasses.dataclass
class Options:
    workers: tuple[int, ...] = (1, 2, 4, 8, 16)
    """numbers of workers with the slow environment"""
    iterations: int = 5
    """iterations that are measured, after one that is not; the median counts"""
    record: bool = False
    """write the results to RESULTS.md"""


class Slow(gym.Env):
    """Sleeps, and observes noise. An image if the shape has three axes."""

    def __init__(self, shape: tuple[int, ...] = (4,), sleep: float = SLEEP) -> None:
        image = len(shape) == 3
        self.observation_space = gym.spaces.Box(0, 255 if image else 1, shape, np.uint8 if image else np.float32)
        self.action_space = gym.spaces.Discrete(4)
        self.sleep, self.pictures = sleep, [self.observation_space.sample() for _ in range(8)]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return self.pictures[0], {}

    def step(self, action: int) -> Any:
        self.time += 1
        if self.sleep:
            time.sleep(self.sleep)
        return self.pictures[self.time % 8], 1.0, False, self.time == 100, {}


class Times(NamedTuple):
    """Seconds of `collect`, and of the slowest worker in it."""

    collect: float
    worker: float


def measure(workers: int, iterations: int, num_envs: int, steps: int, make: Callable[[], gym.Env]) -> Times:
    from rl_lnlstm import PPO

    options = {"num_envs": num_envs, "num_steps": steps, "num_minibatches": 1, "seed": 0}
    with PPO("auto", make, **options, ray="local", workers=workers) as ppo:
        collector, times = ppo._collector, []
        for _ in range(1 + iterations):
            began = time.perf_counter()
            collector.collect()
            times.append(Times(time.perf_counter() - began, collector._crew.seconds))
    return Times(*(statistics.median(column) for column in zip(*times[1:], strict=True)))


def main(options: Options) -> None:
    rows = []
    for workers in options.workers:
        times = measure(workers, options.iterations, EACH * workers, STEPS, Slow)
        fps = EACH * workers * STEPS / times.collect
        ideal = workers / SLEEP
        rows.append([str(workers), f"{ideal:,.0f}", f"{fps:,.0f}", f"{fps / ideal:.3f}"])
    scaling = Table(
        f"Collecting with an environment of {1000 * SLEEP:g} ms a step, {EACH} environments a worker, {STEPS} steps",
        ["workers", "ideal frames/s", "frames/s", "fraction"],
        rows,
    )
    scaling.print()
    rows = []
    for name, shape in SIZES.items():
        for workers in (count for count in (1, 2, 4) if count <= max(options.workers)):
            times = measure(workers, options.iterations, 8, 128, functools.partial(Slow, shape, 0.0))
            overhead = times.collect - times.worker
            rows.append([name, str(workers), *(f"{1000 * part:.0f}" for part in (times.worker, overhead))])
    overheads = Table(
        "Overhead of an iteration of 8 environments x 128 steps, in ms",
        ["observations", "workers", "slowest worker", "overhead"],
        rows,
    )
    overheads.print()
    if options.record:
        record("Workers", "All workers are on this machine. Figures are medians of iterations.", [scaling, overheads])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
