"""The command line of `tune`: mistakes are answered in one line, before Ray starts."""

import json
import re
import sys

import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.commands.options import parse
from rl_lnlstm.commands.tuning_options import read_sweep

SWEEP = {"env_id": "CartPole-v1", "gamma": 0.9, "trials": 7}


@pytest.fixture
def sweep(tmp_path):
    (tmp_path / "sweep.json").write_text(json.dumps({"options": SWEEP, "fixed": ["gamma"]}))
    return tmp_path


WRONG = {
    "--trials 0": "trials must be an integer of at least 1, got 0",
    "--parallel 0": "parallel must be an integer of at least 1 or None, got 0",
    "--env-id Nope-v0": "unknown environment id 'Nope-v0'",
    "--env-id CartPole-v1 --gamma 2": "gamma must be between 0 and 1, got 2",
    "--num-minibatches 7": "num_minibatches must divide the number of sequences",
    "--num-steps 32 --sequence-length 5": "sequence_length must divide num_steps",
    "--resume {0}/nothing": "is not the folder of a sweep to resume",
    "--resume {0} --env-id Acrobot-v1": "is another sweep: env_id CartPole-v1 -> Acrobot-v1",
    "--resume {0} --gamma 0.99": "is another sweep: gamma 0.9 -> 0.99",
    "--resume {0} --units 128": "is another sweep: it searches units",
    "--resume {0} --run-dir new": "leave out --run-dir",
    "--resume {0} --preset new": "leave out --preset",
    "--ray 127.0.0.1:1 --run-dir {0}/new": "nothing answers at 127.0.0.1:1",
    "--ray nonsense": "ray must be local, auto or HOST:PORT",
    "--workers 2": "unknown option --workers",
    "--run-dir {0}": "already holds a run or other files",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_mistakes_take_one_line(arguments, sweep, capsys):
    if "nothing answers" in WRONG[arguments]:
        pytest.importorskip("ray")
    assert main(["tune", *arguments.format(sweep).split()]) == 2
    message = capsys.readouterr().err
    assert WRONG[arguments] in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_there_must_be_something_to_search(capsys):
    fixed = "--learning-rate 1e-3 --gamma 0.9 --gae-lambda 0.9 --update-epochs 1 --clip-coef 0.2 --ent-coef 0 --units 8"
    fixed += " --shared-lstm --no-normalize-observations --normalize-rewards --num-steps 32 --sequence-length 32"
    assert main(["tune", *fixed.split(), "--num-minibatches", "1"]) == 2
    assert "nothing to search" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["ray.tune", "optuna"])
def test_a_missing_package_is_named(package, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray.tune", None if package == "ray.tune" else sys)
    monkeypatch.setitem(sys.modules, "optuna", None if package == "optuna" else sys)
    assert main(["tune", "--env-id", "CartPole-v1", "--run-dir", str(tmp_path / "new")]) == 2
    assert re.search(f'tune needs .*{package}.*: pip install "rl-lnlstm\\[tune\\]"', capsys.readouterr().err)
    assert not (tmp_path / "new").exists()


def test_defaults_come_from_the_sweep_that_is_resumed(sweep):
    options = parse(["tune", "--resume", str(sweep), "--trials", "9"])
    assert (options.env_id, options.gamma, options.trials) == ("CartPole-v1", 0.9, 9)
    assert read_sweep(sweep).fixed == {"gamma"}


def test_defaults_come_from_the_preset(tmp_path):
    options = parse(["tune", "--env-id", "PendulumNoVel-v1"])
    assert (options.gamma, options.sequence_length, options.trials) == (0.95, 64, 50)
    assert parse(["tune", "--env-id", "PendulumNoVel-v1", "--num-steps", "32"]).sequence_length is None
    (tmp_path / "preset.json").write_text('{"env_id": "Acrobot-v1", "gamma": 0.5}')
    options = parse(["tune", "--preset", str(tmp_path / "preset.json"), "--units", "8"])
    assert (options.env_id, options.gamma, options.units) == ("Acrobot-v1", 0.5, 8)
