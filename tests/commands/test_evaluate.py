"""The command `evaluate` as a user runs it."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from moviepy import VideoFileClip

from rl_lnlstm import load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.evaluation.episodes import EpisodeRunner
from tests.commands.small_run import ROOT, train


def test_evaluate_prints_one_json_object(run, capsys):
    assert main(["evaluate", str(run), "--episodes", "5", "--seed", "3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["n_episodes"] == len(result["episode_rewards"]) == 5
    assert result["median_reward"] == sorted(result["episode_rewards"])[2]
    assert result["mean_reward"] == pytest.approx(np.mean(result["episode_rewards"]))
    assert result["std_reward"] == pytest.approx(np.std(result["episode_rewards"]))
    assert result["env_id"] == "CartPoleNoVel-v1"
    assert result["episode_lengths"] == result["episode_rewards"], "CartPole pays 1 a frame"


def test_evaluate_records_what_it_reports(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--episodes", "3", "--record", str(tmp_path / "episodes"), "--json"]) == 0
    printed, told = capsys.readouterr()
    result = json.loads(printed)
    assert str(tmp_path / "episodes") in told.replace("\n", "")
    files = sorted((tmp_path / "episodes").iterdir())
    assert [file.name for file in files] == [f"episode-0000{number}.npz" for number in range(3)]
    episodes = [np.load(file, allow_pickle=False) for file in files]
    assert [episode["rewards"].sum() for episode in episodes] == result["episode_rewards"]
    assert {"observations", "actions", "values", "h", "c", "terminated", "truncated"} <= set(episodes[0])
    low, high = result["iqm_confidence_interval"]
    assert low <= result["iqm_reward"] <= high


def test_evaluate_repeats_for_a_seed(run, capsys):
    outputs = []
    for _ in range(2):
        main(["evaluate", str(run), "--episodes", "4", "--no-deterministic", "--seed", "1", "--json"])
        result = json.loads(capsys.readouterr().out)
        outputs.append(result["episode_rewards"])
    assert outputs[0] == outputs[1]


def test_the_episodes_depend_on_the_seed_alone(run, tmp_path, capsys):
    """Not on the number of environments, nor on what is recorded."""
    lists = {}
    for name, arguments in {
        "1": ["--num-envs", "1"],
        "4": ["--num-envs", "4"],
        "8": ["--num-envs", "8"],
        "video": ["--num-envs", "3", "--video", str(tmp_path / "videos")],
        "record": ["--record", str(tmp_path / "episodes")],
        "csv": ["--csv", str(tmp_path / "episodes.csv")],
    }.items():
        assert main(["evaluate", str(run), "--episodes", "5", "--seed", "9", "--json", *arguments]) == 0
        result = json.loads(capsys.readouterr().out)
        lists[name] = [result[entry] for entry in ("episode_seeds", "episode_rewards", "episode_lengths")]
    assert all(found == lists["1"] for found in lists.values())
    seeds, returns, lengths = lists["1"]
    assert len(set(seeds)) == 5
    recorded = [np.load(path) for path in sorted((tmp_path / "episodes").iterdir())]
    assert [int(episode["seed"]) for episode in recorded] == seeds
    with (tmp_path / "episodes.csv").open() as file:
        assert [int(row["seed"]) for row in csv.DictReader(file)] == seeds
    videos = sorted((tmp_path / "videos").iterdir())
    assert [video.name for video in videos] == [
        f"episode-0000{number}-seed-{seed}-return-{score:g}.mp4"
        for number, (seed, score) in enumerate(zip(seeds, returns, strict=True))
    ]
    for video, length in zip(videos, lengths, strict=True):
        with VideoFileClip(str(video)) as clip:
            assert abs(clip.n_frames - (length + 1)) <= 1, "also the end of the episode; the reader rounds"
            assert clip.get_frame(0).std() > 0
    chosen = ["--episode-seeds", str(seeds[3]), str(seeds[1])]
    assert main(["evaluate", str(run), "--json", *chosen]) == 0
    assert json.loads(capsys.readouterr().out)["episode_rewards"] == [returns[3], returns[1]]


@pytest.mark.parametrize(
    "option",
    [
        ["--seed", "-1"],
        ["--episodes", "0"],
        ["--num-envs", "0"],
        ["--max-steps", "0"],
        ["--episode-seeds", "-3"],
        ["--csv", "/proc/nowhere/episodes.csv"],
        ["--video", "/proc/nowhere"],
        ["--record", "/proc/nowhere"],
    ],
    ids=" ".join,
)
def test_values_of_evaluate_are_checked(option, run, capsys):
    assert main(["evaluate", str(run), "--episodes", "1", *option]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert option[-1] in error
    assert "Traceback" not in error


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [["--json"], []], ids=["JSON", "text"])
def test_standard_output_that_takes_nothing_is_an_error_in_a_line(arguments, run):
    command = [sys.executable, "-m", "rl_lnlstm", "evaluate", str(run), "--episodes", "1", *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


def test_a_policy_folder_knows_its_environment(run, tmp_path, capsys):
    assert main(["evaluate", str(run / "policy"), "--episodes", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_id"] == "CartPoleNoVel-v1"
    old = shutil.copytree(run / "policy", tmp_path / "old")
    description = json.loads((old / "policy.json").read_text())
    for env_id in (None, 5):
        (old / "policy.json").write_text(json.dumps({**description, "env_id": env_id}))
        assert main(["evaluate", str(old)]) == 2
        assert "--env-id" in capsys.readouterr().err
    assert main(["evaluate", str(old), "--env-id", "CartPoleNoVel-v1", "--episodes", "1"]) == 0
    assert f"{old} has no config.json that can be read: the environment gets no env_kwargs" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["config.json", "policy/policy.json"])
def test_what_a_file_says_reaches_the_terminal_escaped_and_cut(file, run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copy / file).read_text())
    hostile = "\x1b]0;owned\x07\u202e:" + 5000 * "x"
    (copy / file).write_text(json.dumps({**content, "env_id": hostile, "policy": hostile}))
    assert main(["evaluate", str(copy), "--episodes", "1"]) == 2
    error = capsys.readouterr().err
    assert all(character.isprintable() or character == "\n" for character in error)
    assert len(error) < 3000


def test_environments_are_wrapped_alike_in_training_and_evaluation(tmp_path, capsys):
    wrappers = ["--wrappers", "FrameStackObservation(2)", "gymnasium.wrappers:TimeLimit(7)"]
    environment = ["--env-id", "CartPole-v1", "--env-kwargs", "sutton_barto_reward", "True", *wrappers]
    assert train(tmp_path / "run", *environment, "--eval-episodes", "1") == 0
    assert load_policy(tmp_path / "run").observation_space.shape == (2, 4)
    for folder, arguments, returns, length in (
        ("run", [], 0.0, 7),
        ("run/policy", [], 0.0, 7),
        ("run/checkpoints/best", [], 0.0, 7),
        ("run", ["--env-kwargs", "sutton_barto_reward", "False"], 7.0, 7),
    ):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / folder), "--episodes", "2", "--json", *arguments]) == 0
        printed, told = capsys.readouterr()
        assert told == ""
        result = json.loads(printed)
        assert result["episode_lengths"] == [length] * 2
        assert result["episode_rewards"] == [returns] * 2
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--wrappers"]) == 2  # other observations


def test_an_environments_own_vector_implementation_is_evaluated_in(tmp_path, capsys):
    environment = ["--env-id", "CartPole-v1", "--vectorization", "vector_entry_point"]
    assert train(tmp_path / "run", *environment, "--eval-episodes", "2") == 0
    assert "over 2 episodes" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--vectorization", "sync"]) == 0


@pytest.mark.parametrize("flag", ["--video", "--record"])
def test_a_folder_with_other_files_is_left_alone(flag, run, tmp_path, capsys):
    (tmp_path / "episode-00000-seed-1-return-9.mp4").write_text("of another policy")
    assert main(["evaluate", str(run), "--episodes", "1", flag, str(tmp_path)]) == 2
    assert f"name a new one with {flag}" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["of another policy"]


def test_seeds_for_a_vector_implementation_are_refused(run, tmp_path, capsys):
    command = ["evaluate", str(run), "--vectorization", "vector_entry_point", "--env-id", "CartPole-v1"]
    assert main([*command, "--episode-seeds", "3", "4"]) == 2
    assert "episode_seeds: the environment has only a vector implementation" in capsys.readouterr().err


def test_videos_of_a_vector_implementation_are_refused(run, tmp_path, capsys):
    command = ["evaluate", str(run), "--env-id", "CartPole-v1", "--vectorization", "vector_entry_point"]
    assert main([*command, "--video", str(tmp_path / "videos")]) == 2
    assert "videos need environments that can be seeded one by one" in capsys.readouterr().err
    assert not (tmp_path / "videos").exists()


class Wandering(CartPoleEnv):
    """Prints, and changes the current folder, as some simulators do."""

    def reset(self, **options):
        print("the simulator starts")
        Path("elsewhere").mkdir(exist_ok=True)
        os.chdir("elsewhere")
        return super().reset(**options)


def test_an_environment_may_print_and_change_the_current_folder(tmp_path, capsys, monkeypatch, request):
    gym.register("Wandering-v0", Wandering, max_episode_steps=9)
    request.addfinalizer(lambda: gym.registry.pop("Wandering-v0"))
    monkeypatch.chdir(tmp_path)
    assert train("run", "--env-id", "Wandering-v0", "--eval-episodes", "1") == 0
    assert "recorded in run\n" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    command = ["evaluate", "run", "--episodes", "2", "--json", "--csv", "scores.csv", "--record", "episodes"]
    assert main(command) == 0
    printed, told = capsys.readouterr()
    assert json.loads(printed)["env_id"] == "Wandering-v0"
    assert "the simulator starts" in told
    assert "episodes are in scores.csv" in told
    assert {path.name for path in tmp_path.iterdir()} == {"run", "scores.csv", "episodes", "elsewhere"}
    assert not [path for path in (tmp_path / "elsewhere").rglob("*") if path.name != "elsewhere"]


def test_a_file_that_cannot_be_written_is_named_before_the_evaluation(run, capsys, monkeypatch):
    monkeypatch.setattr(EpisodeRunner, "__iter__", lambda self: pytest.fail("the evaluation began"))
    assert main(["evaluate", str(run), "--csv", "/proc/nowhere/episodes.csv"]) == 2  # not even root may write there
    assert re.search("the episodes cannot be written to /proc/nowhere/episodes.csv, .*: name", capsys.readouterr().err)


@pytest.mark.parametrize("module", ["mine", "mine(", "a(b"])
def test_a_module_that_only_a_file_names_is_not_imported(module, run, tmp_path, capsys, monkeypatch):
    copied = shutil.copytree(run, tmp_path / "copied")
    monkeypatch.chdir(copied)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "env_id": f"{module}:CartPole-v1"}))
    (copied / f"{module}.py").write_text("open('executed', 'w')")
    assert main(["evaluate", "."]) == 2
    assert "which would import a module" in capsys.readouterr().err
    assert not (copied / "executed").exists()
