"""A run that takes a second, and what it recorded."""

import csv
from pathlib import Path

from rl_lnlstm.commands import main

ROOT = Path(__file__).parents[2]
SMALL = [
    *("--num-envs", "2", "--num-steps", "16", "--num-minibatches", "1", "--units", "8", "--no-jit-compile"),
    *("--shared-lstm", "--head-layers"),  # fewer weights, so that tracing takes less time
]


def train(run_dir, *arguments):
    return main(["train", *SMALL, "--run-dir", str(run_dir), "--total-timesteps", "300", *arguments])


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))
