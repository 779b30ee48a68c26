"""`benchmarks/peers.py` runs peers in environments of their own, and leaves out those that fail."""

import dataclasses
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
REPORTS_ITS_TASK = """
import json, sys
task = json.loads(sys.argv[1])
frames = task["num_envs"] * task["num_steps"] * (task["iterations"] - task["warmup"])
print(json.dumps({"frames": frames, "seconds": 1.5, "cpu_seconds": 2.4}))
"""


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # the scripts import each other as modules beside them
    import peers

    return peers


@pytest.fixture
def options(peers, tmp_path, monkeypatch):
    """Two peers without packages, one of which fails."""
    folder, names = tmp_path / "environments", ("working", "failing")
    for name, script in zip(names, (REPORTS_ITS_TASK, "raise ValueError('no such environment')"), strict=True):
        (tmp_path / f"{name}.py").write_text(script)
        monkeypatch.setitem(peers.CANDIDATES, name, peers.Peer(str(tmp_path / f"{name}.py"), ()))
    return peers.Options(names, num_envs=(2,), frames=5 * 2 * 128, rounds=1, learning_rounds=0, folder=folder)


def test_a_run_measures_what_its_process_reports(peers, options):
    rate = peers.rate_of("working", 2, 0, options)
    frames = 5 * 2 * 128
    assert rate == peers.Rate(frames / 1.5, 100_000 * 2.4 / frames)


def test_failures_are_named_and_not_repeated(peers, options, monkeypatch):
    monkeypatch.setattr(peers, "OURS", "working")
    measured = peers.measure(dataclasses.replace(options, peers=("failing",), rounds=2))
    assert [len(runs) for runs in measured.rates.values()] == [2]
    assert measured.errors == {"failing": "ValueError: no such environment"}
    rows = peers.table_of_rates(2, measured, ["working", "failing"]).rows
    assert [row[0] for row in rows] == ["working"], "what failed is not in the table"


def test_the_clock_leaves_out_the_warm_up(peers):
    import peer_run

    clock = peer_run.Clock(peer_run.Task(num_envs=2, num_steps=3, iterations=4, warmup=1))
    assert [clock.iterated() for _ in range(4)] == [True, True, True, False]
    assert clock.result()["frames"] == 3 * 2 * 3


def test_ratios_are_those_of_runs_of_the_same_round(peers):
    ours, theirs = (
        [peers.Rate(*pair) for pair in pairs] for pairs in ([(4, 1), (9, 2), (5, 3)], [(2, 2), (3, 2), (5, 2)])
    )
    measured = peers.Measured({(8, peers.OURS): ours, (8, "jax"): theirs}, {}, {})
    rows = peers.table_of_rates(8, measured, [peers.OURS, "jax"]).rows
    assert rows == [[peers.OURS, "5", "2.0 s"], ["jax", "3 (2.00)", "2.0 s (1.00)"]]


def test_learning_is_summed_up_over_seeds(peers):
    runs = [peers.Learning(10.0, 12.0, 20_480, 480.0), peers.Learning(30.0, 40.0, 200_000, 90.0)]
    (row,) = peers.table_of_learning(peers.Measured({}, {"jax": runs}, {})).rows
    assert row == ["jax", "20.0 s", "26.0 s", "110,240", "285", "1 of 2"]
