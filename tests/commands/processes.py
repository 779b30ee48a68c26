"""Runs in a process of their own, and what they recorded."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.runs.checkpoints import read_newest

ROOT = Path(__file__).parents[2]
TINY = [
    *("--num-envs", "2", "--num-steps", "16", "--num-minibatches", "1", "--update-epochs", "2", "--no-jit-compile"),
    *("--units", "8", "--eval-interval", "20", "--n-eval-episodes", "2", "--eval-episodes", "0"),
    *("--checkpoint-interval", "3", "--shared-lstm", "--head-layers"),
]
TIMINGS = ("time/fps", "time/time_elapsed")
ENVIRONMENT = {**os.environ, "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "OMP_NUM_THREADS": "1"}


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process, timeout=120):
    _, error = process.communicate(timeout=timeout)
    assert "Traceback" not in error
    return process.returncode, error


def wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(run_dir):
    """The metrics in the file, without times, and without cells that belong to another iteration."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {name: text for name, text in row.items() if text and name not in TIMINGS} for row in csv.DictReader(file)
        ]


def events(run_dir):
    accumulator = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, event.value) for event in accumulator.Scalars(name)]
        for name in accumulator.Tags()["scalars"]
        if name not in TIMINGS
    }


def checkpoints(run_dir):
    return sorted(path.name for path in (run_dir / "checkpoints").glob("[0-9]*"))


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def assert_same_run(one, other):
    assert rows(one) == rows(other)
    first, second = events(one), events(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    for policy in ("policy", "checkpoints/best"):
        assert same(*(load_policy(run / policy).get_weights() for run in (one, other)))
    trees = [read_newest(run / "checkpoints").tree for run in (one, other)]
    for tree in trees:
        tree["schedule"] = tree["schedule"][:2]  # the third is what it took
    assert same(*trees), "also what a further resume would go on from"
