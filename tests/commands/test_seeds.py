"""Several seeds: training, plotting and comparing them take one command each."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import scipy.stats
from matplotlib.image import imread

from rl_lnlstm.commands import main
from rl_lnlstm.evaluation.statistics import difference_interval, improvement_interval, probability_of_improvement
from rl_lnlstm.runs.comparison_plot import comparison_plot
from rl_lnlstm.runs.groups import curve, read_group, score

FRAMES, RETURN = "time/total_timesteps", "rollout/ep_rew_mean"


def made_up_run(path, seed, scores, offset=0, **config):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"env_id": "Mine-v0", "seed": seed, "units": 8, **config}))
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([FRAMES, RETURN, "eval/mean_reward"])
        writer.writerows((100 * (i + 1) + offset, value, "") for i, value in enumerate(scores))
    (path / "results.json").write_text(json.dumps({"mean_reward": scores[-1]}))


@pytest.fixture
def groups(tmp_path):
    for seed in range(5):
        made_up_run(tmp_path / "small" / f"seed-{seed}", seed, [float("nan"), 1.0, 2.0, 3.0 + seed], offset=3 * seed)
        made_up_run(tmp_path / "large" / f"seed-{seed}", seed, [2.0, 4.0, 6.0, 8.0 + seed], offset=seed, units=16)
    return tmp_path / "small", tmp_path / "large"


def test_runs_share_one_grid_of_frames(groups):
    found = curve(read_group(groups[0]))
    assert found.frames[0] == 212, "where the last run has a return"
    assert found.frames[-1] == 400, "where the first run ends"
    by_hand = [np.interp(300, [200 + 3 * s, 300 + 3 * s, 400 + 3 * s], [1, 2, 3 + s]) for s in range(5)]
    at = np.argmin(np.abs(found.frames - 300))
    assert found.mean[at] == pytest.approx(np.mean(by_hand), abs=0.02)
    assert (found.low <= found.mean).all()
    assert (found.mean <= found.high).all()


def test_plot_draws_and_prints_a_table(groups, tmp_path, capsys):
    picture = tmp_path / "new" / "picture.png"
    command = ["plot", *map(str, groups), "--out", str(picture)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert imread(picture).std() > 0
    assert "small" in shown
    assert "10.00" in shown, "the mean of 8 to 12"
    assert main([*command, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["group"], row["runs"], float(row["mean"])) for row in rows] == [("small", "5", 5), ("large", "5", 10)]
    assert main([*command, "--format", "json"]) == 0
    (_, large) = json.loads(capsys.readouterr().out)
    assert large["mean_low"] < large["mean"] == 10 < large["mean_high"]


def test_compare_tells_difference_probability_and_options(groups, capsys):
    small, large = map(str, groups)
    assert main(["compare", large, small, "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["difference_of_means"] == 5
    low, high = result["difference_interval"]
    assert 2 < low < 5 < high < 8
    assert result["probability_of_improvement"] == 1
    assert result["options"] == {"units": [[16], [8]]}
    assert main(["compare", large, small]) == 0
    shown = capsys.readouterr().out
    assert "large minus small: 5.00" in shown
    assert "units: 16 | 8" in shown
    assert main(["compare", large, large, "--format", "csv"]) == 0
    assert "option" not in capsys.readouterr().out


def test_runs_of_one_name_are_told_apart(groups, capsys):
    small, large = groups
    assert main(["compare", str(small / "seed-0"), str(large / "seed-0")]) == 0
    assert f"{small / 'seed-0'} minus {large / 'seed-0'}" in capsys.readouterr().out


def test_a_single_run_has_no_interval(groups, tmp_path, capsys, monkeypatch):
    """It says nothing about other seeds."""
    monkeypatch.chdir(tmp_path)  # where plot puts its picture
    small, large = groups
    assert main(["compare", str(small / "seed-0"), str(large)]) == 0
    assert capsys.readouterr().out.count("no interval for a single run") == 4
    assert main(["compare", str(small / "seed-0"), str(large), "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["difference_interval"] is result["probability_interval"] is None
    assert result["groups"][0]["mean_low"] is result["groups"][0]["iqm_high"] is None
    assert result["groups"][1]["mean_low"] < result["groups"][1]["mean_high"]
    for command in ("plot", "compare"):
        assert main([command, str(small / "seed-0"), str(large), "--format", "csv"]) == 0
        assert "None" not in capsys.readouterr().out.partition("option")[0]


DAMAGES = ["nothing", "no metrics", "no episode", "no json", "an image", "zeros at the end", "a huge result"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_run_is_named(damage, groups, tmp_path, capsys):
    run = groups[0] / "seed-3"
    if damage == "nothing":
        shutil.rmtree(groups[0])
        groups[0].mkdir()
    elif damage == "no metrics":
        (run / "metrics.csv").unlink()
    elif damage == "no episode":
        (run / "metrics.csv").write_text(f"{FRAMES},{RETURN}\n100,nan\n")
    elif damage == "zeros at the end":
        (run / "metrics.csv").write_bytes((run / "metrics.csv").read_bytes() + bytes(50))
    elif damage == "a huge result":  # for a float
        (run / "results.json").write_text(f'{{"mean_reward": 1{400 * "0"}}}')
    elif damage == "no json":
        (run / "config.json").write_text("\x1b[2J")
    else:
        (run / "metrics.csv").write_bytes(bytes(range(256)))
    assert main(["plot", str(groups[0]), "--out", str(tmp_path / "picture.png")]) == 2
    error = capsys.readouterr().err
    assert str(groups[0] if damage == "nothing" else run) in error
    assert "Traceback" not in error
    assert not (tmp_path / "picture.png").exists()


def test_runs_that_differ_are_no_group(groups, tmp_path, capsys):
    run, out = groups[0] / "seed-3", ["--out", str(tmp_path / "picture.png")]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "units": 9}))
    assert main(["plot", str(groups[0]), *out]) == 0
    assert "although they differ in units" in capsys.readouterr().err
    (run / "config.json").write_text(json.dumps({**config, "env_id": "Other-v0"}))
    assert main(["plot", str(groups[0]), *out]) == 2
    assert "runs in different environments, Mine-v0, Other-v0" in capsys.readouterr().err


def test_a_group_may_have_any_name(groups):
    """matplotlib leaves out labels that begin with an underscore."""
    named = [read_group(path)._replace(name=name) for path, name in zip(groups, ("_one", "two"), strict=True)]
    (legend,) = comparison_plot(named).legends
    shown = " ".join(text.get_text() for text in legend.get_texts())
    assert "_one" in shown
    assert "two" in shown


def test_a_picture_that_cannot_be_written_is_named(groups, capsys):
    for out in ("/proc/nowhere/picture.png", "picture.nonsense"):
        assert main(["plot", str(groups[0]), "--out", out]) == 2
        assert out in capsys.readouterr().err
    assert main(["plot", str(groups[0]), "--out", "curves"]) == 2
    assert capsys.readouterr().err.startswith("error: --out curves needs an extension, such as .png")


@pytest.mark.slow
def test_seeds_are_trained_one_directory_each(tmp_path, capsys):
    folder = tmp_path / "runs"
    small = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "1", "--units", "4", "--no-jit-compile"]
    options = ["--total-timesteps", "64", "--eval-episodes", "1", "--env-kwargs", "sutton_barto_reward=False"]
    seeds = ["--env-id", "CartPole-v1", "--seeds", "3", "5", "--parallel", "2", "--run-dir", str(folder)]
    assert main(["train", *small, *seeds, *options]) == 0
    shown = capsys.readouterr()
    assert f"rl-lnlstm plot {folder}" in shown.err.replace("'", "")
    found = score(read_group(folder), "final evaluation")
    assert f"interquartile mean {found.iqm:.2f}" in shown.out
    assert f"{found.iqm_interval.low:.2f} to {found.iqm_interval.high:.2f}, over 2 seeds" in shown.out
    for seed in (3, 5):
        config = json.loads((folder / f"seed-{seed}" / "config.json").read_text())
        assert (config["seed"], config["units"]) == (seed, 4)
        assert (folder / f"seed-{seed}" / "results.json").is_file()
        assert "frames trained" in (folder / f"seed-{seed}.log").read_text()
    assert len(read_group(folder).runs) == 2


@pytest.mark.parametrize(
    "wrong", [["--seeds", "1", "1"], ["--seeds", "-1"], ["--seeds", "1", "2", "--seed=3"], ["--parallel", "0"]], ids=str
)
def test_wrong_seeds_are_refused(wrong, tmp_path, capsys):
    assert main(["train", "--run-dir", str(tmp_path / "runs"), *wrong]) == 2
    assert wrong[0] in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_statistics_of_two_samples_are_scipys():
    chance = np.random.default_rng(0)
    first, second = chance.normal(1, 1, 30), chance.normal(0, 1, 40)
    statistic = scipy.stats.mannwhitneyu(first, second).statistic
    assert probability_of_improvement(first, second) == pytest.approx(statistic / (30 * 40))
    low, high = improvement_interval(first, second)
    assert low < statistic / (30 * 40) < high
    theirs = scipy.stats.bootstrap(
        (first, second), lambda a, b, axis: a.mean(axis) - b.mean(axis), method="percentile", n_resamples=5000, rng=0
    )
    ours = difference_interval(first, second, resamples=5000)
    np.testing.assert_allclose(ours, theirs.confidence_interval, rtol=0.05)
    assert probability_of_improvement(np.zeros(3), np.zeros(2)) == 0.5
