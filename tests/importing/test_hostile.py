"""Hostile and damaged agents: nothing is executed or written, memory is not exhausted, the error is one line."""

import json
import pickle
import pickletools
import struct
import sys
import tracemalloc

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import UserError, import_sb2
from rl_lnlstm.commands import main
from rl_lnlstm.importing.pickles import plain_pickle
from rl_lnlstm.importing.plain_values import NotPlainData, array_of
from tests.importing.sb2_agent import data_of, pickled_instances, random_agent, vecnormalize, write_zip

BOX = gym.spaces.Box(-np.inf, np.inf, (3,))
AGENT = random_agent(BOX, gym.spaces.Discrete(4), units=4, layers=(5,))
MANY = 30_000


class Calls:
    """Becomes a call of `function(*arguments)` in a pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def raw(*instructions):
    return b"\x80\x04" + b"".join(instructions) + b"."


def text(words):
    return b"X" + struct.pack("<I", len(words)) + words.encode()


def leaves(path):
    """Pickles that leave the file `path` if they are executed."""
    command, code = f"touch {path}", f"open({str(path)!r}, 'w')"
    import os
    import subprocess

    objects = np.empty(1, object)
    objects[0] = Calls(os.system, command)
    return {
        "a call of os.system": pickle.dumps(Calls(os.system, command)),
        "a call of eval, protocol 0": pickle.dumps(Calls(eval, code), protocol=0),
        "a call of exec in a list in a dict": pickle.dumps({"a": [Calls(exec, code)]}),
        "a call of subprocess": pickle.dumps(Calls(subprocess.call, ["touch", str(path)])),
        "a call of getattr": pickle.dumps(Calls(getattr, Calls(__import__, "os"), "system")),
        "a call of what a call returned": raw(
            b"cbuiltins\ngetattr\ncbuiltins\n__import__\n",
            text("os") + b"\x85R" + text("system") + b"\x86R" + text(command) + b"\x85R",
        ),
        "an array of objects": pickle.dumps(objects),
        "an array of objects, as a state": vecnormalize(np.zeros(3), np.ones(3), old_obs=objects),
        "a call in the state of a VecNormalize": vecnormalize(np.zeros(3), np.ones(3), extra=Calls(os.system, command)),
        "a class with __setstate__": pickled_instances(
            lambda kinds: setstate(kinds.Evil, path), "stable_baselines.evil.Evil"
        ),
        "the instruction INST": b"(S'touch " + str(path).encode() + b"'\nios\nsystem\n.",
        "the instruction OBJ": raw(b"(", b"cos\nsystem\n", text(command), b"o"),
        "an extension": raw(b"\x82\x01", text(command), b"\x85R"),
        "a persistent id": raw(text(str(path)), b"Q"),
        "a text persistent id": b"P" + str(path).encode() + b"\n.",
        "a name with dots": raw(text("builtins"), text("eval.__call__"), b"\x93", text(code), b"\x85R"),
        "a name with a prefix": raw(text("gym.spaces.box.Box\nos"), text("system"), b"\x93", text(command), b"\x85R"),
        "a buffer outside of the file": raw(b"\x97"),
        "a codec with an effect": raw(b"c_codecs\nencode\n", text(code), text("unicode_escape"), b"\x86R"),
        "bytes of a gigantic size": raw(b"cbuiltins\nbytes\n", b"\x8a\x06" + (1 << 40).to_bytes(6, "little"), b"\x85R"),
        "NEWOBJ_EX": raw(b"cos\nsystem\n", b")", b"}", b"\x92"),
    }


def setstate(kind, path):
    def set_state(self, state):
        open(path, "w").close()

    kind.__setstate__ = set_state
    evil = kind()
    evil.__dict__["a"] = 1
    return evil


EXHAUSTING = {
    "a gigantic byte array": raw(b"\x96" + struct.pack("<Q", 1 << 40)),
    "gigantic bytes": raw(b"\x8e" + struct.pack("<Q", 1 << 62)),
    "a gigantic frame": raw(b"\x95" + struct.pack("<Q", 1 << 60)),
    "a memo with a gigantic index": raw(b"N" + b"r" + struct.pack("<I", 2**32 - 1)),
    "deeply nested tuples": raw(b"N" + b"\x85" * MANY),
    "deeply nested tuples as a key": raw(b"}", b"N" + b"\x85" * MANY, b"N", b"s"),
    "deeply nested lists": raw(b"(" * MANY + b"l" * MANY),
    "marks without end": raw(b"(" * MANY),
    "a list that contains itself": raw(b"]\x94h\x00a"),
    "the same text encoded a thousand times": raw(
        text("a" * MANY), b"\x94", text("latin1"), b"\x94", b"(", b"c_codecs\nencode\nh\x00h\x01\x86R" * 5000, b"t"
    ),
    "the same list copied a thousand times": raw(
        b"](" + b"".join(text("k") + b"N\x86" for _ in range(1000)) + b"e\x94",
        b"(" + b"ccollections\nOrderedDict\nh\x00\x85R" * 5000 + b"t",
    ),
    "more instructions than fit": raw(b"N0" * 60_000 + b"N"),
    "a number of a million digits": b"I" + b"1" * 1_000_000 + b"\n.",
    "an array larger than its bytes": pickle.dumps(np.zeros(3)).replace(b"K\x03\x85", b"J\xff\xff\xff\x7f\x85"),
    "an array with a negative size": pickle.dumps(np.zeros(3), 4).replace(b"K\x03\x85", b"J\xff\xff\xff\xff\x85"),
    "an array of records": pickle.dumps(np.zeros(3, [("a", "f8")])),
    "nothing": b"",
    "no end": b"\x80\x04N",
    "no instruction": b"\x80\x04\xff.",
    "a pop from an empty stack": raw(b"0"),
    "a text that is no Unicode": raw(b"X\x02\x00\x00\x00\xff\xfe"),
}


def is_one_line(error, limit=1000):
    message = str(error.value)
    return "\n" not in message and len(message) < limit


@pytest.mark.parametrize("case", leaves("nowhere"), ids=lambda case: case.replace(" ", "-"))
def test_nothing_in_a_pickle_is_executed(case, tmp_path):
    left, path = tmp_path / "executed", tmp_path / "agent.pkl"
    path.write_bytes(leaves(left)[case])
    before = set(sys.modules)
    with pytest.raises(UserError) as error:
        import_sb2(path, tmp_path / "run")
    assert is_one_line(error)
    with pytest.raises(UserError) as error:
        import_sb2(write_zip(tmp_path / "agent.zip", AGENT), tmp_path / "run", vecnormalize=path)
    assert is_one_line(error)
    assert not left.exists()
    assert not [name for name in set(sys.modules) - before if name.startswith(("gym.", "stable_baselines"))]
    assert {entry.name for entry in tmp_path.iterdir()} == {"agent.pkl", "agent.zip"}


@pytest.mark.parametrize("case", EXHAUSTING, ids=lambda case: case.replace(" ", "-"))
def test_a_pickle_cannot_exhaust_memory_or_the_stack(case, tmp_path):
    path = tmp_path / "vec.pkl"
    path.write_bytes(EXHAUSTING[case])
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            import_sb2(write_zip(tmp_path / "agent.zip", AGENT), tmp_path / "run", vecnormalize=path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert is_one_line(error)
    assert peak < 100 << 20
    assert not (tmp_path / "run").exists()


def test_the_command_prints_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.pkl").write_bytes(leaves(tmp_path / "executed")["a call of os.system"])
    assert main(["import-sb2", "agent.pkl", "run"]) == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    assert "posix.system" in error
    assert "save it again" in error
    assert [entry.name for entry in tmp_path.iterdir()] == ["agent.pkl"]


# ----------------------------------------------------------------------------------------- what the reader reads


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_plain_data_are_read_in_every_protocol(protocol):
    values = {
        "matrix": np.arange(6, dtype="f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "bits": np.array([True, False]),
        "empty": np.zeros((0, 3)),
        "zero axes": np.array(2.5),
    }
    plain = {"a": [1, -(2**70), 2.5, None, True, "text", b"bytes"], "b": ((), (1,), (1, 2), (1, 2, 3, 4)), "c": {}}
    read = plain_pickle(pickle.dumps((values, plain, np.float64(3)), protocol))
    assert read[1] == plain
    assert read[2] == 3
    for name, value in values.items():
        got = array_of(read[0][name])
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got, value)


def test_an_old_pickled_agent_without_code_is_read(tmp_path):
    """Before version 2.8 an agent was a pickle of (data, parameters). The spaces in it are instances of gym's."""
    import collections

    def build(kinds):
        box, discrete = kinds.Box(), kinds.Discrete()
        box.__dict__ = {"low": BOX.low, "high": BOX.high, "shape": (3,), "dtype": np.dtype("float32")}
        discrete.__dict__ = {"n": 4, "shape": (), "dtype": np.dtype("int64")}
        data = {"policy": kinds.MlpLnLstmPolicy, "observation_space": box, "action_space": discrete, "gamma": 0.99}
        return data, collections.OrderedDict(AGENT.parameters)

    classes = ("gym.spaces.box.Box", "gym.spaces.discrete.Discrete", "stable_baselines.common.policies.MlpLnLstmPolicy")
    for protocol in (2, 4, 5):
        path = tmp_path / f"agent{protocol}.pkl"
        path.write_bytes(pickled_instances(build, *classes, protocol=protocol))
        policy, same = import_sb2(path), import_sb2(write_zip(tmp_path / "agent.zip", AGENT))
        assert (policy.observation_space, policy.action_space) == (BOX, gym.spaces.Discrete(4))
        for one, other in zip(policy.get_weights(), same.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_lists_that_contain_each_other_many_times_are_not_followed(tmp_path):
    """Ten to the power of a hundred values, in a kilobyte."""

    def build(kinds):
        laughs = [1]
        for _ in range(100):
            laughs = [laughs] * 10
        box = kinds.Box()
        box.__dict__ = {"shape": laughs, "dtype": laughs, "low": laughs}
        data = {"observation_space": box, "action_space": laughs, "policy_kwargs": {"act_fun": laughs}}
        return data, {**AGENT.parameters}

    path = tmp_path / "agent.pkl"
    path.write_bytes(pickled_instances(build, "gym.spaces.box.Box"))
    with pytest.raises(UserError, match="activation must be"):
        import_sb2(path, action_space=gym.spaces.Discrete(4))
    assert import_sb2(path, action_space=gym.spaces.Discrete(4), activation="tanh").observation_space == BOX


def test_settings_of_a_vecnormalize_that_cannot_be_represented_are_named(tmp_path):
    zipped, path = write_zip(tmp_path / "agent.zip", AGENT), tmp_path / "vec.pkl"
    zeros, ones = np.zeros(3), np.ones(3)
    cases = {
        "clip_obs is 5, but only 10": vecnormalize(zeros, ones, clip_obs=5.0),
        "epsilon is 0.01": vecnormalize(zeros, ones, epsilon=0.01),
        "statistics of shape": vecnormalize(np.zeros(4), np.ones(4)),
        "must be finite": vecnormalize(zeros, ones * np.nan),
        "variance not negative": vecnormalize(zeros, -ones),
        "different shapes": vecnormalize(zeros, np.ones(2)),
        "count must be": vecnormalize(zeros, ones, count=-1.0),
        "no VecNormalize": pickle.dumps({"obs_rms": zeros}),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            import_sb2(zipped, vecnormalize=path)


def test_the_instructions_are_those_of_the_protocol():
    """A misspelt name in the table would never match."""
    from rl_lnlstm.importing.pickles import _CONSTANTS, _INSTRUCTIONS, _VALUES

    known = {instruction.name for instruction in pickletools.opcodes}
    assert {*_CONSTANTS, *_INSTRUCTIONS, *_VALUES} <= known
    with pytest.raises(NotPlainData):
        plain_pickle(b"")


def test_data_are_plain_json(tmp_path):
    """What the tests write as `data` is what the format says: JSON with pickles in base64."""
    data = json.loads(json.dumps(data_of(AGENT, tmp_path / "opened")))
    assert data["observation_space"][":serialized:"]
    assert data["action_space"]["n"] == 4
