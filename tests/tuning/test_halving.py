"""Ending bad trials early: who goes on, in whatever order trials report, and after an interruption."""

import numpy as np
import pytest

from rl_lnlstm.tuning.halving import FEWEST, Halving
from rl_lnlstm.tuning.records import Report, Scores, Trial


def test_the_first_trials_go_on_and_then_the_better_half():
    halving = Halving(1000)
    scores = np.random.default_rng(0).permutation(200).astype(float)
    kept = [halving.goes_on(number, 250, score) for number, score in enumerate(scores)]
    assert all(kept[:FEWEST])
    assert kept[FEWEST:] == [scores[number] >= np.median(scores[:number]) for number in range(FEWEST, len(scores))], (
        "as good as the median of those before it"
    )
    assert 0.4 < np.mean(kept) < 0.6


def test_nothing_is_decided_between_rungs():
    halving = Halving(1000)
    for number in range(20):
        assert halving.goes_on(number, 249, -float(number))
    for number in range(FEWEST):
        assert halving.goes_on(number, 251, 10.0)
        assert halving.goes_on(number, 400, 0.0), "it was compared before"
    assert not halving.goes_on(99, 499, 5.0)
    assert halving.goes_on(98, 600, 5.0), "it skipped a rung, and is the first at the next one"


@pytest.mark.parametrize("cut", [0, 1, 3, 5, 7])
def test_a_resumed_sweep_decides_as_one_that_was_never_interrupted(cut):
    """The trial that is interrupted reports again what it reported last."""
    reports = [(number, frames, float(frames * (number % 5))) for frames in (100, 300, 600) for number in range(9)]
    whole = Halving(1000)
    expected = [whole.goes_on(*report) for report in reports]
    place = cut * 3
    before = [
        Trial(number, {}, scores=Scores([Report(frames, score) for n, frames, score in reports[:place] if n == number]))
        for number in range(9)
    ]
    resumed = Halving(1000, before)
    repeated = [reports[place - 1]] if place else []
    assert all(resumed.goes_on(*report) for report in repeated)
    assert [resumed.goes_on(*report) for report in reports[place:]] == expected[place:]
