"""Experiment trackers receive the metrics, offline.

The tests marked `peers` run a tracker if its package is installed: `pip install wandb trackio mlflow`.
"""

import csv
import json
import math

import numpy as np
import pytest

from rl_lnlstm import UserError
from rl_lnlstm.commands import main
from rl_lnlstm.runs.trackers import TRACKERS, Tracker
from tests.commands.small_run import train


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def returns(run_dir):
    """Frames and mean returns in metrics.csv."""
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = [(int(float(row["time/total_timesteps"])), float(row["rollout/ep_rew_mean"])) for row in rows]
    return [(frames, mean) for frames, mean in found if not math.isnan(mean)]


@pytest.mark.peers
def test_mlflow_gets_every_iteration_and_a_resumed_run_goes_on(offline, capsys):
    mlflow = pytest.importorskip("mlflow")
    run_dir = offline / "run"
    assert train(run_dir, "--track", "mlflow", "--eval-episodes", "2") == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 1, "standard output is for the result"
    assert main(["train", "--resume", str(run_dir), "--total-timesteps", "400", "--eval-episodes", "0"]) == 0
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("rl-lnlstm").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["units"] == "8"
    logged = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "rollout/ep_rew_mean")]
    np.testing.assert_allclose(logged, returns(run_dir))
    assert logged[-1][0] > 350


@pytest.mark.peers
def test_trackio_gets_every_iteration(offline, capsys):
    pytest.importorskip("trackio")
    import sqlite3

    run_dir = offline / "run"
    assert train(run_dir, "--track", "trackio", "--eval-episodes", "2") == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 1
    (database,) = (offline / "trackio").glob("rl-lnlstm*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT step, metrics FROM metrics ORDER BY step").fetchall()
    logged = [(step, json.loads(metrics)) for step, metrics in rows]
    logged = [(step, metrics["rollout/ep_rew_mean"]) for step, metrics in logged if "rollout/ep_rew_mean" in metrics]
    np.testing.assert_allclose(logged, returns(run_dir))


@pytest.mark.peers
def test_wandb_records_offline(offline, capsys):
    pytest.importorskip("wandb")
    run_dir = offline / "run"
    assert train(run_dir, "--track", "wandb", "--eval-episodes", "2") == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 1
    (recorded,) = (run_dir / "wandb").glob("offline-run-*/run-*.wandb")
    content = recorded.read_bytes()
    assert b"rollout/ep_rew_mean" in content
    assert json.loads((run_dir / "tracking.json").read_text())["wandb"] in recorded.name


@pytest.mark.parametrize("tool", TRACKERS)
def test_a_missing_package_is_named_before_anything_is_written(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, tool, None)  # as if it were not installed
    assert train(tmp_path / "run", "--track", tool) == 2
    assert f"pip install {tool}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Failing(Tracker):
    """A tracker whose server goes away."""

    package, project_variable = "json", "NO_SUCH_VARIABLE"

    def start(self, config, run_id):
        self.calls = []
        return "an id"

    def log(self, metrics, step):
        self.calls.append((step, metrics))
        if len(self.calls) == 2:
            raise ConnectionError("the server is gone")

    def end(self, failed):
        raise ConnectionError("the server is still gone")


def test_training_continues_if_the_tracker_fails(tmp_path):
    from rl_lnlstm import PPO

    (tmp_path / "tracking.json").write_text('{"other": "its id"}')
    tracker = Failing("run", tmp_path)
    options = {
        "num_envs": 2,
        "num_steps": 8,
        "num_minibatches": 1,
        "update_epochs": 1,
        "units": 4,
        "jit_compile": False,
    }
    with (
        PPO("MlpLnLstmPolicy", "CartPole-v1", **options) as ppo,
        pytest.warns(UserWarning, match="json fails, ConnectionError: the server is gone"),
        pytest.warns(UserWarning, match="json cannot end the run"),
    ):
        ppo.learn(64, callback=tracker)
    assert ppo.num_timesteps >= 64
    assert len(tracker.calls) == 2
    assert all(math.isfinite(value) for _, metrics in tracker.calls for value in metrics.values())
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"json": "an id", "other": "its id"}


def test_a_tracker_that_refuses_to_start_is_an_error(monkeypatch):
    from rl_lnlstm import PPO

    monkeypatch.setattr(Failing, "start", lambda *_: 1 / 0)
    with (
        PPO("MlpLnLstmPolicy", "CartPole-v1", num_envs=1, num_steps=8, units=4) as ppo,
        pytest.raises(UserError, match="json cannot track the run, ZeroDivisionError"),
    ):
        ppo.learn(8, callback=Failing("run"))


def test_the_names_of_the_option_are_those_of_the_trackers():
    import typing

    from rl_lnlstm.commands.training_options import TrainOptions

    hint = typing.get_type_hints(TrainOptions)["track"]
    (names,) = [typing.get_args(part) for part in typing.get_args(hint) if typing.get_args(part)]
    assert set(names) == set(TRACKERS)


def test_only_an_exception_of_the_training_marks_the_run_as_failed(monkeypatch):
    from rl_lnlstm import PPO

    ended = []
    monkeypatch.setattr(Failing, "end", lambda _, failed: ended.append(failed))
    with PPO("MlpLnLstmPolicy", "CartPole-v1", num_envs=1, num_steps=8, units=4, jit_compile=False) as ppo:
        try:
            raise ConnectionError("of an earlier attempt")
        except ConnectionError:
            ppo.learn(8, callback=Failing("run"))
        with pytest.raises(ZeroDivisionError):
            ppo.learn(16, callback=[Failing("run"), lambda metrics: 1 / 0])
    assert ended == [False, True]
