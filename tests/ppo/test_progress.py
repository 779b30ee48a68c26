"""The progress display, on a terminal of 80 columns and in a file."""

import io
import re
import time

import gymnasium as gym
import numpy as np
import pytest
from rich.console import Console

from rl_lnlstm import PPO, UserError
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.ppo import trainer
from rl_lnlstm.ppo.callbacks import Callback
from rl_lnlstm.ppo.progress import ProgressBar, shown

TINY = {
    **{"num_envs": 2, "num_steps": 16, "num_minibatches": 1, "units": 4, "jit_compile": False, "seed": 0},
    **{"shared_lstm": True, "head_layers": ()},  # fewer weights, so that tracing takes less time
}


def trained(console, frames=200, **config):
    ppo = PPO("auto", "CartPole-v1", **TINY, **config)
    ppo.learn(frames, callback=ProgressBar(console, seconds_between_lines=0))
    return ppo


def test_a_file_gets_plain_lines():
    file = io.StringIO()
    ppo = trained(Console(file=file, width=80), eval_interval=3, n_eval_episodes=2)
    lines = file.getvalue().splitlines()
    assert "\x1b" not in file.getvalue()
    assert any("compiling the update" in line for line in lines)
    assert any("evaluating" in line for line in lines)
    pattern = r"[\d,]+ of [\d,]+ frames, [\d,]+ frames/s, return [\d.]+, length \d+, evaluation [\d.]+, [\d:]+ left"
    assert any(re.fullmatch(pattern, line) for line in lines), lines
    assert lines[-1].startswith(f"{ppo.num_timesteps} of {ppo.num_timesteps} frames, "), "what was really trained"


def test_a_file_is_not_flooded():
    file = io.StringIO()
    PPO("auto", "CartPole-v1", **TINY).learn(200, callback=ProgressBar(Console(file=file), seconds_between_lines=1e6))
    assert len(file.getvalue().splitlines()) == 1, "the end"


class Slow(gym.Env):
    """A rollout of two steps takes as long as several lines of a log."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        time.sleep(1.3)
        return np.zeros(2, np.float32), 0.0, True, False, {}


@pytest.mark.slow
def test_a_log_shows_life_during_a_long_rollout(monkeypatch):
    monkeypatch.setattr("rl_lnlstm.ppo.progress.LONG", 0.5)
    file = io.StringIO()
    small = {**TINY, "num_envs": 1, "num_steps": 2}
    bar = ProgressBar(Console(file=file, width=80), seconds_between_lines=0.1)
    PPO("auto", Slow, **small).learn(2, callback=bar)
    first = file.getvalue().splitlines()[:3]
    assert any(re.fullmatch(r"0 of 2 frames, collecting for \d s", line) for line in first), first
    written = len(file.getvalue())
    time.sleep(1.2)
    assert len(file.getvalue()) == written, "and nothing after the end"


def test_a_terminal_of_80_columns_gets_a_bar_that_fits():
    file = io.StringIO()
    trained(Console(file=file, width=80, force_terminal=True), eval_interval=3, n_eval_episodes=2)
    drawn = [re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", file.getvalue())]
    assert any("return" in line and "/s" in line for line in drawn)
    assert max(map(len, drawn)) <= 80


def test_a_command_in_a_notebook_has_a_terminal_but_gets_plain_lines(monkeypatch):
    """The notebook would keep every bar that was drawn."""
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    file = io.StringIO()
    trained(Console(file=file, width=80, force_terminal=True))
    assert "\x1b[2K" not in file.getvalue()
    assert file.getvalue().splitlines()[-1].count("frames") == 2


def test_nothing_is_shown_when_nothing_is_left(tmp_path):
    ppo = PPO("auto", "CartPole-v1", **TINY, total_timesteps=32)
    ppo.learn()
    ppo.save_checkpoint(tmp_path / "checkpoint")
    resumed = PPO("auto", "CartPole-v1", **TINY, total_timesteps=32)
    resumed.load_checkpoint(tmp_path / "checkpoint", total_timesteps=32)
    file = io.StringIO()
    resumed.learn(callback=ProgressBar(Console(file=file, width=80, force_terminal=True)))
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("value", "text"), [(0.88, "0.88"), (500.0, "500.0"), (-217.94, "-217.9"), (0.0123, "0.012"), (0.0, "0.0")]
)
def test_returns_have_the_decimals_that_they_need(value, text):
    assert shown(value) == text


class Endless(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_episodes_that_never_end_are_reported_once(monkeypatch):
    monkeypatch.setattr(trainer, "ENDLESS", 16)
    file = io.StringIO()
    with pytest.warns(RunWarning, match=r"no episode has ended after \d+ steps .*TimeLimit") as warned:
        PPO("auto", Endless, **TINY).learn(64, callback=ProgressBar(Console(file=file), 0))
    assert sum("no episode has ended" in str(warning.message) for warning in warned) == 1
    assert "no episode ended in 32 steps" in file.getvalue()


class Notes(Callback):
    def __init__(self):
        self.seen = []

    def on_training_start(self, ppo):
        self.seen.append(("start", ppo.num_timesteps, ppo.target))

    def on_phase(self, phase):
        self.seen.append(phase)

    def __call__(self, metrics):
        self.seen.append("iteration")
        return len(self.seen) < 8

    def on_training_end(self):
        self.seen.append("end")


def test_callbacks_are_told_in_order_and_may_stop():
    notes = Notes()
    PPO("auto", "CartPole-v1", **TINY).learn(10_000, callback=notes)
    first = ["collecting", "compiling the update", "iteration"]
    assert notes.seen == [
        ("start", 0, 10_000),
        *first,
        "collecting",
        "updating",
        "iteration",
        "collecting",
        "updating",
        "iteration",
        "end",
    ]


def test_a_callback_that_is_none_and_one_that_cannot_be():
    assert PPO("auto", "CartPole-v1", **TINY).learn(10, callback=None).num_timesteps
    with pytest.raises(UserError, match="callback must be"):
        PPO("auto", "CartPole-v1", **TINY).learn(10, callback=5)


@pytest.mark.parametrize("callback", [lambda: True, lambda local, glob: True, [print, lambda: True]])
def test_a_callback_that_does_not_accept_the_metrics_is_refused_before_training(callback):
    ppo = PPO("auto", "CartPole-v1", **TINY)
    with pytest.raises(UserError, match="callback must accept one argument"):
        ppo.learn(64, callback=callback)
    assert ppo.num_timesteps == 0


def test_progress_bar_is_true_or_false():
    with pytest.raises(UserError, match="progress_bar must be True or False"):
        PPO("auto", "CartPole-v1", **TINY).learn(64, progress_bar="no")


@pytest.mark.peers
def test_a_notebook_gets_one_bar_which_is_redrawn():
    """Without ipywidgets, and without more outputs than one."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    code = f"""from rl_lnlstm import PPO
ppo = PPO("auto", "CartPole-v1", **{TINY})
ppo.learn(2_000, progress_bar=True)
ppo.num_timesteps"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=300).execute()
    bar, value = [output for output in notebook.cells[0].outputs if output.output_type != "stream"]
    shown = bar["data"]["text/plain"]
    frames = f"{int(value['data']['text/plain']):,}"
    assert re.match(rf"█+  {frames}/{frames} frames  [\d,]+/s  return [\d.]+", shown), shown
    assert not [output for output in notebook.cells[0].outputs if "ipywidgets" in output.get("text", "")]
