"""Runs whose disk is full for a while, or stays full."""

import resource
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.runs.checkpoints import read_newest
from tests.commands.processes import ROOT, TINY, assert_same_run, events, rows

DISK = """
import os, resource, gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
class Filling(CartPoleEnv):
    # Takes the disk's space away at one step, and gives it back at another.
    steps = 0
    def step(self, action):
        Filling.steps += 1
        if Filling.steps == 300:
            take()
        if Filling.steps == 1500:
            give()
        return super().step(action)
gym.register("Filling-v0", entry_point=Filling, max_episode_steps=100)
"""
LIMIT = """
def take():
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
def give():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
FILL = """
filler = os.environ["FILLER"]
def take():
    with open(filler, "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                pass
def give():
    os.unlink(filler)
"""


@pytest.fixture(params=["limit", "fill"])
def small_disk(request, tmp_path, monkeypatch):
    """A directory on a disk that `Filling-v0` fills and empties."""
    sys.modules.pop("filling_envs", None)
    (tmp_path / "filling_envs.py").write_text(DISK + (LIMIT if request.param == "limit" else FILL))
    monkeypatch.syspath_prepend(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    if request.param == "limit":
        yield disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        del gym.registry["Filling-v0"]
        return
    monkeypatch.setenv("FILLER", str(disk / "filler"))
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
    del gym.registry["Filling-v0"]  # workers of other tests get the registry, and could not import its module


def test_a_disk_that_is_full_for_a_while_costs_nothing(small_disk, capsys):
    run_dir = small_disk / "run"
    options = [*TINY, "--env-id", "filling_envs:Filling-v0", "--total-timesteps", "2000"]
    assert main(["train", *options, "--run-dir", str(run_dir)]) == 0
    error = capsys.readouterr().err
    assert "no checkpoint could be written" in error
    assert error.count("will try again") <= 4, "each cause is told once"
    assert [int(row["time/iterations"]) for row in rows(run_dir)] == list(range(1, len(rows(run_dir)) + 1))
    assert read_newest(run_dir / "checkpoints").tree["iteration"] == len(rows(run_dir))
    frames = [int(row["time/total_timesteps"]) for row in rows(run_dir)]
    assert [step for step, _ in events(run_dir)["train/loss"]] == frames
    assert load_policy(run_dir / "policy").units == 8
    assert list(run_dir.rglob(".*")) == [], "no halves are left"


@pytest.mark.slow
def test_a_disk_that_stays_full_keeps_the_last_good_checkpoint(small_disk, tmp_path, capsys):
    options = [*TINY, "--env-id", "filling_envs:Filling-v0", "--total-timesteps", "800"]
    run_dir = small_disk / "run"
    assert main(["train", *options, "--run-dir", str(run_dir)]) == 1
    assert "could not be written" in capsys.readouterr().err
    assert 0 < read_newest(run_dir / "checkpoints").tree["num_timesteps"] <= 300
    filling = sys.modules["filling_envs"]
    filling.give()
    filling.Filling.steps = 10**6
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert main(["train", *options, "--run-dir", str(tmp_path / "alone")]) == 0
    assert_same_run(tmp_path / "alone", run_dir)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_messages_that_cannot_be_printed_do_not_end_a_run(tmp_path):
    command = [sys.executable, "train.py", "--env-id", "CartPole-v1", *TINY, "--total-timesteps", "200"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*command, "--run-dir", str(tmp_path / "run")], cwd=ROOT, stderr=full)
    assert done.returncode == 0
    assert (tmp_path / "run" / "policy" / "weights.npz").is_file()
    assert len(rows(tmp_path / "run")) >= 6
