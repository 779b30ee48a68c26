"""Parsing command lines, help texts and error messages."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import rl_lnlstm
from rl_lnlstm.commands import main
from rl_lnlstm.commands.options import parse
from rl_lnlstm.commands.training_options import TrainOptions
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.other_names import OTHER_NAMES


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
    assert parsed("--env-kwargs", "fast=false", "slow=true").env_kwargs == {"fast": False, "slow": True}
    assert parsed("--learning-rate", "1e-4", "--no-anneal-lr").learning_rate == 1e-4
    assert parsed("--env-id", "Pendulum-v1", "--units", "7").units == 7


@pytest.mark.parametrize("command", ["train", "tune"])
def test_keyword_arguments_replace_those_of_the_preset(command, capsys):
    words = [command, "--env-id", "ALE/Pong-v5"]
    assert parse(words).env_kwargs == {"stack_num": 1}
    assert parse([*words, "--env-kwargs", "frameskip=4"]).env_kwargs == {"frameskip": 4}
    assert parse([*words, "--env-kwargs"]).env_kwargs == {}
    assert main([*words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "(preset: stack_num=1)" in shown
    assert "--stack-num" not in shown


def test_a_keyword_argument_may_have_the_name_of_an_option(tmp_path):
    env_kwargs = {"seed": 3, "gamma": 0.5, "units": "m"}
    (tmp_path / "config.json").write_text(json.dumps(PPOConfig(env_kwargs=env_kwargs).to_json()))
    assert parse(["train", "--resume", str(tmp_path)]).env_kwargs == env_kwargs


def test_values_of_env_kwargs_that_look_like_options_are_named(capsys):
    assert parse(["train", "--env-kwargs", "penalty=-1e-3"]).env_kwargs == {"penalty": -1e-3}
    assert main(["train", "--env-kwargs", "name=-x"]) == 2
    assert capsys.readouterr().err == "error: --env-kwargs: the value of name must not begin with a hyphen, got '-x'\n"


@pytest.mark.parametrize("command", ["train", "tune"])
def test_none_is_a_value_wherever_help_offers_it(command):
    assert parse([command, "--preset", "None", "--resume", "None"]) == parse([command])
    assert parse(["evaluate", "run", "--env-kwargs", "None"]).env_kwargs is None


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --seed 0.5", "--seed must be an integer of at least 0, got '0.5'"),
        ("train --num-envs x", "--num-envs must be an integer of at least 1, got 'x'"),
        ("train --num_envs=x", "--num-envs must be an integer of at least 1, got 'x'"),
        ("train --learning-rate abc", "--learning-rate must be greater than 0, got 'abc'"),
        ("train --target-kl abc", "--target-kl must be greater than 0 or None, got 'abc'"),
        ("train --gamma 1.5", "--gamma must be between 0 and 1, got 1.5"),
        ("train --head-layers 64 x", "--head-layers must be a sequence, each an integer of at least 1, got (64, 'x')"),
        (
            "train --vectorization fast",
            "--vectorization must be one of 'auto', 'sync', 'async'",
        ),
        ("train --seed", "--seed needs a value"),
        ("train --preset", "--preset needs a value"),
        ("train --preset=", "--preset needs a value"),
        ("train --resume --total-timesteps 5", "--resume needs a value"),
        ("tune --resume --trials 5", "--resume needs a value"),
        ("train --seed --units 3", "--seed needs a value"),
        ("train --seed 1 2", "unexpected '2'"),
        ("train CartPole-v1", "unexpected 'CartPole-v1'"),
        ("train --anneal-lr False", "--anneal-lr takes no value, got False: write --anneal-lr or --no-anneal-lr"),
        ("train --no-units 3", "unknown option --no-units"),
        ("train --env-kwargs length=5 fast", "--env-kwargs needs pairs such as length=5, got 'fast'"),
        ("evaluate", "RUN_DIR must be given"),
        ("evaluate --json", "RUN_DIR must be given"),
        ("evaluate one two", "unexpected 'two'"),
        ("evaluate run --seed -1", "--seed must be an integer of at least 0, got -1"),
        ("evaluate run --episode-seeds 1 b", "--episode-seeds must be a sequence, each an integer of at least 0 or N"),
        ("evaluate run --episode-seeds", "--episode-seeds needs at least one seed"),
        ("compare one", "SECOND must be given"),
        ("compare", "FIRST and SECOND must be given"),
        ("plot", "RUNS must be given"),
        ("plot run --format xml", "--format must be one of 'text', 'csv', 'json', got 'xml'"),
        ("build-kernel now", "unexpected 'now'"),
    ],
)
def test_a_wrong_value_is_answered_in_one_line(arguments, message, capsys):
    assert main(arguments.split()) == 2
    printed, told = capsys.readouterr()
    assert printed == ""
    assert told.startswith(f"error: {message}")
    assert told.count("\n") == 1


@pytest.mark.parametrize("name", [name for name in OTHER_NAMES if "`" in OTHER_NAMES[name]])
def test_a_name_of_another_library_is_answered_with_flags_that_exist(name, capsys):
    assert main(["train", f"--{name.replace('_', '-')}", "1"]) == 2
    told = capsys.readouterr().err
    flags = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(TrainOptions)}
    named = set(re.findall(r"--[a-z-]+", told.partition("here it is")[2]))
    assert named
    assert named <= flags


def test_words_without_a_flag_may_stand_anywhere():
    for arguments in ("run --episodes 5", "--episodes 5 run", "--json run --episodes=5"):
        assert parse(["evaluate", *arguments.split()]).run_dir == Path("run")
    assert parse(["plot", "a", "b", "--format", "csv", "c"]).runs == (Path("a"), Path("b"), Path("c"))
    assert parse(["train", "--encoder-layers", "None", "--wrappers"]).encoder_layers is None
    assert parse(["train", "--log-std-init", "-2"]).log_std_init == -2


@pytest.mark.parametrize("num_envs", ["1", "3", "5"])
def test_a_presets_minibatches_adapt_to_another_rollout(num_envs):
    """CartPoleNoVel-v1's preset has 4, which does not divide the sequences of so many environments."""
    for command in ("train", "tune"):
        options = parse([command, "--num-envs", num_envs])
        PPOConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(PPOConfig)})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--num-envs 32", (4, 128)),
        ("--num-envs=8", (4, 128)),
        ("--num-steps 256", (4, 128)),
        ("--num-steps 96", (4, None)),
        ("--num-steps 100 --num-envs 3", (None, None)),
        ("--sequence-length 64", (4, 64)),
        ("--num-minibatches 2", (2, 128)),
        ("--num-envs 5 --num-minibatches 1", (1, 128)),
        ("--num-steps 1e2", (4, None)),
        ("--num-envs 8 --num-envs 3", (None, 128)),
    ],
)
def test_the_other_sizes_of_a_preset_stay_where_they_divide(arguments, expected):
    for command in ("train", "tune"):
        options = parse([command, *arguments.split()])
        assert (options.num_minibatches, options.sequence_length) == expected


@pytest.mark.parametrize(("num_minibatches", "expected"), [(None, 6), (4, 4)])
def test_minibatches_of_a_resumed_run_adapt_to_other_environments_if_nobody_chose_them(
    num_minibatches, expected, tmp_path
):
    config = PPOConfig(num_envs=8, num_steps=128, num_minibatches=num_minibatches)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    assert parse(["train", "--resume", str(tmp_path)]).minibatches == (num_minibatches or 8)
    assert parse(["train", "--resume", str(tmp_path), "--num-envs", "6"]).minibatches == expected


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize("num_minibatches", [None, 8])
def test_a_saved_sequence_length_that_is_impossible_is_refused(value, num_minibatches, tmp_path, capsys):
    saved = {**PPOConfig().to_json(), "sequence_length": value, "num_minibatches": num_minibatches}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert f"sequence_length must divide num_steps, got sequence_length={value}" in capsys.readouterr().err


def test_the_last_flag_counts_for_the_preset_too():
    assert parse(["train", "--env-id", "CartPoleNoVel-v1", "--env-id", "PendulumNoVel-v1"]).num_steps == 256
