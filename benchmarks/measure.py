"""Shared code of the benchmarks: processes that are measured in turn, tables, and the record in RESULTS.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console
import rich.table

CORES = len(os.sched_getaffinity(0))
RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = "# Results\n\nThe scripts in this folder write this file if you run them with `--record`.\n"
PACKAGES = ("tensorflow", "keras", "numpy", "gymnasium", "torch", "stable-baselines3", "sb3-contrib", "rl-lnlstm")


class Worker:
    """An object in a process of its own: thread pools, allocators and garbage of one candidate disturb no other.

    Calls wait for their result, so only one worker computes at a time.
    """

    def __init__(self, factory: Callable, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, factory, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        result = self._pipe.recv()
        if isinstance(result, BaseException):
            raise result
        return result

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, factory: Callable, arguments: tuple) -> None:
    served = None
    while True:
        try:
            method, values = pipe.recv()
        except EOFError:
            return
        try:
            served = factory(*arguments) if served is None else served
            pipe.send(getattr(served, method)(*values))
        except Exception as error:
            pipe.send(RuntimeError(f"{method}: {type(error).__name__}: {error}"))


def seconds_of(operation: Callable[[], Any], at_least: float = 0.0) -> float:
    """The median time of a call, of as many calls as fill `at_least` seconds."""
    times: list[float] = []
    while not times or sum(times) < at_least:
        started = time.perf_counter()
        operation()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def matmul_rate(n: int = 1024) -> float:
    """Multiplications with addition, per second, of a product of matrices that suits the machine, on all threads."""
    import tensorflow as tf

    matrix = tf.random.normal([n, n])
    product = tf.function(lambda: tf.matmul(matrix, matrix))
    product()
    return n**3 / seconds_of(product, 0.3)


class Matmul:
    """The rate of matrix products, in a process of its own."""

    def __init__(self, threads: int) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)

    def rate(self) -> float:
        return matmul_rate()


class Patience:
    """Called before each measurement, waits while others use the machine, until `seconds` in all are spent."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    def __call__(self) -> None:
        busy = 1.0
        while self._left > 0 and busy > 0.1:
            started, before = time.perf_counter(), busy_seconds()
            time.sleep(0.5)
            elapsed = time.perf_counter() - started
            busy = (busy_seconds() - before) / elapsed
            self._left -= elapsed if busy > 0.1 else 0.0


def busy_seconds() -> float:
    """The seconds that all cores worked since the start of the machine, including time stolen by other machines."""
    user, nice, system, _, _, *interrupts_and_stolen = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    return sum(map(int, (user, nice, system, *interrupts_and_stolen))) / os.sysconf("SC_CLK_TCK")


def reset_peak_memory() -> float:
    """Resets the peak to the current memory of the process, and returns it in bytes. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_memory() -> float:
    """The peak memory of the process since `reset_peak_memory`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> float:
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return 1024.0 * int(match[1])


class Bar(NamedTuple):
    """A ratio and its upper limit or, with `at_least`, its lower limit."""

    what: str
    ratio: float
    limit: float
    at_least: bool = False

    def row(self) -> list[str]:
        met = self.ratio >= self.limit if self.at_least else self.ratio <= self.limit
        sign = "at least" if self.at_least else "at most"
        return [self.what, f"{self.ratio:.2f}", f"{sign} {self.limit:g}", "yes" if met else "**no**"]


class Table(NamedTuple):
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    @classmethod
    def of_bars(cls, bars: Iterable[Bar]) -> Table:
        return cls("Compared with the targets", ["what", "ratio", "target", "met"], [bar.row() for bar in bars])

    def print(self) -> None:
        table = rich.table.Table(title=self.title, title_justify="left")
        for i, column in enumerate(self.columns):
            table.add_column(column, justify="right" if i else "left")
        for row in self.rows:
            table.add_row(*(cell.replace("**no**", "[bold red]no") for cell in row))
        console = rich.console.Console()
        # A file has room for long lines.
        rich.console.Console(width=None if console.is_terminal else 140).print(table)

    def markdown(self) -> str:
        align = ["---"] + ["---:"] * (len(self.columns) - 1)
        lines = [" | ".join(row) for row in (self.columns, align, *self.rows)]
        return "\n".join([f"### {self.title}", "", *(f"| {line} |" for line in lines)])


def record(name: str, intro: str, tables: Sequence[Table]) -> None:
    """Writes the tables and the machine to the section `name` of RESULTS.md."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    body = "\n\n".join([begin, f"## {name}", machine(), intro, *(table.markdown() for table in tables), end])
    text = RESULTS.read_text() if RESULTS.exists() else TITLE
    before, found, rest = text.partition(begin)
    RESULTS.write_text(before + body + rest.partition(end)[2] if found else f"{text}\n{body}\n")


_STARTED, _BUSY_AT_START = time.perf_counter(), busy_seconds()


def machine() -> str:
    """The machine, the versions and the date, in one paragraph."""
    cpu, flags = platform.processor(), ""
    if Path("/proc/cpuinfo").exists():
        info = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
        cpu, flags = info.get("model name", cpu), info.get("flags", "")
    vectors = next((name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags), "no AVX2")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    elapsed, own = time.perf_counter() - _STARTED, sum(os.times()[:4])
    others = (busy_seconds() - _BUSY_AT_START - own) / (elapsed * CORES)
    load = f"other processes used {max(others, 0):.0%} of them"
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"{date}. {cpu} ({platform.machine()}, {vectors}), {CORES} cores ({load}), {memory:.0f} GiB "
        f"RAM, {platform.system()}. {', '.join(versions)}."
    )
