"""A sweep on a real Ray: it can be stopped, killed and resumed, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from matplotlib.image import imread

from rl_lnlstm.commands import main
from rl_lnlstm.presets import read_preset
from rl_lnlstm.tuning.records import read_trials
from tests.commands.small_run import ROOT

pytestmark = pytest.mark.ray

SMALL = ["--env-id", "CartPole-v1", "--trials", "3", "--parallel", "2", "--total-timesteps", "3000"]
SMALL += ["--num-envs", "4", "--units", "8", "--head-layers", "--update-epochs", "1", "--no-jit-compile"]
SMALL += ["--finalists", "1", "--eval-episodes", "3"]


def started(folder, *arguments):
    """The command in a process and a session of its own, with its messages in a file."""
    command = [sys.executable, "-m", "rl_lnlstm", "tune", *arguments]
    with (folder / "messages").open("a") as messages:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=messages,
            stderr=messages,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        )


def processes_of(folder):
    """The processes that a sweep in `folder` started. They inherit its current folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.readlink(f"/proc/{pid}/cwd").startswith(str(folder)):
                found.append(int(pid))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


def wait_for(condition, seconds=120):
    ended = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ended, "it took too long"
        time.sleep(0.2)


def reported(folder):
    return list(folder.glob("sweep/trials/*/reports.json"))


def test_a_sweep_is_stopped_killed_and_resumed(tmp_path):
    process = started(tmp_path, *SMALL, "--run-dir", "sweep")
    wait_for(lambda: reported(tmp_path) or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    assert process.wait(30) == 130
    assert processes_of(tmp_path) == []
    assert "to continue: rl-lnlstm tune --resume sweep" in (tmp_path / "messages").read_text()
    before = {path.parent.name: json.loads(path.read_text())["reports"] for path in reported(tmp_path)}

    process = started(tmp_path, "--resume", "sweep")
    wait_for(lambda: process.poll() is not None or len(reported(tmp_path)) > 2)
    process.kill()
    process.wait(30)

    process = started(tmp_path, "--resume", "sweep", "--trials", "4")
    assert process.wait(240) == 0, (tmp_path / "messages").read_text()
    wait_for(lambda: processes_of(tmp_path) == [], 90)  # two agents of a killed Ray take a minute to notice
    folder = tmp_path / "sweep"
    trials = read_trials(folder / "trials")
    assert [trial.number for trial in trials] == [1, 2, 3, 4]
    assert {trial.state for trial in trials} <= {"completed", "pruned"}
    for name, reports in before.items():
        kept = json.loads((folder / "trials" / name / "reports.json").read_text())["reports"]
        assert kept[: len(reports) - 1] == reports[:-1], "the trial went on, it did not start again"
    options = read_preset(folder / "preset.json")
    assert (options["env_id"], options["units"], options["num_envs"]) == ("CartPole-v1", 8, 4)
    (finalist,) = read_trials(folder / "finals")
    assert len(finalist.scores.evaluation) == 3
    assert finalist.options["seed"] == 1
    assert imread(folder / "tune.png").std() > 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("finals", "preset.json", "sweep.json", "trials", "trials.csv", "tune.png")
    ]
    messages = (tmp_path / "messages").read_text()
    assert "Traceback" not in messages
    assert "trial  return  frames" in messages
    assert messages.count("trial 1 of") == 1, "each trial ends once"


def test_a_mistake_that_holds_for_all_trials_ends_the_sweep(tmp_path, capsys):
    arguments = [*SMALL, "--policy", "CnnLnLstmPolicy", "--run-dir", str(tmp_path / "sweep")]
    assert main(["tune", *arguments]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert "CnnLnLstmPolicy" in last
