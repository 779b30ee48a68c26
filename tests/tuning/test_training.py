"""The training of a trial: a trial that was stopped anywhere goes on, and reports the same as one that was not."""

import contextlib
import shutil

import pytest

from rl_lnlstm.errors import RunFailure
from rl_lnlstm.tuning.records import CHECKPOINT, POLICY, read_scores
from rl_lnlstm.tuning.training import train

OPTIONS = {
    "policy": "auto",
    "env_id": "CartPole-v1",
    **{"num_envs": 2, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "units": 4, "head_layers": ()},
    **{"shared_lstm": True, "jit_compile": False, "total_timesteps": 400},
}


class Stopped(Exception):
    pass


def reports(folder, stop_after=None, evaluate=0):
    """Trains the trial in `folder`, and returns what it reported until it was stopped."""
    received = []

    def receive(report, last):
        received.append((report, last))
        if len(received) == stop_after:
            raise Stopped

    with contextlib.suppress(Stopped):
        train(folder, OPTIONS, evaluate, receive)
    return received


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trial")
    return folder, reports(folder, evaluate=3)


def test_reports_come_until_the_end(whole):
    folder, received = whole
    frames = [report.frames for report, _ in received[:-1]]
    assert frames == sorted(set(frames))
    assert 8 <= len(frames) <= 20
    assert frames[-1] >= 400
    assert [last for _, last in received] == [False] * len(frames) + [True], "the last one follows the evaluation"
    scores = read_scores(folder)
    assert scores.reports == [report for report, _ in received[:-1]]
    assert len(scores.evaluation) == 3
    assert (folder / POLICY).is_dir()


@pytest.mark.parametrize("damage", ["nothing", "checkpoint"])
def test_a_stopped_trial_goes_on(damage, whole, tmp_path):
    _, expected = whole
    first = reports(tmp_path, stop_after=5)
    if damage == "checkpoint":
        next((tmp_path / CHECKPOINT).glob("*.npz")).write_bytes(b"")
    second = reports(tmp_path, evaluate=3)
    if damage == "nothing":
        assert second[0][0] == first[-1][0], "the sweep may not have received it"
        second = [*first, *second[1:]]
    assert second == expected


def test_a_trial_that_ended_reports_again(whole, tmp_path):
    folder, expected = whole
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (last,) = reports(tmp_path)
    assert last == (expected[-1][0], True)


def test_a_trial_in_which_no_episode_ends_fails(tmp_path):
    options = {**OPTIONS, "env_id": "Pendulum-v1", "total_timesteps": 64}
    with pytest.raises(RunFailure, match="no episode ended in 64 frames"):
        train(tmp_path, options, 0, lambda report, last: None)
