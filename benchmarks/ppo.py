"""Speed of training, compared with sb3-contrib's RecurrentPPO: frames per second with the same environment and sizes.

    python benchmarks/ppo.py [--env-id CartPole-v1] [--num-envs 8] [--iterations 20] [--rounds 5] [--record]
    python benchmarks/ppo.py --env-id ALE/Pong-v5 --iterations 8 --rounds 3 --record

Every run is a process of its own, and the runs alternate. Both train the same network (an LSTM on the observation that
actor and critic share, and two tanh layers of 64 in front of each head; ours sees the observation there as well) with
the same hyperparameters. In Atari games the LSTM is on the network of Mnih et al. (2015) with 512 features, and the
heads are on the LSTM; ours steps ALE's own vector environment, RecurrentPPO what its library makes of ALE's single
ones, both with four frames stacked. Frames are the steps that the environments made: ours has steps that only reset an
environment, and does not count them. The peer runs with PyTorch's own number of threads and, since that is faster for
some small networks, with one.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from typing import NamedTuple

import numpy as np
from measure import Bar, Matmul, Patience, Table, Worker, record
from ppo_candidates import BATCHES, CANDIDATES, HEAD_LAYERS, OURS, Acting, Options, StableBaselines

MANY_ENVS = 64


def acting_table(options: Options, wait: Patience) -> tuple[Table, list[Bar]]:
    workers = {ours: Worker(Acting, ours, options) for ours in (True, False)}
    rows, bars = [], []
    for batch in BATCHES:
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(options.rounds + 1):
            wait()
            for ours, worker in workers.items():
                times[ours].append(worker.call("predict", batch))
        ratio = statistics.median(a / b for a, b in list(zip(times[True], times[False], strict=True))[1:])
        microseconds = [f"{1e6 * statistics.median(times[ours][1:]):.0f} us" for ours in (True, False)]
        rows.append([f"{batch}", *microseconds, f"{ratio:.2f}"])
        if batch == 8:
            bars.append(Bar("predict, batch 8, ours to RecurrentPPO", ratio, 0.5))
    for worker in workers.values():
        worker.close()
    return Table("One call of predict", ["batch", "ours", "sb3-contrib RecurrentPPO", "ratio"], rows), bars


class Rates(NamedTuple):
    """The results of one run: frames per second, and seconds per iteration."""

    steady: float
    with_start: float
    rollout: float
    update: float


def rates(name: str, options: Options, seed: int) -> Rates:
    candidate, *arguments = CANDIDATES[name]
    started = time.perf_counter()
    worker = Worker(candidate, options, *arguments)
    run = worker.call("run", seed)
    total = time.perf_counter() - started
    worker.close()
    frames, seconds, rollout, _ = (column[-1] - column[options.warmup] for column in run)
    count = options.iterations - options.warmup
    return Rates(frames / seconds, run.frames[-1] / total, rollout / count, (seconds - rollout) / count)


def multiplications_of_frame(options: Options) -> int:
    """Multiplications of matrix products for a frame: acting, and in each epoch a forward and a backward pass.

    A backward pass has twice as many as a forward pass.
    """
    import gymnasium as gym

    env = gym.make(options.env_id)
    features = int(np.prod(env.observation_space.shape)) + 1  # and a constant
    heads = list(itertools.pairwise([options.units + features, *HEAD_LAYERS]))
    actor_and_critic = 2 * sum(a * b for a, b in heads) + HEAD_LAYERS[-1] * (int(env.action_space.n) + 1)
    forward = 4 * options.units * (features + options.units) + actor_and_critic
    return forward * (1 + 3 * options.update_epochs)


def limits(options: Options, few: list[Rates], many: list[Rates]) -> Table:
    """The frames per second that the arithmetic alone would allow, and the part of them that is reached."""
    alone, together = (Worker(Matmul, threads) for threads in (1, 2))
    rates = {1: alone.call("rate"), 2: together.call("rate")}
    for worker in (alone, together):
        worker.close()
    limit = rates[2] / multiplications_of_frame(options)
    rows = [
        [f"{count}", f"{limit:,.0f}", f"{statistics.median(run.steady for run in runs) / limit:.0%}"]
        for count, runs in ((options.num_envs, few), (MANY_ENVS, many))
    ]
    title = (
        f"Part of the arithmetic limit. A product of matrices makes {2e-9 * rates[1]:.0f} GFLOP/s on one thread, "
        f"{2e-9 * rates[2]:.0f} on two"
    )
    return Table(title, ["environments", "limit, frames/s", "reached"], rows)


def main(options: Options) -> None:
    wait = Patience(options.patience)
    # ALE's vector environment behaves differently from its single environments.
    names = [name for name, (_, *how) in CANDIDATES.items() if not (options.atari and "sync" in how)]
    measured: dict[str, list[Rates]] = {name: [] for name in names}
    wide: list[Rates] = []
    for seed, name in itertools.product(range(options.rounds), names):
        wait()
        measured[name].append(rates(name, options, seed))
        if name == OURS and not options.atari:
            wide.append(rates(name, dataclasses.replace(options, num_envs=MANY_ENVS), seed))

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in measured[name])

    def ratio(name: str, field: str) -> float:
        pairs = zip(measured[OURS], measured[name], strict=True)
        return statistics.median(getattr(ours, field) / getattr(peer, field) for ours, peer in pairs)

    def cell(name: str, field: str) -> str:
        value = median(name, field)
        text = f"{value:,.0f}" if field in ("steady", "with_start") else f"{1000 * value:.0f} ms"
        return text if name == OURS else f"{text} ({ratio(name, field):.2f})"

    peer = max((name for name in names if CANDIDATES[name][0] is StableBaselines), key=lambda n: median(n, "steady"))
    bars = [Bar(f"frames/s, ours to {peer}", ratio(peer, "steady"), 3 if options.atari else 12, at_least=True)]
    title = (
        f"{options.env_id}, {options.num_envs} environments x {options.num_steps} steps, "
        f"{options.update_epochs} epochs x {options.num_minibatches} minibatches, LSTM {options.units}"
    )
    columns = ["(ratio of ours to it)", "frames/s", "frames/s with start-up", "rollout", "update"]
    tables = [Table(title, columns, [[name, *(cell(name, field) for field in Rates._fields)] for name in names])]
    if not options.atari:
        many_table, many_bar = many_environments(options, wide, measured[OURS])
        acting, acting_bars = acting_table(options, wait)
        tables += [many_table, limits(options, measured[OURS], wide), acting]
        bars += [many_bar, *acting_bars]
    tables.append(Table.of_bars(bars))
    for table in tables:
        table.print()
    intro = (
        f"Medians of {options.rounds} runs of {options.iterations} iterations each. In brackets: the median of the "
        f"ratios of runs that followed each other. frames/s is measured after the first {options.warmup} iterations; "
        "with start-up, it is measured from the start of the process, imports included. Rollout and update are the "
        "times of one iteration."
    )
    if options.record:
        record(f"ppo.py {options.env_id}" if options.atari else "ppo.py", intro, tables)


def many_environments(options: Options, wide: list[Rates], few: list[Rates]) -> tuple[Table, Bar]:
    ratio = statistics.median(a.steady / b.steady for a, b in zip(wide, few, strict=True))
    row = [f"{statistics.median(getattr(run, field) for run in wide):,.3g}" for field in Rates._fields]
    table = Table(
        f"rl-lnlstm with {MANY_ENVS} environments",
        ["", "frames/s", "frames/s with start-up", "rollout, s", "update, s"],
        [[OURS, *row]],
    )
    return table, Bar(f"frames/s, {MANY_ENVS} environments to {options.num_envs}", ratio, 2.5, at_least=True)


if __name__ == "__main__":
    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
