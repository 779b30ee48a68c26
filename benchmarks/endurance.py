"""Endurance of long runs: memory over many iterations, and environments that fail once in a thousand steps.

    python benchmarks/endurance.py [--iterations 2000] [--seeds 1] [--record]

Memory is the sum over the process and its workers, first when tables and caches are filled, then at the end. The
failures are exceptions, NaN, and, where environments have processes of their own, also hanging and being killed.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from measure import Table, record

from rl_lnlstm.presets import preset

TINY = {"num_envs": 2, "num_steps": 16, "units": 8, "num_minibatches": 2, "update_epochs": 2}
FAULTS = {"sync": ("raise", "nan"), "async": ("raise", "nan", "kill", "exit", "hang")}
TIMEOUT = 3.0


@dataclasses.dataclass
class Options:
    iterations: int = 2000
    """iterations over which memory is measured"""
    warm_up: int = 200
    """iterations before the measurement"""
    seeds: int = 1
    """number of seeds of the runs with failures"""
    record: bool = False
    """write the results to RESULTS.md"""


class Failing(gym.Wrapper):
    """Fails once in `every` steps on average, in one of several ways."""

    def __init__(self, env: gym.Env, ways: tuple[str, ...], every: int = 1000) -> None:
        super().__init__(env)
        self.ways, self.every = ways, every

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if self.np_random.integers(self.every) == 0:
            way = self.np_random.choice(self.ways)
            if way == "raise":
                raise RuntimeError("once in a thousand steps")
            if way == "nan":
                observation = observation * np.nan
            elif way == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif way == "exit":
                os._exit(3)
            else:
                time.sleep(1e6)
        return observation, reward, terminated, truncated, info


def memory(vectorization: str, warm_up: int, iterations: int) -> tuple[float, float]:
    """Memory in MiB after `warm_up` iterations, and after `iterations` more."""
    from rl_lnlstm import PPO

    ppo = PPO("MlpLnLstmPolicy", "CartPole-v1", vectorization=vectorization, seed=0, **TINY)
    frames = TINY["num_envs"] * TINY["num_steps"]
    sizes = []
    for count in (warm_up, iterations):
        end = ppo.iteration + count
        ppo.learn(10 * frames * count, lambda metrics, end=end: metrics["time/iterations"] < end)
        sizes.append(sum(map(resident_mib, [os.getpid(), *descendants(os.getpid())])))
    ppo.envs.close()
    return sizes[0], sizes[1]


def failing(env_id: str, vectorization: str, seed: int) -> tuple[float, int, float]:
    """The return in an evaluation without failures, the number of failures in training, and seconds."""
    from endurance import Failing  # workers have no __main__, so they import it by this name

    from rl_lnlstm import PPO, evaluate_policy

    ways = FAULTS[vectorization]

    def make() -> gym.Env:
        return Failing(gym.make(env_id), ways)

    options = {**preset(env_id), "vectorization": vectorization, "seed": seed, "env_timeout": TIMEOUT}
    del options["env_id"]
    began = time.perf_counter()
    ppo = PPO("MlpLnLstmPolicy", make, **options).learn()
    seconds = time.perf_counter() - began
    failures = ppo.envs.failures
    ppo.envs.close()
    return evaluate_policy(ppo.best_policy, env_id, 100, seed=1000)[0], failures, seconds


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def descendants(pid: int) -> Iterable[int]:
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            yield child
            yield from descendants(child)


def apart(function: Callable, *arguments: Any) -> Any:
    """Calls a function in a process of its own, which may start workers."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main(options: Options) -> None:
    rows = []
    for vectorization in ("sync", "async"):
        before, after = apart(memory, vectorization, options.warm_up, options.iterations)
        rows.append([vectorization, f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"])
    memory_table = Table(
        f"Memory in MiB over {options.iterations:,} iterations, after the first {options.warm_up}",
        ["environments", "before", "after", "difference"],
        rows,
    )
    memory_table.print()
    rows = []
    for vectorization, ways in FAULTS.items():
        for seed in range(options.seeds):
            score, failures, seconds = apart(failing, "CartPoleNoVel-v1", vectorization, seed)
            rows.append([vectorization, ", ".join(ways), str(seed), str(failures), f"{score:.1f}", f"{seconds:.0f}"])
    failing_table = Table(
        "CartPoleNoVel-v1 from its preset, each environment failing once in 1,000 steps",
        ["environments", "ways to fail", "seed", "failures in training", "return without failures", "seconds"],
        rows,
    )
    failing_table.print()
    if options.record:
        record(
            "Endurance",
            "Memory is the resident size of the process. Returns are from deterministic episodes of the final policy.",
            [memory_table, failing_table],
        )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
