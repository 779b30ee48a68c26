"""Malicious files: loading a policy executes and writes nothing, and allocates no more than the files contain."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import resource
import shutil
import sys
import tracemalloc
import zipfile

import gymnasium as gym
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl_lnlstm import UserError, load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.commands.training_options import TrainOptions, saved_options
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.policies import MlpLnLstmPolicy

BOX = gym.spaces.Box(-np.inf, np.inf, (3,))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "policy"
    MlpLnLstmPolicy(BOX, gym.spaces.Discrete(4), units=4, encoder_layers=(5,), normalize_observations=True).save(path)
    return path


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "inner" / "policy")


class Executes:
    """Leaves a file, when unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def describe(folder, change):
    description = json.loads((folder / "policy.json").read_text())
    change(description)
    (folder / "policy.json").write_text(json.dumps(description))


def entries(folder):
    with zipfile.ZipFile(folder / "weights.npz") as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def store(folder, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(folder / "weights.npz", "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def header(dtype, shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def object_array(folder):
    contents = entries(folder)
    file = io.BytesIO()
    np.save(file, np.array([Executes(folder.parents[1] / "executed")], object), allow_pickle=True)
    store(folder, {**contents, next(iter(contents)): file.getvalue()})


def pickle_for_weights(folder):
    (folder / "weights.npz").write_bytes(pickle.dumps(Executes(folder.parents[1] / "executed")))


def pickle_for_json(folder):
    (folder / "policy.json").write_bytes(pickle.dumps(Executes(folder.parents[1] / "executed"), 0))


def pickle_for_an_entry(folder):
    contents = entries(folder)
    store(folder, {**contents, next(iter(contents)): pickle.dumps(Executes(folder.parents[1] / "executed"))})


def outside_names(folder):
    contents = entries(folder)
    executed = header("<f4", (1,)) + bytes(4)
    store(folder, {**contents, "../../executed": executed, str(folder.parents[1] / "executed"): executed})


def lambda_layer(folder):
    """A Keras model that has a Lambda in it, beside the policy and in place of its parts."""
    target = str(folder.parents[1] / "executed")
    model = keras.Sequential([keras.Input([3]), keras.layers.Lambda(lambda x: (os.mknod(target), x)[1])])
    config = json.loads(model.to_json())
    (folder.parents[1] / "executed").unlink(missing_ok=True)  # making the model has called it
    describe(folder, lambda d: d["arguments"].update(encoder=config))


def lambda_for_activation(folder):
    config = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "open"}}
    describe(folder, lambda d: d["arguments"].update(activation=config))


def custom_object(folder):
    describe(folder, lambda d: d["arguments"].update(activation="imported_by_a_policy>Layer"))


def function_of_the_module(folder):
    describe(folder, lambda d: d["arguments"].update(activation="deserialize"))


def class_by_name(folder):
    describe(folder, lambda d: d.update(policy="imported_by_a_policy.Policy"))


def dtype_by_name(folder):
    describe(folder, lambda d: d["observation_space"].update(dtype="O"))


def compressed(folder):
    store(folder, entries(folder), zipfile.ZIP_DEFLATED)


def bomb(folder):
    """A gigabyte of zeros in a megabyte, with a policy whose weights are of that size."""
    contents = entries(folder)
    name = next(iter(contents))
    path = folder / "weights.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(name, "w") as file:
        file.write(header("<f4", (2**28,)))
        for _ in range(1024):
            file.write(bytes(2**20))
    describe(folder, lambda d: d["arguments"].update(units=2**13))


def large_header(folder):
    contents = entries(folder)
    name = next(iter(contents))
    store(folder, {**contents, name: header("<f4", (2**40, 2**24)) + bytes(64)})


def overflowing_header(folder):
    contents = entries(folder)
    store(folder, {**contents, next(iter(contents)): header("<f4", (2**32, 2**32))})


def overlapping_entries(folder):
    """Every entry of the archive is the same bytes, claimed many times."""
    content = entries(folder)
    store(folder, {"a.npy": next(iter(content.values()))})
    data = (folder / "weights.npz").read_bytes()
    start = data.index(b"PK\x01\x02")
    entry = data[start : data.index(b"PK\x05\x06")]
    many = b"".join(entry.replace(b"a.npy", b"%c.npy" % letter) for letter in range(97, 117))
    end = b"PK\x05\x06" + bytes(4) + (20).to_bytes(2, "little") * 2 + len(many).to_bytes(4, "little")
    (folder / "weights.npz").write_bytes(data[:start] + many + end + start.to_bytes(4, "little") + bytes(2))


def pipe(folder):
    (folder / "weights.npz").unlink()
    os.mkfifo(folder / "weights.npz")


def endless_device(folder):
    (folder / "policy.json").unlink()
    (folder / "policy.json").symlink_to("/dev/zero")


def secret_elsewhere(folder):
    (folder / "weights.npz").unlink()
    (folder / "weights.npz").symlink_to("/etc/passwd")


def many_units(folder):
    describe(folder, lambda d: d["arguments"].update(units=10**9))


def quadratic_units(folder):
    """Every number for itself is below what the file holds."""
    describe(folder, lambda d: d["arguments"].update(units=250, encoder_layers=[250] * 4))


def huge_integer(folder):
    describe(folder, lambda d: d["arguments"].update(units=10**4000))


def many_layers(folder):
    describe(folder, lambda d: d["arguments"].update(head_layers=[1] * 10**5))


def large_space(folder):
    describe(folder, lambda d: d["observation_space"].update(shape=[10**5, 10**6], low=0, high=1))


def large_action_space(folder):
    describe(folder, lambda d: d["action_space"].update(n=10**12))


def action_space_of_some_size(folder):
    describe(folder, lambda d: d["action_space"].update(n=2**26))


def not_a_number(folder):
    text = (folder / "policy.json").read_text()
    (folder / "policy.json").write_text(text.replace('"units": 4', '"units": NaN'))


def deep_nesting(folder):
    (folder / "policy.json").write_text("[" * 10**5 + "]" * 10**5)


def large_json(folder):
    (folder / "policy.json").write_text("[" + "0," * 2**24 + "0]")


def encrypted_entry(folder):
    data = bytearray((folder / "weights.npz").read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (folder / "weights.npz").write_bytes(data)


KIT = [
    *(object_array, pickle_for_weights, pickle_for_json, pickle_for_an_entry, outside_names, lambda_layer),
    *(lambda_for_activation, custom_object, function_of_the_module, class_by_name, dtype_by_name, compressed, bomb),
    *(large_header, overflowing_header, overlapping_entries, pipe, endless_device, secret_elsewhere, many_units),
    *(quadratic_units, huge_integer, many_layers, large_space, large_action_space, action_space_of_some_size),
    *(not_a_number, deep_nesting, large_json, encrypted_entry),
]


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
    assert load_policy(saved).units == 4, "what was refused leaves no traces"
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
FUZZING = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


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
