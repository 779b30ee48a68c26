"""The time from the start of `train.py` to the end of the first update, and how much of it is `import tensorflow`.

    python benchmarks/startup.py --record

Each round starts the same training twice: without compiled programs of XLA in the cache, and with those of the first.
The kernel is built before.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import Table, record

ROOT = Path(__file__).parents[1]
FIRST, AGAIN, IMPORT = "train.py, the first time", "train.py, again", "import tensorflow"
TARGETS = {FIRST: "4.5 s", AGAIN: "3.5 s"}
POLL = 0.005  # seconds


@dataclasses.dataclass
class Options:
    env_id: str = "CartPole-v1"
    """Gymnasium id of the environment; the options of the training are the defaults"""
    rounds: int = 5
    """number of times that everything is measured"""
    record: bool = False
    """write the results to RESULTS.md"""


def seconds_to_first_update(options: Options, cache: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = ["train.py", "--env-id", options.env_id, "--total-timesteps", "1", "--eval-episodes", "0"]
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *command, "--run-dir", str(run_dir)],
            cwd=ROOT,
            env={**os.environ, "RL_LNLSTM_CACHE": str(cache)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and not has_a_row(run_dir / "metrics.csv"):
            time.sleep(POLL)
        seconds = time.perf_counter() - started
        if process.wait() or not has_a_row(run_dir / "metrics.csv"):
            raise SystemExit("train.py failed")
        return seconds


def has_a_row(path: Path) -> bool:
    return path.exists() and path.read_text().count("\n") >= 2


def seconds_to_import() -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import tensorflow"], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(options: Options) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "rl_lnlstm", "build-kernel"], capture_output=True, text=True, check=True
    )
    kernel = Path(built.stdout.strip()).parent
    measured: dict[str, list[float]] = {FIRST: [], AGAIN: [], IMPORT: []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            shutil.copytree(kernel, cache / kernel.name)
            measured[FIRST].append(seconds_to_first_update(options, cache))
            measured[AGAIN].append(seconds_to_first_update(options, cache))
        measured[IMPORT].append(seconds_to_import())
    medians = {name: statistics.median(seconds) for name, seconds in measured.items()}
    rows = [
        [name, f"{median:.2f} s", f"{min(measured[name]):.2f} to {max(measured[name]):.2f} s", TARGETS.get(name, "-")]
        for name, median in medians.items()
    ]
    table = Table(f"{options.env_id}, to the end of the first update", ["", "median", "range", "target"], rows)
    table.print()
    if options.record:
        intro = f"{options.rounds} rounds, with the default options. The kernel was built before."
        record("startup.py", intro, [table])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
