"""What a sweep makes of its trials: order, tables, importances, the picture, and records on disk."""

import csv
import math

import numpy as np
import pytest
from matplotlib.image import imread

from rl_lnlstm.errors import UserError
from rl_lnlstm.tuning.picture import sweep_picture
from rl_lnlstm.tuning.records import (
    Report,
    Scores,
    Trial,
    by_score,
    folder_of,
    read_scores,
    read_trials,
    write_scores,
    write_trial,
)
from rl_lnlstm.tuning.results import finalists_table, importance_table, table, write_csv
from rl_lnlstm.tuning.space import search_space
from rl_lnlstm.tuning.study import importances
from tests.tuning.made_up import BASE, trial

TRIALS = [
    trial(4, 400.0, learning_rate=0.003),
    trial(2, 300.0, gamma=0.9),
    trial(1, 350.0, "pruned", 500),
    trial(5, 20.0, "pruned", 250, shared_lstm=True),
    trial(3, None, "failed", reason="the environment\nfell over"),
]
SPACE = search_space(BASE, ())


def test_trials_that_ended_early_come_after_those_that_did_not():
    assert [found.number for found in by_score(reversed(TRIALS))] == [4, 2, 1, 5, 3]


def test_the_table_shows_what_differs_and_why_trials_failed():
    *lines, reason = table(TRIALS).splitlines()
    assert reason.startswith("trial 3 failed: the environment fell over")
    rows = [line.split() for line in lines if line.split()[0].isdecimal()]
    assert [row[:4] for row in rows] == [
        ["4", "400.0", "1,000", "completed"],
        ["2", "300.0", "1,000", "completed"],
        ["1", "350.0", "500", "pruned"],
        ["5", "20.0", "250", "pruned"],
        ["3", "-", "0", "failed"],
    ]
    assert [row[4:] for row in rows][:2] == [["0.003", "0.99", "no"], ["0.002", "0.9", "no"]]
    assert "units" not in table(TRIALS), "it is the same in all trials"
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_finalists():
    finalists = [trial(4, 390.0, evaluation=[500.0, 400.0]), trial(2, None, "failed", reason="no luck")]
    first, second = finalists_table(finalists).splitlines()
    assert first.startswith("trial 4: 450.0 +/- 50.0 over 2 episodes")
    assert second == "trial 2: failed, no luck"


def test_the_csv_holds_every_trial(tmp_path):
    write_csv(tmp_path / "trials.csv", TRIALS, [trial(4, 390.0, evaluation=[500.0, 400.0])])
    with (tmp_path / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["4", "2", "1", "5", "3"]
    assert rows[0]["evaluation"] == "450.0"
    assert rows[4]["return"] == ""
    assert rows[1]["gamma"] == "0.9"


@pytest.mark.parametrize("name", ["learning_rate", "gamma", "shared_lstm"])
def test_the_option_that_decides_is_the_most_important(name):
    generator = np.random.default_rng(0)
    trials = []
    for number in range(1, 61):
        options = {
            "learning_rate": float(np.exp(generator.uniform(np.log(1e-4), np.log(3e-3)))),
            "gamma": float(generator.choice([0.9, 0.95, 0.98, 0.99, 0.995, 0.999])),
            "shared_lstm": bool(generator.integers(2)),
        }
        score = math.log(options[name]) if name == "learning_rate" else float(options[name])
        trials.append(
            trial(number, 100 * score + generator.normal(), "pruned" if number % 3 else "completed", **options)
        )
    found = importances(trials, search_space(BASE, {"units", "num_steps"}))
    assert next(iter(found)) == name
    assert sum(found.values()) == pytest.approx(1)
    assert name in importance_table(found).splitlines()[0]


def test_few_trials_or_equal_ones_have_no_importances():
    assert importances(TRIALS[:3], SPACE) == {}
    assert importances([trial(number, 500.0) for number in range(20)], SPACE) == {}


@pytest.mark.parametrize("known", [True, False])
def test_the_picture_shows_every_trial(known, tmp_path):
    values = importances(TRIALS, SPACE) if known else {}
    assert bool(values) == known
    figure = sweep_picture(TRIALS, [trial(4, 390.0, evaluation=[500.0])], values, SPACE, "Mine-v0: 5 trials")
    figure.savefig(tmp_path / "tune.png", dpi=30)
    assert imread(tmp_path / "tune.png").std() > 0
    axes = (figure.subfigs[0] if known else figure).axes[0]
    assert len(axes.lines) == 5, "four trials and a finalist"
    assert sorted(text.get_text() for text in axes.texts) == ["1", "2", "4", "5"]


def test_records_survive(tmp_path):
    for entry in TRIALS:
        write_trial(tmp_path, entry)
        write_scores(folder_of(tmp_path, entry.number), entry.scores)
    assert read_trials(tmp_path) == sorted(TRIALS, key=lambda entry: entry.number)
    assert read_trials(tmp_path / "nothing") == []
    scores = Scores([Report(1, 2.0)], [3.0, 4.0])
    write_scores(tmp_path / "more", scores)
    assert read_scores(tmp_path / "more") == scores


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"number": 9, "state": "done", "reason": "", "options": {}}'])
def test_damaged_records_are_named(content, tmp_path):
    write_trial(tmp_path, Trial(9, {"units": 8}))
    (tmp_path / "0009" / "trial.json").write_text(content)
    with pytest.raises(UserError, match=r"0009/trial.json is damaged"):
        read_trials(tmp_path)
