"""The commands as a user runs them: files, exit codes, messages."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl_lnlstm import PPO, load_policy
from rl_lnlstm.commands import main
from tests.commands.small_run import ROOT, SMALL, rows, train
from tests.failing_env import FailingEnv

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
    assert config["gamma"] == 0.995, "what no flag names is the preset's"
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
    "no sequence length": (["train", "--sequence-length", "0"], ["sequence_length=0", "num_steps"]),
    "a sequence length above the steps": (
        ["train", "--num-steps", "16", "--sequence-length", "32"],
        ["sequence_length=32", "num_steps=16"],
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
    "a file below a file": (["train", "--seeds", "0", "1", "--run-dir", f"{__file__}/x"], ["cannot be written"]),
    "no file": (["evaluate", "RUN", "--csv", "/"], ["cannot be written to /", "--csv"]),
    "a long name": (["plot", "a" * 300], ["cannot be read", "too long"]),
    "episodes below a file": (
        ["evaluate", "RUN", "--record", f"{__file__}/x"],
        ["folder", "cannot be written to", "--record"],
    ),
    "one run at a time": (["train", "--parallel", "2"], ["--parallel", "needs --seeds"]),
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


def test_an_environment_without_an_id_must_be_named(tmp_path, capsys):
    with PPO("auto", lambda: gym.make("CartPole-v1"), num_envs=2, units=4, jit_compile=False) as ppo:
        ppo.save(tmp_path / "policy")
    assert main(["evaluate", str(tmp_path / "policy")]) == 2
    error = capsys.readouterr().err
    assert "'<lambda>'" in error
    assert "--env-id" in error
    assert main(["evaluate", str(tmp_path / "policy"), "--env-id", "CartPole-v1", "--episodes", "1"]) == 0


def test_without_matplotlib_only_the_learning_curve_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rl_lnlstm.runs.learning_curve", None)  # its import fails
    run_dir = tmp_path / "run"
    assert train(run_dir, "--env-id", "CartPole-v1") == 1
    assert "matplotlib, which draws the learning curve, cannot be imported" in capsys.readouterr().err
    assert load_policy(run_dir).env_id == "CartPole-v1"
    assert not (run_dir / "learning_curve.png").exists()


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


@pytest.mark.many_cases
@pytest.mark.parametrize(
    ("vectorization", "number"), [("sync", signal.SIGINT), ("async", signal.SIGTERM), ("async", signal.SIGHUP)]
)
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


def test_ctrl_c_ends_the_compiling_of_the_kernel_at_once(monkeypatch, capsys):
    def compiled(force):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return "kernel.so"

    monkeypatch.setattr("rl_lnlstm.lstm.kernel.build.library", compiled)
    assert main(["build-kernel"]) == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "")


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
