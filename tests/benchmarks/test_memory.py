"""Runs of `benchmarks/memory.py` are kept as they end, and not repeated."""

import json
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # the scripts import each other as modules beside them
    import memory

    return memory


def options(memory, tmp_path, **changes):
    given = {"tasks": ("CartPoleNoVel",), "seeds": (3, 4), "episodes": 2, "results": tmp_path / "results.jsonl"}
    return memory.Options(**{**given, **changes})


def test_results_are_found_again_and_scored(memory, tmp_path):
    of_two = options(memory, tmp_path)
    results = memory.Results(of_two.results)
    runs = memory.runs_of(of_two, of_two.tasks, (memory.RANDOM, *of_two.variants))
    assert len(runs) == 5, "two seeds of two variants, and one run of random actions"
    for run in runs:
        returned = {memory.RANDOM: 20.0, "defaults": 260.0 + 120 * (run.seed == 4), memory.PEER: 140.0}[run.variant]
        results.add(run, {"return": returned})
    again = memory.Results(of_two.results)
    assert again.found == results.found
    assert memory.compute(runs, again, 1) is None, "nothing is missing"
    scores = memory.Scores(of_two, again)
    np.testing.assert_allclose(scores.normalised(of_two.tasks, "defaults"), [[0.5, 0.75]])
    assert scores.complete("defaults", memory.PEER) == ["CartPoleNoVel"]
    assert [row[:2] for row in memory.table_of_scores(scores).rows] == [["defaults", "1"], [memory.PEER, "1"]]
    assert memory.table_of_returns(scores).rows == [["CartPoleNoVel", "320.00 +/- 60.00", "140.00 +/- 0.00", "20.00"]]


def test_a_run_that_failed_says_why_and_is_left_out(memory, tmp_path):
    given = options(memory, tmp_path, tasks=("AutoencodeEasy",))
    results = memory.Results(given.results)
    for run in memory.runs_of(given, given.tasks, (memory.PEER,)):
        results.add(run, {"error": "no Tuple"})
    scores = memory.Scores(given, results)
    assert scores.complete(memory.PEER) == []
    assert memory.table_of_returns(scores).rows == [["AutoencodeEasy", "-", "no Tuple", "-"]]


def test_the_results_in_the_repository_can_be_read(memory):
    found = memory.Results(BENCHMARKS / "memory.jsonl").found
    assert all(memory.task_of(run.task) and ("return" in result or "error" in result) for run, result in found.items())
    assert {run.task for run in found if run.variant == memory.RANDOM} == set(memory.TASKS), "score 0 of each task"
    assert len(found) == len([json.loads(line) for line in (BENCHMARKS / "memory.jsonl").read_text().splitlines()])


def test_variants_are_options(memory):
    assert memory.options_of("gae_lambda=0.9 head_layers=(64,32) std=gsde") == {
        "gae_lambda": 0.9,
        "head_layers": (64, 32),
        "std": "gsde",
    }
    with pytest.raises(SystemExit, match=r"got 'sb4'"):
        memory.options_of("sb4")
    with pytest.raises(SystemExit, match=r"unknown task 'Chess'"):
        memory.task_of("Chess")
