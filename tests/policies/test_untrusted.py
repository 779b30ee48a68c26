"""Malicious files: loading a policy executes and writes nothing, and allocates no more than the files contain."""

import contextlib
import dataclasses
import json
import pickle
import resource
import shutil
import sys
import tracemalloc

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_lnlstm import UserError, load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.commands.training_options import TrainOptions, saved_options
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.policies import MlpLnLstmPolicy
from tests.policies.malicious import KIT, Executes, describe, entries, header, store

BOX = gym.spaces.Box(-np.inf, np.inf, (3,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "policy"
    MlpLnLstmPolicy(BOX, gym.spaces.Discrete(4), units=4, encoder_layers=(5,), normalize_observations=True).save(path)
    yield path
    assert load_policy(path).units == 4, "what was refused leaves no traces"


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "inner" / "policy")


@pytest.fixture(scope="module", autouse=True)
def trap(tmp_path_factory):
    """A module that can be imported, and must not be."""
    path = tmp_path_factory.mktemp("modules")
    (path / "imported_by_a_policy.py").write_text("raise SystemExit('a file had this imported')\n")
    sys.path.insert(0, str(path))
    yield
    sys.path.remove(str(path))


def everything_in(path):
    return sorted(str(entry.relative_to(path)) for entry in path.rglob("*"))


def peak_megabytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.many_cases
@pytest.mark.parametrize("make", KIT, ids=lambda make: make.__name__)
def test_a_file_that_was_made_up_is_refused_and_does_nothing(make, saved, folder, tmp_path):
    make(folder)
    there, modules, peak = everything_in(tmp_path), set(sys.modules), peak_megabytes()
    with pytest.raises(UserError):
        load_policy(folder)
    assert everything_in(tmp_path) == there, "nothing is written"
    assert not {name for name in sys.modules if name.startswith("imported_by")} - modules, "nothing is imported"
    assert peak_megabytes() - peak < 400, "nothing of the size that the file claims is allocated"


def test_files_beside_a_policy_are_left_alone(folder, tmp_path):
    (folder / "model.keras").write_bytes(pickle.dumps(Executes(tmp_path / "executed")))
    (folder / "__init__.py").write_text("raise SystemExit('executed')")
    (folder / "envs.pkl").write_bytes(pickle.dumps(Executes(tmp_path / "executed")))
    assert load_policy(folder).units == 4
    assert not (tmp_path / "executed").exists()


NOT_TRUSTED = [
    {"env_id": "imported_by_a_policy:CartPole-v1"},
    {"env_id": ["CartPole-v1"]},
    {"env_id": 3},
    {"env_id": None},
    {"env_id": "CartPole-v1" * 100},
    {"wrappers": ["imported_by_a_policy:Wrapper"]},
    {"wrappers": [" RecordVideo('written')"]},
    {"wrappers": ["gymnasium.wrappers:RecordVideo('written')"]},
    {"wrappers": [["TimeLimit(3)"]]},
    {"wrappers": "RecordVideo('written')"},
    {"env_kwargs": {"render_mode": ["human"]}},
]


@pytest.mark.parametrize("config", NOT_TRUSTED, ids=str)
def test_evaluate_imports_and_writes_nothing_that_a_configuration_names(config, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, tmp_path / "run" / "policy")
    (tmp_path / "run" / "config.json").write_text(json.dumps({"env_id": "CartPole-v1", **config}))
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert f"--{next(iter(config)).replace('_', '-')}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# ----------------------------------------------------------------------------------------------------------- fuzzing


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2**31, 2**63, 10**30, 10**400])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["Box", "Discrete", "float32", "get", "relu", "../..", "a:b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
FUZZING = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def with_change(data, tree):
    """`tree`, one part of it replaced, removed or doubled."""
    if isinstance(tree, dict | list) and tree and data.draw(st.integers(0, 3)):
        keys = sorted(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = data.draw(st.sampled_from(keys))
        changed = tree.copy()
        if data.draw(st.integers(0, 5)) == 0:
            del changed[key]
        else:
            changed[key] = with_change(data, tree[key])
        return changed
    return data.draw(ANYTHING)


@pytest.mark.slow
@FUZZING
@given(st.data())
def test_whatever_a_description_says_loading_gives_a_policy_or_our_error(saved, tmp_path_factory, data):
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("fuzz") / "policy")
    description = with_change(data, json.loads((folder / "policy.json").read_text()))
    (folder / "policy.json").write_text(json.dumps(description))
    peak = peak_megabytes()
    try:
        policy = load_policy(folder)
    except UserError:
        pass
    else:
        assert len(policy.get_weights()) == len(np.load(folder / "weights.npz").files)
    assert peak_megabytes() - peak < 400


@pytest.mark.slow
@FUZZING
@given(st.data())
def test_whatever_bytes_the_weights_are_loading_gives_a_policy_or_our_error(saved, tmp_path_factory, data):
    folder = shutil.copytree(saved, tmp_path_factory.mktemp("fuzz") / "policy")
    content = bytearray((folder / "weights.npz").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        count = data.draw(st.integers(0, 8))
        content[at : at + count] = data.draw(st.binary(max_size=8))
    (folder / "weights.npz").write_bytes(content)
    with contextlib.suppress(UserError):
        assert load_policy(folder).units == 4


@FUZZING
@given(st.data())
def test_whatever_a_configuration_says_it_is_one_or_our_error(tmp_path_factory, data):
    run_dir = tmp_path_factory.mktemp("fuzz")
    config = {name: value for name, value in dataclasses.asdict(TrainOptions()).items() if name != "run_dir"}
    del config["resume"]
    (run_dir / "config.json").write_text(json.dumps(with_change(data, config)))
    with contextlib.suppress(UserError):
        options = saved_options(run_dir)
        PPOConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(PPOConfig)})


# ------------------------------------------------------------------------------- what a description may claim in all


def _all_leaves(folder, **claims):
    def change(tree):
        for name in ("observation_space", "action_space"):
            tree[name] = {"type": "Tuple", "spaces": [claims] * 20}

    describe(folder, change)


def _nested(folder):
    def change(tree):
        space = {"type": "Discrete", "n": 2, "start": 0}
        for _ in range(9):
            space = {"type": "Tuple", "spaces": [space] * 4}
        tree["observation_space"] = space

    describe(folder, change)


def _no_bytes(folder):
    store(folder, {**entries(folder), "extra.npy": header("|V0", (10**12,))})
    describe(folder, lambda tree: tree["arguments"].update(units=10**8))


LARGE = {
    "many boxes": lambda folder: _all_leaves(folder, type="Box", shape=[2**20], dtype="float32", low=0, high=1),
    "many bits": lambda folder: _all_leaves(folder, type="MultiBinary", shape=[2**20], flat=True),
    "many values": lambda folder: _all_leaves(folder, type="Discrete", n=2**20, start=0),
    "many components": lambda folder: _all_leaves(
        folder, type="MultiDiscrete", shape=[50_000], dtype="int64", nvec=1, start=0
    ),
    "a wide component": lambda folder: _all_leaves(
        folder, type="MultiDiscrete", shape=[5000], dtype="int64", nvec=[1] * 4999 + [5000], start=0
    ),
    "nesting": _nested,
    "an array of no bytes": _no_bytes,
    "many layers": lambda folder: describe(folder, lambda tree: tree["arguments"].update(num_layers=20)),
    "a long description": lambda folder: describe(folder, lambda tree: tree.update(comment="[]," * 10**6)),
}


@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_a_description_that_claims_too_much_is_refused_before_anything_is_built(make, folder, monkeypatch):
    make(folder)

    def built(*_arguments, **_options):
        raise AssertionError("something was built")

    monkeypatch.setattr(MlpLnLstmPolicy, "make_encoder", built)
    tracemalloc.start()
    with pytest.raises(UserError) as error:
        load_policy(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20
    assert "something was built" not in str(error.value)


def test_what_a_description_says_is_printed_escaped_and_cut(folder):
    for change in (
        lambda tree: tree.update(format="\x1b[31m" * 1000),
        lambda tree: tree.update(policy="\x1b[31m" * 1000),
        lambda tree: tree["observation_space"].update({"\x1b[31m": 1}),
        lambda tree: tree["arguments"].update(activation="\x1b[31m" * 1000),
        lambda tree: tree["arguments"].update({"\x1b[31m" * 1000: 1}),
    ):
        broken = shutil.copytree(folder, folder.with_name("broken"), dirs_exist_ok=True)
        describe(broken, change)
        with pytest.raises(UserError) as error:
            load_policy(broken)
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 2100 + len(str(broken))
