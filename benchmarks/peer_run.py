"""What the processes that `peers.py` starts have in common: their argument, and the line of JSON that they print.

Peers live in virtual environments of their own, so this module needs no package but Gymnasium, and that only for
`make_env`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, given as JSON in the first argument. What is left out has the default."""

    num_envs: int = 8
    num_steps: int = 128
    sequence_length: int = 64
    """steps of backpropagation through time, a divisor of num_steps"""
    update_epochs: int = 4
    num_minibatches: int = 4
    units: int = 128
    iterations: int = 20
    """iterations, each with a rollout and an update"""
    warmup: int = 2
    """iterations before the first that is measured"""
    seed: int = 0
    threads: int | None = None
    """threads of PyTorch, its own number if None"""


class Clock:
    """Measures the iterations after the warm-up."""

    def __init__(self, task: Task) -> None:
        self._task, self.iterations = task, 0
        self._began = self._now()

    def iterated(self, iterations: int = 1) -> bool:
        """Called after so many more iterations. False: stop."""
        self.iterations += iterations
        if self.iterations == self._task.warmup:
            self._began = self._now()
        return self.iterations < self._task.iterations

    def result(self) -> dict[str, float]:
        """Frames, wall seconds and CPU seconds of all threads, after the warm-up; CPU seconds since the start."""
        frames, seconds, cpu_seconds = (now - began for now, began in zip(self._now(), self._began, strict=True))
        measured = {"frames": frames, "seconds": seconds, "cpu_seconds": cpu_seconds}
        return {**measured, "all_cpu_seconds": time.process_time()}

    def _now(self) -> tuple[int, float, float]:
        frames = self.iterations * self._task.num_envs * self._task.num_steps
        return frames, time.perf_counter(), time.process_time()


def make_env() -> Any:
    import gymnasium as gym

    return gym.make("CartPole-v1")


def main(run: Callable[[Any], dict[str, float]], kind: type[Task] = Task) -> None:
    """Runs the task in the argument, and prints the result as the last line."""
    print("\n" + json.dumps(run(kind(**json.loads(sys.argv[1])))), flush=True)
