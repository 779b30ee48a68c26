"""Policies and runs that earlier versions saved still load, and act as they did.

`data/earlier` was written by the commit before the package was divided into rooms. Its policies were saved with random
weights, and `expected.json` holds the values and the most probable actions that they gave there.
"""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from gymnasium.vector import VectorWrapper
from gymnasium.vector.utils import batch_space

from rl_lnlstm import PPOConfig, load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.commands.training_options import saved_options
from rl_lnlstm.envs import make_vec, restore_snapshot, snapshot, take_snapshot
from rl_lnlstm.presets import read_preset, write_preset

EARLIER = Path(__file__).parent / "data" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_a_policy_acts_as_it_did(name):
    policy = load_policy(EARLIER / name)
    space = batch_space(policy.observation_space, 2)
    space.seed(0)
    observations = [space.sample() for _ in EXPECTED[name]["values"]]
    state = policy.initial_state(2)
    for t, (values, actions) in enumerate(zip(EXPECTED[name]["values"], EXPECTED[name]["actions"], strict=True)):
        starts = np.array([t == 0, t == 1])
        np.testing.assert_allclose(policy.value(observations[t], state, starts), values, atol=1e-5)
        got, state = policy.predict(observations[t], state, starts, deterministic=True)
        for part, expected in zip(tf.nest.flatten(got), actions, strict=True):
            np.testing.assert_allclose(part, expected, atol=1e-5)


def test_a_snapshot_may_have_attributes_that_were_renamed():
    """A guard inside another vector wrapper is pickled with the snapshot."""
    envs = make_vec(VectorWrapper(make_vec("CartPole-v1", 2)))
    envs.reset(seed=0)
    attributes = vars(envs.env.env)
    for earlier, name in snapshot.RENAMED_ATTRIBUTES.items():
        attributes[earlier] = attributes.pop(name)
    restore_snapshot(envs, take_snapshot(envs))
    assert not snapshot.RENAMED_ATTRIBUTES.keys() & vars(envs.env.env).keys()
    assert envs.env.env.num_calls == 1


@pytest.mark.parametrize("earlier", snapshot.RENAMED, ids=".".join)
def test_snapshots_may_name_what_was_renamed(earlier):
    module, name = earlier
    found = snapshot.from_bytes(f"c{module}\n{name}\n.".encode())  # a pickle of the object of this name
    assert (found.__module__, found.__qualname__) == snapshot.RENAMED[earlier]


def rows(run_dir):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_resumed(tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(EARLIER / "run", run_dir)
    before = rows(run_dir)
    assert main(["train", "--resume", str(run_dir), "--total-timesteps", "384", "--eval-episodes", "0"]) == 0
    after = rows(run_dir)
    assert len(after) > len(before)
    for old, new in zip(before, after, strict=False):
        assert {name: float(new[name]) for name in old} == pytest.approx(
            {name: float(old[name]) for name in old}, nan_ok=True
        )


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"num_envs": 8, "num_steps": 128, "sequence_length": 64}, (64, 4)),
        ({"num_envs": 8, "num_steps": 128, "sequence_length": None}, (128, 4)),
        ({"num_envs": 1, "num_steps": 128, "sequence_length": None}, (32, 4)),
        ({"num_envs": 7, "num_steps": 7, "sequence_length": 7}, (7, 1)),
    ],
)
def test_a_run_keeps_the_defaults_that_it_started_with(tmp_path, saved, expected):
    config = json.loads((EARLIER / "run" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_minibatches": None, **saved}))
    options = saved_options(tmp_path)
    assert (options.sequence_length, options.num_minibatches) == expected
    assert not options.vtrace


def test_a_tuned_preset_keeps_the_algorithm_that_it_was_tuned_for(tmp_path):
    path, short = tmp_path / "preset.json", tmp_path / "short.json"
    options = dataclasses.asdict(PPOConfig())
    write_preset(path, {name: value for name, value in options.items() if name != "vtrace"})
    assert read_preset(path)["vtrace"] is False
    write_preset(path, options)
    assert read_preset(path)["vtrace"] is True
    write_preset(short, {"learning_rate": 1e-3})  # nothing says that an earlier version wrote it
    assert read_preset(short) == {"learning_rate": 1e-3}
