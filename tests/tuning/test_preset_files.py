"""Preset files: what tune writes, train and PPO read; nothing else gets in."""

import dataclasses
import json

import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError
from rl_lnlstm.presets import PRESETS, preset, read_preset, write_preset
from tests.commands.small_run import train


@pytest.mark.parametrize("env_id", PRESETS)
def test_a_preset_survives_its_file(env_id, tmp_path):
    config = PPOConfig(**preset(env_id), seed=5)
    write_preset(tmp_path / "preset.json", dataclasses.asdict(config))
    found = read_preset(tmp_path / "preset.json")
    assert "seed" not in found, "whoever trains with it chooses the seed"
    assert PPOConfig(**found, seed=5) == config


BAD = {
    "damaged": '{"units": 12',
    "a list": "[1, 2]",
    "an unknown option": '{"unitz": 12}',
    "a wrong type": '{"units": "many"}',
    "out of range": '{"units": 0}',
    "impossible together": '{"num_steps": 10, "sequence_length": 3}',
    "code": "__import__('os').abort()",
    "not text": "\ud800",
    "nested": "[" * 100_000,
}
EXPECTED = {
    "an unknown option": "unknown option 'unitz'; did you mean units",
    "a wrong type": "units must be an integer of at least 1, got 'many'",
    "out of range": "units must be an integer of at least 1, got 0",
    "impossible together": "sequence_length must divide num_steps",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused(case, tmp_path):
    path = tmp_path / "preset.json"
    path.write_bytes(BAD[case].encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=f"preset {path}.*{EXPECTED.get(case, 'cannot be read')}"):
        read_preset(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_files_that_are_none(name, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_preset(tmp_path / name)


def test_train_takes_a_preset_file_and_flags_override_it(tmp_path, capsys):
    path = tmp_path / "preset.json"
    write_preset(path, {"env_id": "CartPole-v1", "gamma": 0.5, "update_epochs": 1, "encoder_layers": [8]})
    assert train(tmp_path / "run", "--preset", str(path), "--update-epochs", "2", "--eval-episodes", "0") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["env_id"], config["gamma"], config["encoder_layers"]) == ("CartPole-v1", 0.5, [8])
    assert config["update_epochs"] == 2
    assert "preset" not in config
    assert main(["train", "--resume", str(tmp_path / "run"), "--preset", str(path)]) == 2
    assert "leave out --preset" in capsys.readouterr().err
    assert main(["train", "--preset", str(tmp_path / "none")]) == 2
    assert main(["train", "--preset", str(path), "--help"]) == 0
    assert "(preset: 0.5)" in capsys.readouterr().out
