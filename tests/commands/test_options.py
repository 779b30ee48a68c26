"""Parsing command lines, help texts and error messages."""

import dataclasses

import pytest

import rl_lnlstm
from rl_lnlstm.commands import main
from rl_lnlstm.commands.options import TrainOptions, parse
from rl_lnlstm.config import PPOConfig


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


@pytest.mark.parametrize("num_envs", ["1", "3", "5"])
def test_a_presets_minibatches_adapt_to_another_rollout(num_envs):
    """CartPoleNoVel-v1's preset has 2, which does not divide the sequences of so many environments."""
    options = parse(["train", "--num-envs", num_envs])
    PPOConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(PPOConfig)})
