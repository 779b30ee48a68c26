"""Compares the masked LN-LSTM with its alternatives, as ratios to `keras.layers.LSTM`.

    python benchmarks/layer.py [--sizes 64,1000,256,126 ...] [--rounds 7] [--no-naive] [--record]

Each candidate lives in a process of its own, and they are measured in turn, round after round, so that whatever else
slows the machine slows all of them alike. A ratio is the median of the rounds' ratios, a time the median of the times.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import itertools
import math
import os
import statistics
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from measure import (
    Bar,
    Patience,
    Table,
    Worker,
    matmul_rate,
    peak_memory,
    record,
    reset_peak_memory,
    seconds_of,
)

RESETS = 0.02  # fraction of all steps that reset the state


class Size(NamedTuple):
    batch: int
    time: int
    features: int
    units: int

    def __str__(self) -> str:
        return f"[{self.batch}, {self.time}, {self.features}] -> {self.units}"

    @classmethod
    def parse(cls, text: str) -> Size:
        return cls(*map(int, text.split(",")))

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and masks, batch-major."""
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((self.batch, self.time, self.features), np.float32)
        return inputs, (rng.random((self.batch, self.time)) > RESETS).astype(np.float32)


class TensorFlowCandidate:
    """Forward pass and training step (the loss and its gradients of all weights) as `tf.function`s of a layer.

    Args:
        make_layer: from units to a layer.
        masked: the layer takes masks.
        jit_compile: as for `tf.function`.
        size: of what is measured.
        threads: of an operation; 0 is one for each core.
    """

    def __init__(
        self, make_layer: Callable[[int], Any], masked: bool, jit_compile: bool, size: Size, threads: int = 0
    ) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        self._make_layer, self._masked, self._size = make_layer, masked, size
        self._function = functools.partial(tf.function, autograph=False, jit_compile=jit_compile)
        self._signature = [tf.TensorSpec(size[:3]), tf.TensorSpec(size[:2])]
        self._data = tuple(map(tf.constant, size.data()))
        # The costs that each process has once: thread pools, lazy imports, the first trace.
        small = Size(2, 2, size.features, size.units)
        for function in self._functions(small):
            function(*map(tf.constant, small.data()))
        self._forward, self._training = self._functions(size)

    def _functions(self, size: Size) -> tuple[Callable, Callable]:
        """Forward pass and training step of a new layer, not traced yet."""
        import tensorflow as tf

        layer = self._make_layer(size.units)
        layer.build(size[:3])

        def forward(inputs: Any, masks: Any) -> Any:
            return layer(inputs, masks=masks) if self._masked else layer(inputs)

        def training(inputs: Any, masks: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(forward(inputs, masks)))
            return loss, tape.gradient(loss, layer.trainable_variables)

        return self._function(forward), self._function(training)

    def _trace(self, index: int, time: int | None = None) -> float:
        import tensorflow as tf

        batch, known, features, units = self._size
        size = Size(batch, known if time is None else time, features, units)
        function = self._functions(size)[index]
        gc.collect()
        specs = [tf.TensorSpec(size[:3]), tf.TensorSpec(size[:2])]
        return seconds_of(lambda: function.get_concrete_function(*specs))

    def graph_forward(self, time: int | None = None) -> float:
        return self._trace(0, time)

    def graph_training(self, time: int | None = None) -> float:
        return self._trace(1, time)

    def first_call(self) -> float:
        """The time of a new layer's first forward pass: trace, compile and run."""
        function = self._functions(self._size)[0]
        gc.collect()
        return seconds_of(lambda: function(*self._data))

    def forward(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._forward(*self._data), at_least)

    def training(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._training(*self._data), at_least)

    def memory(self) -> float:
        """The peak memory that three training steps add to the process, including tracing and compiling."""
        return added_memory(self.training)

    def matmul_rate(self) -> float:
        return matmul_rate()


class TorchCandidate:
    """The same for `torch.nn.LSTM`, which builds no graph."""

    def __init__(self, size: Size) -> None:
        import torch

        self._torch, self._size = torch, size
        self._inputs = torch.from_numpy(size.data()[0])
        self._layer = torch.nn.LSTM(size.features, size.units, batch_first=True)
        self._training_step(self._inputs[:2, :2])

    def _training_step(self, inputs: Any) -> None:
        self._layer.zero_grad()
        self._layer(inputs)[0].square().mean().backward()

    def _forward(self, layer: Any) -> None:
        with self._torch.no_grad():
            layer(self._inputs)

    def first_call(self) -> float:
        layer = self._torch.nn.LSTM(self._size.features, self._size.units, batch_first=True)
        return seconds_of(lambda: self._forward(layer))

    def forward(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._forward(self._layer), at_least)

    def training(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._training_step(self._inputs), at_least)

    def memory(self) -> float:
        return added_memory(self.training)


def added_memory(operation: Callable[[], Any]) -> float:
    gc.collect()
    before = reset_peak_memory()
    for _ in range(3):
        operation()
    return peak_memory() - before


class NaiveLNLSTM:
    """The same equations as written by hand in many RL projects, after OpenAI baselines: unrolled in Python."""

    def __init__(self, units: int) -> None:
        self.units = units

    def build(self, shape: tuple[int, ...]) -> None:
        import tensorflow as tf

        def variable(*shape: int, scale: float = 0.0, start: float = 0.0) -> Any:
            return tf.Variable(start + scale * tf.random.normal(shape))

        features, units = shape[-1], self.units
        self.trainable_variables = (
            variable(features, 4 * units, scale=features**-0.5),
            variable(units, 4 * units, scale=units**-0.5),
            variable(4 * units, start=1),
            variable(4 * units, start=1),
            variable(4 * units),
            variable(units, start=1),
            variable(units),
        )

    def __call__(self, inputs: Any, masks: Any) -> Any:
        import tensorflow as tf

        def normalise(v: Any) -> Any:
            mean, variance = tf.nn.moments(v, -1, keepdims=True)
            return (v - mean) / tf.sqrt(variance + 1e-5)

        kernel, recurrent_kernel, kernel_gamma, recurrent_gamma, bias, cell_gamma, cell_beta = self.trainable_variables
        h = c = tf.zeros([inputs.shape[0], self.units])
        outputs = []
        for x, m in zip(tf.unstack(inputs, axis=1), tf.unstack(masks[..., tf.newaxis], axis=1), strict=True):
            h, c = h * m, c * m
            z = normalise(x @ kernel) * kernel_gamma + normalise(h @ recurrent_kernel) * recurrent_gamma + bias
            i, f, o, u = tf.split(z, 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(u)
            h = tf.sigmoid(o) * tf.tanh(normalise(c) * cell_gamma + cell_beta)
            outputs.append(h)
        return tf.stack(outputs, axis=1)


def stock_layer(units: int) -> Any:
    import keras

    return keras.layers.LSTM(units, return_sequences=True)


def our_layer(units: int) -> Any:
    from rl_lnlstm import MaskedLNLSTM

    return MaskedLNLSTM(units, return_sequences=True, backend="while_loop")


def our_kernel(units: int) -> Any:
    from rl_lnlstm import MaskedLNLSTM

    return MaskedLNLSTM(units, return_sequences=True, backend="kernel")


KERNEL = "MaskedLNLSTM, kernel"
KERNEL_JIT = "MaskedLNLSTM, kernel, jit_compile"
OURS, OURS_JIT = "MaskedLNLSTM, while_loop", "MaskedLNLSTM, while_loop, jit_compile"
STOCK, STOCK_JIT = "keras.layers.LSTM", "keras.layers.LSTM, jit_compile"
NAIVE, TORCH = "naive LN-LSTM, unrolled", "torch.nn.LSTM"
CANDIDATES: dict[str, tuple[Any, ...]] = {  # name -> its class, and arguments before the size
    STOCK: (TensorFlowCandidate, stock_layer, False, False),
    KERNEL: (TensorFlowCandidate, our_kernel, True, False),
    OURS: (TensorFlowCandidate, our_layer, True, False),
    KERNEL_JIT: (TensorFlowCandidate, our_kernel, True, True),
    OURS_JIT: (TensorFlowCandidate, our_layer, True, True),
    STOCK_JIT: (TensorFlowCandidate, stock_layer, False, True),
    TORCH: (TorchCandidate,),
    NAIVE: (TensorFlowCandidate, NaiveLNLSTM, True, False),
}
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
