"""What `export` refuses, with an error that names it."""

import os
import re
import sys

import numpy as np
import pytest

import rl_lnlstm
from rl_lnlstm.commands import main
from rl_lnlstm.errors import UserError
from rl_lnlstm.exporting import verification
from rl_lnlstm.exporting.verification import largest_difference
from rl_lnlstm.policies import MlpLnLstmPolicy, MultiInputLnLstmPolicy
from tests.exporting.test_export import VECTOR, S, make, written


def test_nan_in_any_output_is_a_difference(tmp_path, monkeypatch):
    policy = make("box")
    graph = written(policy, tmp_path / "policy.onnx")
    right, played = {}, verification._played
    monkeypatch.setattr(verification, "_played", lambda *arguments: right.update(played(*arguments)) or right)
    assert largest_difference(policy, graph, "onnx", tmp_path / "policy.onnx", 2, 5) < 1e-5
    for name, array in right.items():
        wrong = {**right, name: np.full_like(array, np.nan)}
        monkeypatch.setattr(verification, "_played", lambda *_, wrong=wrong: wrong)
        assert np.isnan(largest_difference(policy, graph, "onnx", tmp_path / "policy.onnx", 2, 5)), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["policy.onxx"], "policy.onxx does not tell the format: .*--format.*, one of onnx, saved_model, tflite"),
        (["policy.onnx", "--batch", "0"], "--batch"),
        (["folder", "--format", "onnx"], "onnx is written to a file, and .*folder is a folder"),
        (["pipe", "--format", "onnx"], "onnx is written to a file, and .*pipe is a device or a pipe"),
        (["file", "--format", "saved_model"], "a SavedModel is a folder, and .*file is something else"),
        (["policy.onnx", "--action-masks"], "action masks are for Discrete.*Box"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make("gsde").save("policy")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    os.mkfifo("pipe")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "policy", *arguments]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error), error
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unknown_extension_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"policy\.pt does not tell the format: .* one of onnx, saved_model, tflite"):
        rl_lnlstm.export(make("discrete"), tmp_path / "policy.pt")
    assert not list(tmp_path.iterdir())


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(UserError, match=r'onnx needs .*tf2onnx.*: pip install "rl-lnlstm\[export\]"'):
        rl_lnlstm.export(make("discrete"), tmp_path / "policy.onnx")


def test_names_that_clash_are_refused(tmp_path):
    space = S.Dict({"a b": VECTOR, "a_b": VECTOR})
    policy = MultiInputLnLstmPolicy(space, S.Discrete(2), units=8)
    with pytest.raises(UserError, match="observation_a_b"):
        rl_lnlstm.export(policy, tmp_path / "policy.onnx")
    box = S.Box(-1, 1, (1,))
    for actions in (S.Dict({"left arm": box, "left_arm": box}), S.Dict({"a": S.Dict({"b": box}), "a_b": box})):
        policy = MlpLnLstmPolicy(VECTOR, actions, units=8)
        with pytest.raises(UserError, match=r"both be exported as action_(left_arm|a_b)"):
            rl_lnlstm.export(policy, tmp_path / "policy.onnx")
