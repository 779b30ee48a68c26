"""`train --pretrain`: from recorded episodes to a run."""

import json

import numpy as np
import pytest

from rl_lnlstm import load_policy, pretrain
from rl_lnlstm.commands import main
from tests.commands.small_run import train


@pytest.fixture(scope="module")
def episodes(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demonstrations") / "episodes"
    assert main(["evaluate", str(run), "--episodes", "6", "--max-steps", "40", "--record", str(folder)]) == 0
    return folder


def test_a_run_starts_from_the_episodes_of_another_one(run, episodes, tmp_path, capsys):
    for name in ("one", "again"):
        assert train(tmp_path / name, "--pretrain", str(episodes), "--eval-episodes", "0") == 0
    assert f"pretrained on 6 episodes of {episodes}: loss " in capsys.readouterr().err
    assert json.loads((tmp_path / "one" / "config.json").read_text())["pretrain"] == str(episodes)
    one, again, without = (load_policy(path).get_weights() for path in (tmp_path / "one", tmp_path / "again", run))
    assert all(np.array_equal(*pair) for pair in zip(one, again, strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(one, without, strict=True))
    resume = ["train", "--resume", str(tmp_path / "one"), "--total-timesteps", "330", "--eval-episodes", "0"]
    assert main([*resume, "--pretrain", "elsewhere"]) == 2
    assert "pretraining is done before the first frame, and cannot be changed" in capsys.readouterr().err
    assert main(resume) == 0
    assert "pretrained on" not in capsys.readouterr().err


def test_pretraining_compiles_only_if_training_does(episodes, tmp_path, monkeypatch):
    compiled = []

    def spy(ppo, folder, **options):
        compiled.append(options["jit_compile"])
        return pretrain(ppo, folder, **options)

    monkeypatch.setattr("rl_lnlstm.commands.train.pretrain", spy)
    assert train(tmp_path / "run", "--pretrain", str(episodes), "--no-jit-compile", "--eval-episodes", "0") == 0
    assert compiled == [False]


def test_episodes_that_cannot_be_used_leave_nothing_behind(episodes, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder, environment, message in (
        (tmp_path / "empty", [], "holds no episodes"),
        (episodes, ["--env-id", "Acrobot-v1"], "episode 0: got observations of shape"),
    ):
        assert train(tmp_path / "run", *environment, "--pretrain", str(folder)) == 2
        printed = capsys.readouterr().err
        assert message in printed
        assert "Traceback" not in printed
        assert not (tmp_path / "run").exists()
