"""Runs that are killed, stopped and resumed give bitwise the results of an uninterrupted run."""

import csv
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time

import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.errors import RunWarning, UserError
from rl_lnlstm.files import parse_json
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.ppo.checkpoint_files import read
from rl_lnlstm.runs import lock
from rl_lnlstm.runs.checkpoints import read_newest
from rl_lnlstm.runs.lock import locked
from tests.commands.processes import TINY, assert_same_run, checkpoints, ended, rows, start, wait_for

KILLS = int(os.environ.get("RL_LNLSTM_KILLS", "2"))  # `make kills` takes 20
FRAMES = 2400


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    """A run to compare with. Nothing in this module writes to it."""
    run_dir = tmp_path_factory.mktemp("runs") / "alone"
    assert main(["train", *TINY, "--run-dir", str(run_dir), "--total-timesteps", str(FRAMES)]) == 0
    return run_dir


@pytest.fixture
def run(left_alone, tmp_path):
    return shutil.copytree(left_alone, tmp_path / "run")


def elapsed(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row["time/time_elapsed"]) for row in csv.DictReader(file)]


def kill_after(process, run_dir, count, pause):
    """Kills the process after it has recorded `count` iterations, and returns how many it recorded."""
    deadline = time.monotonic() + 60
    while process.poll() is None and len(rows(run_dir)) < count and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(pause)
    process.kill()
    process.communicate()
    return len(rows(run_dir))


@pytest.mark.slow
def test_a_run_that_is_killed_and_resumed_is_the_run_that_was_left_alone(left_alone, tmp_path):
    """Killed at random moments: of the start, of rollouts and updates, and while checkpoints are written."""
    chance, run_dir = random.Random(int(os.environ.get("RL_LNLSTM_SEED", "0"))), tmp_path / "killed"
    process = start(*TINY, "--run-dir", run_dir, "--total-timesteps", FRAMES)
    wait_for(lambda: checkpoints(run_dir), process)
    killed_after = [0]
    for _ in range(KILLS):
        more = chance.randint(0, 2 * len(rows(left_alone)) // (KILLS + 1))  # so that the kills divide the run
        killed_after.append(kill_after(process, run_dir, killed_after[-1] + more, chance.random() * 0.02))
        process = start("--resume", run_dir)
    assert ended(process)[0] == 0
    print(f"killed after {killed_after[1:]} of {len(rows(left_alone))} iterations")
    assert any(0 < count < len(rows(left_alone)) for count in killed_after)
    assert_same_run(left_alone, run_dir)
    assert elapsed(run_dir) == sorted(elapsed(run_dir)), "the clock of a run goes on where it was"


def test_a_run_that_ended_goes_on_to_more_frames(left_alone, run, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    assert main(["train", "--resume", run.name]) == 0
    error = capsys.readouterr().err
    assert "nothing is left to train" in error
    assert "changed" not in error
    assert_same_run(left_alone, run)
    assert main(["train", "--resume", str(run), "--total-timesteps", "2900", "--learning-rate", "0.01"]) == 0
    error = capsys.readouterr().err
    assert "total_timesteps 2400 -> 2900" in error
    assert "learning_rate 0.001 -> 0.01" in error
    assert rows(run)[: len(rows(left_alone))] == rows(left_alone)
    more = rows(run)[len(rows(left_alone)) :]
    assert 2900 <= int(more[-1]["time/total_timesteps"]) < 2932
    frames = int(rows(left_alone)[-1]["time/total_timesteps"])
    assert float(more[0]["train/learning_rate"]) == pytest.approx(0.01 * (1 - frames / 2900)), "as if asked for 2900"
    config = parse_json((run / "config.json").read_bytes())
    assert (config["total_timesteps"], config["learning_rate"]) == (2900, 0.01)


def test_results_of_an_earlier_policy_are_removed(run):
    (run / "results.json").write_text('{"mean_reward": 1.0}')
    more = ["--resume", str(run), "--total-timesteps", "2500", "--eval-interval", "0", "--eval-episodes", "0"]
    assert main(["train", *more]) == 0
    assert not (run / "results.json").exists()


@pytest.mark.parametrize("interval", [0, 7])
def test_when_a_run_is_evaluated_may_change(interval, run, capsys):
    """Evaluations do not make it another run; also from none to some, and from some to none."""

    def evaluated():
        return [row for row in rows(run) if "eval/mean_reward" in row]

    before = evaluated()
    more = ["--resume", str(run), "--total-timesteps", "2900", "--eval-interval"]
    assert main(["train", *more, str(interval), "--n-eval-episodes", "1"]) == 0
    assert f"eval_interval 20 -> {interval}" in capsys.readouterr().err
    assert evaluated()[: len(before)] == before
    assert (len(evaluated()) > len(before)) == bool(interval)
    assert main(["train", *more[:2], "--total-timesteps", "3000", "--eval-interval", "3"]) == 0


def contents(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_the_number_of_environments_may_change_and_a_line_says_so(run, capsys):
    assert main(["train", "--resume", str(run), "--num-envs", "4", "--total-timesteps", "3000"]) == 0
    error = " ".join(capsys.readouterr().err.split())
    assert "num_envs 2 -> 4" in error
    assert (
        "the environments for training begin new episodes: the checkpoint has 2 environments, this trainer 4" in error
    )
    assert int(rows(run)[-1]["time/total_timesteps"]) >= 3000


def test_what_cannot_change_is_refused_and_nothing_is_touched(run, capsys):
    before = contents(run)
    assert main(["train", "--resume", str(run), "--units", "9", "--seed", "4", "--gamma", "0.5"]) == 2
    error = capsys.readouterr().err
    assert "units 8 -> 9" in error
    assert "-> 4" in error
    assert "gamma" not in error
    assert main(["train", "--resume", str(run), "--run-dir", str(run / "other")]) == 2
    assert main(["train", "--resume", str(run / "policy")]) == 2
    assert contents(run) == before


# --------------------------------------------------------------------------------------------------------- damage


def damaged(content, damage):
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    return {"empty": b"", "truncated": content[:half], "flipped": flipped}[damage]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *(("manifest.json", damage) for damage in ("missing", "empty", "truncated", "flipped")),
        *((file, "flipped") for file in ("state.json", "arrays.npz", "envs.pkl")),  # one checksum finds every damage
        ("arrays.npz", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(file, damage, run):
    *_, before, newest = checkpoints(run)
    path = run / "checkpoints" / newest / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(damaged(path.read_bytes(), damage))
    with pytest.warns(RunWarning, match=rf"{newest} is damaged: "):
        state = read_newest(run / "checkpoints")
    assert state.tree["iteration"] == int(before)
    assert checkpoints(run)[-1] == before
    assert (run / "checkpoints" / f"damaged-{newest}").is_dir(), "it is kept, where nothing takes it for a checkpoint"


def test_a_folder_without_a_checkpoint_is_not_called_damaged(run):
    with pytest.raises(UserError, match=r"is no checkpoint: it has no manifest\.json .*`checkpoints`"):
        read(run)


def test_from_the_checkpoint_before_the_run_is_the_same(left_alone, run, capsys):
    newest = checkpoints(run)[-1]
    (run / "checkpoints" / newest / "arrays.npz").write_bytes(b"")
    assert main(["train", "--resume", str(run)]) == 0
    assert f"{newest} is damaged: arrays.npz" in capsys.readouterr().err
    assert_same_run(left_alone, run)


def test_resume_without_valid_checkpoint_is_refused(run, capsys):
    metrics = (run / "metrics.csv").read_bytes()
    for name in checkpoints(run):
        (run / "checkpoints" / name / "state.json").write_bytes(b"{}")
    assert main(["train", "--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in checkpoints(run))
    assert (run / "metrics.csv").read_bytes() == metrics
    shutil.rmtree(run / "checkpoints")
    assert main(["train", "--resume", str(run)]) == 2
    assert "no checkpoint" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ trust and locks


class Executes:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def executed(run, tmp_path):
    """Replaces the snapshot of the newest checkpoint. Returns the path of a file that unpickling it would create."""
    checkpoint = run / "checkpoints" / checkpoints(run)[-1]
    content = pickle.dumps(Executes(tmp_path / "executed"))
    (checkpoint / "envs.pkl").write_bytes(content)
    manifest = parse_json((checkpoint / "manifest.json").read_bytes())
    manifest["envs.pkl"] = hashlib.sha256(content).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "executed"


def test_evaluate_does_not_unpickle_the_snapshot(run, executed):
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0
    assert not executed.exists()


def test_resume_without_env_snapshot_neither_unpickles_nor_writes_one(run, executed, capsys):
    assert main(["train", "--resume", str(run), "--no-env-snapshot", "--total-timesteps", "2500"]) == 0
    assert not executed.exists()
    error = capsys.readouterr().err
    assert "begin new episodes" in error
    assert "unpickling" not in error
    assert not (run / "checkpoints" / checkpoints(run)[-1] / "envs.pkl").exists()


def test_a_second_run_in_a_directory_is_refused(run, tmp_path, capsys):
    with locked(run):
        assert main(["train", "--resume", str(run)]) == 2
        assert "in use" in capsys.readouterr().err
    assert main(["train", "--resume", str(run)]) == 0
    with locked(tmp_path / "new"):
        assert main(["train", *TINY, "--run-dir", str(tmp_path / "new")]) == 2
        assert "in use" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- signals


@pytest.mark.slow
def test_where_folders_cannot_be_locked_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)  # as on Windows, which opens no folders either
    with monkeypatch.context() as opening:
        opening.setattr(os, "open", lambda *_: pytest.fail("a folder was opened"))
        with lock.locked(tmp_path / "new"):
            pass
    assert (tmp_path / "new").is_dir()


def test_sigterm_while_a_checkpoint_is_written_ends_the_run_in_order(left_alone, tmp_path):
    run_dir = tmp_path / "run"
    process = start(*TINY, "--checkpoint-interval", "1", "--run-dir", run_dir, "--total-timesteps", FRAMES)
    wait_for(lambda: len(checkpoints(run_dir)) == 3, process)
    wait_for(lambda: any(path.name.startswith(".") for path in (run_dir / "checkpoints").iterdir()), process)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    state = read(run_dir / "checkpoints" / checkpoints(run_dir)[-1])
    assert state.tree["iteration"] == len(rows(run_dir)) < len(rows(left_alone)), "it is of the last iteration"
    assert rows(run_dir) == rows(left_alone)[: len(rows(run_dir))]
    assert load_policy(run_dir / "policy").units == 8
    assert main(["train", "--resume", str(run_dir), "--checkpoint-interval", "3"]) == 0
    assert_same_run(left_alone, run_dir)


SLOW = """
import os, time, gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
class Slow(CartPoleEnv):
    steps = 0
    def step(self, action):
        Slow.steps += 1
        if Slow.steps == 28:
            open(os.environ["REACHED"], "w").close()
            if os.environ["PHASE"] == "rollout":
                time.sleep(600)
        return super().step(action)
gym.register("Slow-v0", entry_point=Slow)
"""


@pytest.mark.slow
def test_sigterm_ends_a_run_whose_iteration_would_take_forever(tmp_path):
    """A rollout that waits for its environment, and an update during which Python runs no signal handler."""
    (tmp_path / "slow_envs.py").write_text(SLOW)
    processes = {}
    for phase in ("rollout", "update"):
        environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "PHASE": phase}
        options = ["--env-id", "slow_envs:Slow-v0", "--update-epochs", "1000000", "--run-dir", tmp_path / phase]
        processes[phase] = start(*TINY, *options, **environment, REACHED=str(tmp_path / f"{phase}.reached"))
    for phase, process in processes.items():
        wait_for((tmp_path / f"{phase}.reached").exists, process)
    time.sleep(3)  # the last steps of the rollout, and tracing
    for process in processes.values():
        process.send_signal(signal.SIGTERM)
    for phase, process in processes.items():
        code, error = ended(process)
        assert code == 143, error
        assert "in the middle" in error
        assert read_newest(tmp_path / phase / "checkpoints").tree["iteration"] == 0
