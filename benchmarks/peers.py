"""Speed of training, compared with recurrent PPOs of other libraries, each in a virtual environment of its own.

    python benchmarks/peers.py [--peers jax skrl] [--num-envs 8 64 256] [--rounds 3] [--record]

The script makes the environment of a peer, in `build/peers`, if it is missing. The first measure is frames/s on
CartPole-v1 with the same sizes for all: 128 steps, 4 epochs, 4 minibatches of sequences of 64 steps (of 128 in
sb3-contrib), an LSTM of 128 units and two tanh layers of 64 in each head. It leaves out the first iterations. Beside it
are the CPU seconds of all threads, which change less than the wall time when other processes use the machine. The
second measure is the time to learn CartPoleNoVel-v1, from the start of the process until 20 deterministic episodes have
a mean return of 475. All evaluate after every 4,096 frames, and have hyperparameters that were tuned for this
environment.

The peers:

- `jax` is `jax_ppo.py`: environment, rollout and updates are one compiled program, as in PureJaxRL (Lu et al., 2022).
- `sb3-contrib` is Stable-Baselines3's RecurrentPPO.
- `skrl` has the model that its documentation shows. It shuffles no sequences.
- `sample-factory` is synchronous and in one process. Actor and critic share the layers after the LSTM, and a layer of
  64 is in front of the LSTM.
- PufferLib 3.0.0 is missing. PyPI has only its source, whose build downloads a graphics library from elsewhere; with
  `NO_OCEAN=1`, which leaves this library out, its setup.py fails ("name 'c_extension_paths' is not defined").

Those that use PyTorch have its own number of threads. With `, 1 thread` they have one, which is faster for some sizes,
and much faster if other processes use the machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import peer_learning
import ppo_candidates
from measure import Bar, Patience, Table, Worker, record
from peer_run import Task

HERE = Path(__file__).parent
OURS = "rl-lnlstm"
ENV_ID = "CartPole-v1"
TORCH = "torch==2.13.0"


class Peer(NamedTuple):
    """A candidate with a virtual environment of its own."""

    script: str
    packages: tuple[str, ...]  # installed one after the other
    learning: dict[str, Any] | None = None  # options of the script to learn, if it can
    threads: int | None = None


TO_SCORE = {"target": peer_learning.TARGET, "episodes": peer_learning.EPISODES}
JAX = Peer(
    "jax_ppo.py",
    ("jax==0.10.2",),
    learning={
        **TO_SCORE,
        "velocities": False,
        "gamma": 0.995,
        "units": 64,
        "update_epochs": 5,
        "sequence_length": 128,
    },
)
SB3 = Peer("sb3_ppo.py", (TORCH, "gymnasium==1.4.0", "sb3-contrib==2.9.2", "rich==15.0.0"))
SKRL = Peer("skrl_ppo.py", (TORCH, "gymnasium==1.4.0", "skrl==2.1.1"))
SAMPLE_FACTORY = Peer("sample_factory_ppo.py", (TORCH, "sample-factory==2.1.1"))


CANDIDATES: dict[str, Peer | None] = {
    OURS: None,  # it is in the environment of this script
    "jax": JAX,
    "sb3-contrib": SB3,
    "sb3-contrib, 1 thread": SB3._replace(threads=1, learning=TO_SCORE),
    "skrl": SKRL,
    "skrl, 1 thread": SKRL._replace(threads=1),
    "sample-factory": SAMPLE_FACTORY,
    "sample-factory, 1 thread": SAMPLE_FACTORY._replace(threads=1),
}
PEERS_ELSEWHERE = {"jax": JAX, "sb3-contrib": SB3, "skrl": SKRL, "sample-factory": SAMPLE_FACTORY}


@dataclasses.dataclass
class Options:
    peers: tuple[str, ...] = tuple(name for name in CANDIDATES if name != OURS)
    """names of peers"""
    num_envs: tuple[int, ...] = (8, 64, 256)
    """numbers of environments"""
    frames: int = 40_000
    """frames of a run after the warm-up, but at least 3 iterations"""
    warmup: int = 2
    """iterations that are not measured"""
    rounds: int = 3
    """number of runs of each candidate; they take turns"""
    learning_rounds: int = 3
    """number of seeds that learn CartPoleNoVel-v1"""
    folder: Path = HERE.parent / "build" / "peers"
    """the virtual environments"""
    patience: float = 0
    """total seconds to wait while other processes use the machine"""
    record: bool = False
    """write the results to RESULTS.md"""


class PeerError(Exception):
    """A peer that was not installed, or whose process failed."""


def python_of(peer: Peer, folder: Path) -> Path:
    """The interpreter of the peer's environment, which is made if it is missing or has other packages."""
    environment = folder / Path(peer.script).stem
    python, made = environment / "bin" / "python", environment / "packages"
    if not made.exists() or made.read_text() != "\n".join(peer.packages):
        print(f"installing {', '.join(peer.packages)} in {environment}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        pip = [] if peer.packages else ["--without-pip"]
        output_of([sys.executable, "-m", "venv", *pip, str(environment)])
        for package in peer.packages:
            output_of([str(python), "-m", "pip", "install", "--quiet", package])
        made.write_text("\n".join(peer.packages))
    return python


def output_of(command: Sequence[str]) -> str:
    # The packages of this environment must not be visible in that of a peer.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE)
    if done.returncode:
        raise PeerError((done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1])
    return done.stdout


def run_peer(peer: Peer, folder: Path, task: dict[str, Any]) -> dict[str, float]:
    output = output_of([str(python_of(peer, folder)), peer.script, json.dumps(task)])
    return json.loads(output.splitlines()[-1])


def run_ours(seed: int, factory: type, *arguments: Any) -> Any:
    worker = Worker(factory, *arguments)
    try:
        return worker.call("run", seed)
    finally:
        worker.close()


class Rate(NamedTuple):
    frames_per_second: float
    cpu_seconds: float  # of 100,000 frames


def rate_of(name: str, num_envs: int, seed: int, options: Options) -> Rate:
    sizes = Task(num_envs=num_envs, warmup=options.warmup, seed=seed)
    iterations = options.warmup + max(3, options.frames // (num_envs * sizes.num_steps))
    peer = CANDIDATES[name]
    if peer is not None:
        task = dataclasses.replace(sizes, iterations=iterations, threads=peer.threads)
        run = run_peer(peer, options.folder, dataclasses.asdict(task))
        frames, seconds, cpu_seconds = run["frames"], run["seconds"], run["cpu_seconds"]
    else:
        # The rest is the same.
        settings = ppo_candidates.Options(ENV_ID, num_envs, iterations=iterations, warmup=options.warmup)
        columns = run_ours(seed, ppo_candidates.Ours, settings)
        frames, seconds, _, cpu_seconds = (column[-1] - column[options.warmup] for column in columns)
    return Rate(frames / seconds, 100_000 * cpu_seconds / frames)


class Learning(NamedTuple):
    seconds: float  # from the start of the process
    cpu_seconds: float
    frames: float
    score: float


def learning_of(name: str, seed: int, options: Options) -> Learning:
    peer = CANDIDATES[name]
    started = time.perf_counter()
    if peer is not None:
        every = peer_learning.EVALUATE_EVERY // (Task.num_envs * Task.num_steps)
        iterations = peer_learning.FRAMES // (Task.num_envs * Task.num_steps)
        task = {"iterations": iterations, "warmup": 0, "evaluate_every": every, "seed": seed, "threads": peer.threads}
        run = run_peer(peer, options.folder, {**task, **(peer.learning or {})})
        learnt = peer_learning.Learnt(int(run["frames"]), run["score"], run["all_cpu_seconds"])
    else:
        learnt = run_ours(seed, peer_learning.Ours)
    return Learning(time.perf_counter() - started, learnt.all_cpu_seconds, learnt.frames, learnt.score)


class Measured(NamedTuple):
    """The results of each candidate in the rounds, and the errors of those that failed and were left out."""

    rates: dict[tuple[int, str], list[Rate]]
    learning: dict[str, list[Learning]]
    errors: dict[str, str]


def measure(options: Options) -> Measured:
    wait, names = Patience(options.patience), [OURS, *options.peers]
    learners = [name for name in names if (peer := CANDIDATES[name]) is None or peer.learning is not None]
    measured = Measured({}, {}, {})
    for name, peer in ((name, CANDIDATES[name]) for name in names):
        if peer is not None:
            try:
                python_of(peer, options.folder)
            except PeerError as error:
                measured.errors[name] = f"not installed: {error}"

    def run(results: dict[Any, list], key: Any, name: str, function: Any, *arguments: Any) -> None:
        if name in measured.errors:
            return
        wait()
        try:
            result = function(name, *arguments, options)
        except PeerError as error:
            measured.errors[name] = str(error)
            return
        print(f"{key}: {result}", flush=True)
        results.setdefault(key, []).append(result)

    for seed, num_envs, name in itertools.product(range(options.rounds), options.num_envs, names):
        run(measured.rates, (num_envs, name), name, rate_of, num_envs, seed)
    for seed, name in itertools.product(range(options.learning_rounds), learners):
        run(measured.learning, name, name, learning_of, seed)
    return measured


def table_of_rates(num_envs: int, measured: Measured, names: Sequence[str]) -> Table:
    rows, ours = [], measured.rates[num_envs, OURS]
    for name in names:
        runs = measured.rates.get((num_envs, name))
        if runs:
            rate, cpu = (statistics.median(column) for column in zip(*runs, strict=True))
            ratios = [statistics.median(a[i] / b[i] for a, b in zip(ours, runs, strict=False)) for i in range(2)]
            texts = [f"{rate:,.0f}", f"{cpu:.1f} s"]
            rows.append([name, *(t if name == OURS else f"{t} ({r:.2f})" for t, r in zip(texts, ratios, strict=True))])
    title = f"{ENV_ID}, {num_envs} environments x {Task.num_steps} steps"
    return Table(title, ["(ratio of ours to it)", "frames/s", "CPU time of 100,000 frames"], rows)


def table_of_learning(measured: Measured) -> Table:
    rows = []
    for name, runs in measured.learning.items():
        seconds, cpu_seconds, frames, score = (statistics.median(column) for column in zip(*runs, strict=True))
        solved = sum(run.score >= peer_learning.TARGET for run in runs)
        figures = f"{seconds:.1f} s", f"{cpu_seconds:.1f} s", f"{frames:,.0f}", f"{score:.0f}"
        rows.append([name, *figures, f"{solved} of {len(runs)}"])
    title = f"{peer_learning.ENV_ID}, from the start of the process to a score of {peer_learning.TARGET:g}"
    return Table(title, ["", "time", "CPU time", "frames", "score", "reached it"], rows)


def main(options: Options) -> None:
    unknown = [name for name in options.peers if name not in CANDIDATES]
    if unknown:
        raise SystemExit(f"unknown peers {', '.join(unknown)}: expected some of {', '.join(Options.peers)}")
    measured = measure(options)
    names = [OURS, *options.peers]
    tables = [table_of_rates(num_envs, measured, names) for num_envs in options.num_envs if options.rounds]
    tables += [table_of_learning(measured)] if measured.learning else []
    bars = []
    for num_envs in options.num_envs:
        ours, theirs = (measured.rates.get((num_envs, name), []) for name in (OURS, "jax"))
        ratios = [a.frames_per_second / b.frames_per_second for a, b in zip(ours, theirs, strict=False)]
        if ratios:
            what = f"frames/s, ours to the PPO in JAX, {num_envs} environments"
            bars.append(Bar(what, statistics.median(ratios), 1, at_least=True))
    tables += [Table.of_bars(bars)] if bars else []
    if measured.errors:
        tables.append(Table("Failed", ["peer", "error"], [[name, error] for name, error in measured.errors.items()]))
    for table in tables:
        table.print()
    if options.record:
        record("peers.py", intro_of(options), tables)


def intro_of(options: Options) -> str:
    versions = [f"{name}: {', '.join(peer.packages)}" for name, peer in PEERS_ELSEWHERE.items()]
    return (
        f"Medians of {options.rounds} runs of {options.frames:,} frames or 3 iterations, whichever is more, after "
        f"{options.warmup} iterations; all with 4 epochs x 4 minibatches of sequences of 64 steps (of "
        "128 in sb3-contrib) and an LSTM of 128 units. In brackets: the "
        "median of the ratios of runs of the same round. CPU time is the sum over all threads. The score is the mean "
        f"return of {peer_learning.EPISODES} deterministic episodes, after every {peer_learning.EVALUATE_EVERY:,} "
        "frames; evaluations are part of the time. Each peer has hyperparameters tuned for this environment. "
        f"Environments of their own: {'; '.join(versions)}. PufferLib 3.0.0 could not be installed: its build "
        "downloads a graphics library, and its setup.py fails with the option that leaves this library out."
    )


if __name__ == "__main__":
    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
