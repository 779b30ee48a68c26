"""Compares the masked LN-LSTM with its alternatives, as ratios to `keras.layers.LSTM`.

    python benchmarks/layer.py [--sizes 64,1000,256,126 ...] [--rounds 7] [--no-naive] [--record]

Each candidate lives in a process of its own, and they are measured in turn, round after round, so that whatever else
slows the machine slows all of them alike. A ratio is the median of the rounds' ratios, a time the median of the times.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
import statistics
from collections.abc import Iterable
from typing import Any

from layer_candidates import CANDIDATES, KERNEL, NAIVE, OURS, OURS_JIT, STOCK, TORCH, Size
from measure import Bar, Patience, Table, Worker, record

GROWING = STOCK, KERNEL, OURS
COLUMNS = {  # method: title
    "graph_forward": "graph, forward",
    "graph_training": "graph, training",
    "first_call": "first call",
    "forward": "forward",
    "training": "training step",
    "memory": "peak memory",
}


class Measurements:
    """All measurements, by candidate, method and round."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, name: str, method: str, value: float) -> None:
        self._values.setdefault((name, method), []).append(value)

    def median(self, name: str, method: str) -> float:
        return statistics.median(self._values.get((name, method), [math.nan]))

    def ratio(self, name: str, method: str, to: str, to_method: str | None = None) -> float:
        """The median over rounds of the ratios within a round."""
        values, reference = (self._values.get(key, [math.nan]) for key in ((name, method), (to, to_method or method)))
        return statistics.median(a / b for a, b in zip(values, reference))  # noqa: B905, fewer rounds of slow ones


def start(name: str, size: Size, *options: Any) -> Worker:
    factory, *arguments = CANDIDATES[name]
    return Worker(factory, *arguments, size, *options)


def compare(names: Iterable[str], size: Size, rounds: int, wait: Patience) -> Measurements:
    """Measures all columns for all candidates in turn."""
    measured = Measurements()
    workers = {name: start(name, size) for name in names}
    for name, worker in workers.items():  # first: the process is fresh
        measured.add(name, "memory", worker.call("memory"))
    graphs = [method for method in COLUMNS if method.startswith("graph") or method == "first_call"]
    for i, method in itertools.product(range(rounds), graphs):
        wait()
        for name, worker in workers.items():
            unrolled_again = name == NAIVE and i > 0 and size.time > 200
            if not unrolled_again and not (name == TORCH and method.startswith("graph")):
                measured.add(name, method, worker.call(method))
    for method in ("forward", "training"):
        for worker in workers.values():
            worker.call(method)
        for _ in range(rounds):
            wait()
            for name, worker in workers.items():
                measured.add(name, method, worker.call(method, 0.2))
    for worker in workers.values():
        worker.close()
    return measured


def as_table(measured: Measurements, names: Iterable[str], size: Size) -> Table:
    def cell(name: str, method: str) -> str:
        value = measured.median(name, method)
        if math.isnan(value):
            return "-"
        unit = f"{value / 2**20:.0f} MiB" if method == "memory" else f"{1000 * value:.3g} ms"
        if value >= 1 and method != "memory":
            unit = f"{value:.3g} s"
        return f"{unit} ({measured.ratio(name, method, STOCK):.2f})"

    rows = [[name, *(cell(name, method) for method in COLUMNS)] for name in names]
    return Table(f"{size}", ["candidate (ratio to stock)", *COLUMNS.values()], rows)


def bars_of(measured: Measurements, size: Size) -> list[Bar]:
    limits = [
        (OURS, "graph_forward", 1.5),
        (OURS, "graph_training", 1.5),
        (OURS, "forward", 2.2),
        (OURS, "training", 2.0),
        (OURS_JIT, "forward", 1.7),
        (OURS_JIT, "training", 1.7),
    ]
    large = size.time > 200
    limits += [
        (KERNEL, "graph_forward", 1.0),
        (KERNEL, "graph_training", 1.0),
        (KERNEL, "forward", 0.6 if large else 0.45),
        (KERNEL, "training", 0.5 if large else 0.45),
        (KERNEL, "memory", 0.8 if large else 1.0),
    ]
    bars = [
        Bar(f"{size}: {name}, {COLUMNS[method]}, to stock", measured.ratio(name, method, STOCK), limit)
        for name, method, limit in limits
    ]
    to_torch = measured.ratio(KERNEL, "training", TORCH)
    if not math.isnan(to_torch):
        bars.append(Bar(f"{size}: {KERNEL}, training step, to {TORCH}", to_torch, 0.8))
    return bars


def growth(size: Size, rounds: int, wait: Patience) -> tuple[Table, list[Bar]]:
    """The cost of longer sequences: the graph and the training step."""
    measured = Measurements()
    lengths = size.time, 4 * size.time
    workers = {(name, length): start(name, size._replace(time=length)) for name in GROWING for length in lengths}
    for worker in workers.values():
        for _ in range(2):
            worker.call("training")
    for _ in range(rounds):
        wait()
        for (name, length), worker in workers.items():
            measured.add(name, f"training {length}", worker.call("training", 0.2))
    for _, (name, time) in itertools.product(range(rounds), itertools.product(GROWING, (100, 10_000))):
        for what in ("graph_forward", "graph_training"):
            wait()
            measured.add(name, f"{what} {time}", workers[name, lengths[0]].call(what, time))
    for worker in workers.values():
        worker.close()

    rows, bars = [], []
    pairs = [
        ("training step", f"training {lengths[0]}", f"training {lengths[1]}", lengths, 4.6),
        ("graph, forward", "graph_forward 100", "graph_forward 10000", (100, 10_000), 1.1),
        ("graph, training", "graph_training 100", "graph_training 10000", (100, 10_000), 1.1),
    ]
    for name, (what, short, long, times, limit) in itertools.product(GROWING, pairs):
        ratio = measured.ratio(name, long, name, short)
        exponent = math.log(ratio) / math.log(times[1] / times[0])
        seconds = [f"{1000 * measured.median(name, method):.3g} ms" for method in (short, long)]
        rows.append([f"{name}, {what}", f"{times[0]} to {times[1]}", *seconds, f"{ratio:.2f}", f"{exponent:.2f}"])
        if name != STOCK:
            bars.append(Bar(f"{name}, {what}, time {times[1]} to {times[0]}", ratio, limit))
    columns = ["growth with time", "times", "shorter", "longer", "ratio", "exponent"]
    return Table(f"Growth with time, batch {size.batch}, {size.features} -> {size.units}", columns, rows), bars


def growth_with_sizes(size: Size, rounds: int, wait: Patience, factor: int = 4) -> Table:
    """The cost of the kernel's training step when one size grows."""
    measured = Measurements()
    sizes = {axis: size._replace(**{axis: factor * getattr(size, axis)}) for axis in Size._fields}
    workers = {axis: start(KERNEL, grown) for axis, grown in {"": size, **sizes}.items()}
    for worker in workers.values():
        worker.call("training")
    for _ in range(rounds):
        wait()
        for axis, worker in workers.items():
            measured.add(axis, "training", worker.call("training", 0.2))
    for worker in workers.values():
        worker.close()
    rows = []
    for axis, grown in sizes.items():
        ratio = measured.ratio(axis, "training", "")
        milliseconds = [f"{1000 * measured.median(name, 'training'):.3g} ms" for name in ("", axis)]
        rows.append([axis, f"{grown}", *milliseconds, f"{ratio:.2f}", f"{math.log(ratio, factor):.2f}"])
    columns = ["what grows", "to", "before", "after", "ratio", "exponent"]
    return Table(f"{KERNEL}: growth of the training step from {size}, {factor} times each", columns, rows)


def multiplications(size: Size) -> dict[str, int]:
    """The number of multiplications of matrix products, forward and in a training step. It needs no d_inputs."""
    batch, time, features, units = size
    forward = 4 * units * (features + units)
    backward = 4 * units * (features + 2 * units)
    return {"forward": batch * time * forward, "training": batch * time * (forward + backward)}


def threads_and_rate(size: Size, rounds: int, wait: Patience) -> Table:
    """Forward pass and training step on one and two threads, as fractions of the rate of a matrix product."""
    measured, cases = Measurements(), list(itertools.product((STOCK, KERNEL), (1, 2)))
    methods = "matmul_rate", "forward", "training"
    workers = {case: start(case[0], size, case[1]) for case in cases}
    for worker, method in itertools.product(workers.values(), methods):
        worker.call(method)
    for _ in range(rounds):
        wait()
        for (name, threads), worker in workers.items():
            measured.add(name, f"matmul_rate {threads}", worker.call("matmul_rate"))
            for method in methods[1:]:
                measured.add(name, f"{method} {threads}", worker.call(method, 0.2))
    for worker in workers.values():
        worker.close()
    rows = []
    for name, threads in cases:
        rate = measured.median(name, f"matmul_rate {threads}")
        row = [f"{name}, {threads} thread{'s' * (threads > 1)}", f"{rate / 1e9:.0f}"]
        for method, count in multiplications(size).items():
            seconds = measured.median(name, f"{method} {threads}")
            row += [f"{1000 * seconds:.3g} ms", f"{count / seconds / rate:.0%}" if name == KERNEL else "-"]
        rows.append(row)
    columns = [
        "candidate",
        "matmul, 10^9 multiplications/s",
        "forward",
        "of that rate",
        "training step",
        "of that rate",
    ]
    return Table(f"Threads, and the fraction of the machine's matmul rate, {size}", columns, rows)


@dataclasses.dataclass
class Options:
    sizes: tuple[str, ...] = ("64,1000,256,126", "16,128,64,128")
    """batch,time,features,units of each comparison; growth with time starts from the first"""
    rounds: int = 7
    """number of rounds in which all candidates are measured in turn"""
    naive: bool = True
    """also measure the unrolled LN-LSTM, which takes minutes and gigabytes at 1000 steps"""
    growth: bool = True
    """also measure growth with sizes, and threads"""
    patience: float = 0
    """total seconds to wait while other processes use the machine"""
    record: bool = False
    """write the results to RESULTS.md"""


def main(options: Options) -> None:
    names = [
        name
        for name in CANDIDATES
        if (name != NAIVE or options.naive) and (name != TORCH or importlib.util.find_spec("torch"))
    ]
    sizes = [Size.parse(text) for text in options.sizes]
    wait, tables, bars = Patience(options.patience), [], []
    for size in sizes:
        measured = compare(names, size, options.rounds, wait)
        tables.append(as_table(measured, names, size))
        tables[-1].print()
        bars += bars_of(measured, size)
    if options.growth:
        table, more = growth(sizes[0], options.rounds, wait)
        tables += [
            table,
            growth_with_sizes(sizes[-1], options.rounds, wait),
            *(threads_and_rate(size, options.rounds, wait) for size in sizes),
        ]
        for table in tables[-2 - len(sizes) :]:
            table.print()
        bars += more
    tables.append(Table.of_bars(bars))
    tables[-1].print()
    intro = (
        f"Medians of {options.rounds} rounds. In brackets: the median of the ratios to `keras.layers.LSTM` in the same "
        "round. `keras.layers.LSTM` and `torch.nn.LSTM` have neither layer normalisation nor masks. All layers return "
        "whole sequences in float32. A training step computes the loss and the gradients of all weights. Peak memory "
        "is the most that three training steps, with tracing and compiling, add to a new process."
    )
    if options.record:
        record("layer.py", intro, tables)


if __name__ == "__main__":
    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
