"""The commands as a user runs them: files, exit codes, messages."""

import csv
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.image import imread
from moviepy import VideoFileClip
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rl_lnlstm
from rl_lnlstm import load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.commands.options import TrainOptions, parse
from tests.failing_env import FailingEnv

ROOT = Path(__file__).parents[2]
SMALL = ["--num-envs", "2", "--num-steps", "16", "--num-minibatches", "1", "--units", "8", "--no-jit-compile"]
SCALARS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "time/fps",
    "train/approx_kl",
    "train/clip_fraction",
    "train/entropy_loss",
    "train/explained_variance",
    "train/value_loss",
    "train/policy_gradient_loss",
    "train/learning_rate",
}


def train(run_dir, *arguments):
    return main(["train", *SMALL, "--run-dir", str(run_dir), "--total-timesteps", "300", *arguments])


def rows(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train(path, "--eval-episodes", "3") == 0
    return path


def test_a_run_leaves_everything(run):
    assert sorted(entry.name for entry in run.iterdir()) == [
        "checkpoints",
        "config.json",
        "learning_curve.png",
        "metrics.csv",
        "policy",
        "results.json",
        "tensorboard",
    ]
    config = json.loads((run / "config.json").read_text())
    assert (config["env_id"], config["units"], config["num_steps"]) == ("CartPoleNoVel-v1", 8, 16)
    assert config["anneal_clip"] is True, "what no flag names is the preset's"
    assert imread(run / "learning_curve.png").std() > 0


def test_metrics_and_tensorboard_agree(run):
    recorded = rows(run)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= SCALARS
    steps = [int(row["time/total_timesteps"]) for row in recorded]
    assert steps == sorted(set(steps))
    assert 300 <= steps[-1] < 300 + 2 * 16
    for name in SCALARS:
        logged = events.Scalars(name)
        assert [event.step for event in logged] == steps
        values = [float(row[name]) for row in recorded]
        np.testing.assert_allclose([event.value for event in logged], values, rtol=1e-6)


def test_train_ends_with_an_evaluation(tmp_path, capsys):
    assert train(tmp_path / "run", "--eval-episodes", "2") == 0
    assert re.fullmatch(r"[\d.]+ \+/- [\d.]+ over 2 episodes\n", capsys.readouterr().out)


def test_the_final_evaluation_is_written_and_the_next_command_repeats_it(tmp_path, capsys, monkeypatch, request):
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "gym.register('Mine-v0', entry_point=CartPoleEnv, max_episode_steps=20)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: gym.registry.pop("Mine-v0", None))  # other tests' workers could not import it
    run_dir = tmp_path / "my run"
    environment = ["--env-id", "my_envs:Mine-v0", "--wrappers", "gymnasium.wrappers:TimeLimit(9)", "--seed", "4"]
    assert train(run_dir, *environment, "--eval-episodes", "3") == 0
    printed, told = capsys.readouterr()
    results = json.loads((run_dir / "results.json").read_text())
    assert f"{results['mean_reward']:.2f} +/- {results['std_reward']:.2f} over 3 episodes" in printed
    assert results["total_timesteps"] == int(rows(run_dir)[-1]["time/total_timesteps"])
    command = re.search(r"next: rl-lnlstm (.*)\n", told)[1]
    assert main([*shlex.split(command), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["episode_seeds"] == results["episode_seeds"]
    assert again["episode_rewards"] == results["episode_rewards"]


def test_the_same_seed_is_the_same_run(run, tmp_path):
    assert train(tmp_path / "again", "--eval-episodes", "0") == 0
    timings = {"time/fps", "time/time_elapsed"}
    for one, other in zip(rows(run), rows(tmp_path / "again"), strict=True):
        assert {name for name in one if one[name] != other[name]} <= timings
    first, second = load_policy(run), load_policy(tmp_path / "again")
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))


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
    for arguments, returns, length in (([], 0.0, 7), (["--env-kwargs", "sutton_barto_reward", "False"], 7.0, 7)):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--json", *arguments]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["episode_lengths"] == [length] * 2
        assert result["episode_rewards"] == [returns] * 2
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--wrappers"]) == 2  # other observations


def test_an_environments_own_vector_implementation_is_evaluated_in(tmp_path, capsys):
    environment = ["--env-id", "CartPole-v1", "--vectorization", "vector_entry_point"]
    assert train(tmp_path / "run", *environment, "--eval-episodes", "2") == 0
    assert "over 2 episodes" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2", "--vectorization", "sync"]) == 0


MISTAKES = {
    "unknown environment": (["train", "--env-id", "CartPol-v1"], ["CartPol-v1", "CartPole-v1"]),
    "an unsuitable policy": (
        ["train", "--env-id", "Blackjack-v1", "--policy", "CnnLnLstmPolicy"],
        ["Box", "Tuple(Discrete(32", "MultiInputLnLstmPolicy"],
    ),
    "wrapper": (
        ["train", "--env-id", "CartPole-v1", "--wrappers", "FrameStak(4)"],
        ["FrameStak(4)", "gymnasium.wrappers"],
    ),
    "minibatches": (["train", "--num-envs", "3", "--num-minibatches", "2"], ["num_minibatches=2", "3 sequences"]),
    "sequence length": (
        ["train", "--num-steps", "16", "--sequence-length", "5"],
        ["sequence_length=5", "num_steps=16"],
    ),
    "units": (["train", "--units", "0"], ["units", "at least 1", "got 0"]),
    "no run": (["evaluate", "no-such-run"], ["no-such-run", "does not exist"]),
    "no policy": (["evaluate", "."], ["policy.json"]),
    "command": (["trian"], ["trian", "train"]),
    "episodes": (["evaluate", "RUN", "--episodes", "0"], ["episodes must be", "at least 1", "got 0"]),
    "other spaces": (
        ["evaluate", "RUN", "--env-id", "Pendulum-v1"],
        ["made for observation space", "(4,)", "(3,)"],
    ),
    "used run directory": (["train", "--run-dir", "RUN"], ["already holds", "--run-dir"]),
    "used folder of episodes": (["evaluate", "RUN", "--record", "RUN"], ["already holds", "--record"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_explained_without_a_traceback(mistake, run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, words = MISTAKES[mistake]
    assert main([str(run) if argument == "RUN" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    for word in words:
        assert word in captured.err
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_another_keras_backend_is_explained_without_a_traceback():
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run([sys.executable, "train.py"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert "jax" in done.stderr
    assert "TensorFlow" in done.stderr


def test_an_environment_that_fails_is_named_and_nothing_is_lost(tmp_path, capsys, monkeypatch, request):
    (tmp_path / "faulty_envs.py").write_text(
        "import gymnasium as gym\n"
        "from gymnasium.envs.classic_control import CartPoleEnv\n"
        "class Faulty(CartPoleEnv):\n"
        "    steps = 0\n"
        "    def step(self, action):\n"
        "        self.steps += 1\n"
        "        if self.steps == 40:\n"
        "            raise ZeroDivisionError('the simulator broke')\n"
        "        return super().step(action)\n"
        "gym.register('Faulty-v0', entry_point=Faulty)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: gym.registry.pop("Faulty-v0", None))  # other tests' workers could not import it
    assert train(tmp_path / "run", "--env-id", "faulty_envs:Faulty-v0", "--max-env-failures", "0") == 1
    error = capsys.readouterr().err
    assert "Faulty-v0" in error
    assert re.search(r"environment [01] in 0\.\.1", error)
    assert re.search(r"step \d+", error)
    assert "the simulator broke" in error
    assert f'File "{tmp_path / "faulty_envs.py"}", line 8, in step' in error
    assert "Traceback" not in error
    assert load_policy(tmp_path / "run").units == 8
    assert len(rows(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "learning_curve.png").is_file()


def test_a_module_of_the_current_folder_is_found_and_its_environment_is_tried_first(tmp_path, capsys, monkeypatch):
    (tmp_path / "wrong_envs.py").write_text(
        "import gymnasium as gym\n"
        "class Wrong(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Discrete(3), gym.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return 0, {}\n"
        "    def step(self, action):\n"
        "        return 7, 1.0, False, False, {}\n"
        "gym.register('Wrong-v0', entry_point=Wrong)\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    try:
        assert train(tmp_path / "run", "--env-id", "wrong_envs:Wrong-v0") == 1
    finally:
        gym.registry.pop("Wrong-v0", None)
    assert "returned 7 in observation, expected 0..2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert sys.path == path


@pytest.mark.parametrize(("vectorization", "number"), [("sync", signal.SIGINT), ("async", signal.SIGTERM)])
def test_a_signal_ends_the_run_in_order(vectorization, number, tmp_path):
    run_dir = tmp_path / "run"
    command = [sys.executable, "train.py", *SMALL, "--run-dir", str(run_dir), "--vectorization", vectorization]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (run_dir / "metrics.csv").is_file() or len(rows(run_dir)) < 3:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, number)  # as a terminal does, or a scheduler: to the workers too
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, error
    assert "Traceback" not in error
    assert load_policy(run_dir).units == 8
    assert len(rows(run_dir)) >= 3
    assert imread(run_dir / "learning_curve.png").std() > 0


def test_help_is_grouped_and_marks_the_preset(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for title in ("run", "environment", "rollout", "PPO", "network", "evaluation"):
        assert f" {title} options " in shown
    for field in dataclasses.fields(TrainOptions):
        assert f"--{field.name.replace('_', '-')}" in shown
    assert "(preset: 64)" in shown
    assert "CartPoleNoVel-v1)" in shown
    assert max(map(len, shown.splitlines())) <= 80
    for arguments, words in (
        ([], ["train", "evaluate", "build-kernel"]),
        (["--help"], ["train"]),
        (["--version"], [rl_lnlstm.__version__]),
        (["evaluate", "--help"], ["RUN_DIR", "--episode-seeds", "output options"]),
        (["build-kernel", "--help"], ["--force"]),
    ):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for word in words:
            assert word in shown


def test_values_may_be_written_in_several_ways():
    def parsed(*arguments):
        return parse(["train", *arguments])

    assert parsed("--total-timesteps", "1e5").total_timesteps == 100_000
    assert parsed("--num_envs=4").num_envs == 4
    for form in (["length=5", "name=a=b", "fast=True"], ["length", "5", "name", "a=b", "fast", "True"]):
        assert parsed("--env-kwargs", *form, "--seed", "1").env_kwargs == {"length": 5, "name": "a=b", "fast": True}
    assert parsed("--env-kwargs=length=5").env_kwargs == {"length": 5}
    assert parsed("--learning-rate", "1e-4", "--no-anneal-lr").learning_rate == 1e-4
    assert parsed("--env-id", "Pendulum-v1", "--units", "7").units == 7


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--lr", "1"], "--learning-rate"),
        (["--numenvs", "1"], "--num-envs"),
        (["--n-steps=3"], "--num-steps"),
        (["--zzz"], "--help"),
    ],
    ids=str,
)
def test_a_wrong_name_is_answered_with_the_right_one(option, words, capsys):
    assert main(["train", *option]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error


def test_a_reader_of_the_output_may_leave():
    process = subprocess.Popen(
        [sys.executable, "train.py", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 128 + signal.SIGPIPE
    assert error == ""


class FailingBySeed(FailingEnv):
    """A quarter of the episodes that begin with a seed fail."""

    def __init__(self):
        super().__init__([None])

    def step(self, action):
        if self.seed % 4 == 0 and self.episode == 0 and self.time == 1:
            raise ZeroDivisionError("a bug of mine")
        return super().step(action)


def test_an_environment_may_fail_also_in_the_evaluation_at_the_end(tmp_path, told, capsys, request):
    gym.register("FailingBySeed-v0", FailingBySeed)
    request.addfinalizer(lambda: gym.registry.pop("FailingBySeed-v0", None))
    assert train(tmp_path / "run", "--env-id", "FailingBySeed-v0", "--eval-episodes", "60") == 0
    pattern = r"FailingBySeed-v0 \(environment \d in 0\.\.7\) raised Zero.* \(at step \d+\)"
    assert any(re.match(pattern, message) for message in told())
    assert "over 60 episodes" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "run" / "results.json").read_text())["episode_rewards"]) == 60
