"""Hostile and damaged zips of agents: memory is not exhausted, nothing is written, the error is one line."""

import io
import tracemalloc
import zipfile

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import UserError, import_sb2
from tests.importing.sb2_agent import Opened, packed, random_agent, write_zip

AGENT = random_agent(gym.spaces.Box(-np.inf, np.inf, (3,)), gym.spaces.Discrete(4), units=4, layers=(5,))


def arrays(**changes):
    return packed({**AGENT.parameters, **changes})


def bomb():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/lstm1/wx:0.npy", bytes(50 << 20))
    return buffer.getvalue()


def with_header(name, shape):
    """Arrays of which one claims another shape."""
    value = AGENT.parameters[name]
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for other in AGENT.parameters:
            content = io.BytesIO()
            np.save(content, AGENT.parameters[other])
            own = buffer.getvalue() + value.tobytes()
            archive.writestr(f"{other}.npy", own if other == name else content.getvalue())
    return target.getvalue()


def objects():
    array = np.empty(2, object)
    array[:] = [Opened("executed"), None]
    return arrays(**{"model/vf/b:0": array})


NAMES = list(AGENT.parameters)
WX, WH = AGENT.parameters["model/lstm1/wx:0"], AGENT.parameters["model/lstm1/wh:0"]
ZIPS = {
    "arrays of objects": ({"parameters": objects}, "object|size"),
    "a zip bomb as the arrays": ({"parameters": bomb}, "compressed"),
    "a compressed zip": ({"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    "an array that claims more than it has": (
        {"parameters": lambda: with_header("model/vf/b:0", (1 << 40,))},
        "another size",
    ),
    "an array that overflows": ({"parameters": lambda: with_header("model/vf/b:0", (1 << 32, 1 << 32))}, "size"),
    "values that are not finite": ({"parameters": lambda: arrays(**{"model/lstm1/wh:0": WH * np.nan})}, "finite"),
    "integers": ({"parameters": lambda: arrays(**{"model/lstm1/wh:0": WH.astype(int)})}, "must contain floats"),
    "an array too few": ({"names": NAMES[:-1]}, "differ in model/q/b:0"),
    "a name twice": ({"names": [*NAMES, NAMES[0]]}, "differ in"),
    "a name with a path": (
        {"names": [*NAMES, "../../evil"], "parameters": lambda: arrays(**{"../../evil": np.zeros(1, "f4")})},
        "evil",
    ),
    "arrays that are no zip": ({"parameters": lambda: b"nothing"}, "BadZipFile"),
    "arrays that do not fit": ({"parameters": lambda: arrays(**{"model/lstm1/wx:0": WX[:-1]})}, "do not fit"),
    "a kernel of three axes": ({"parameters": lambda: arrays(**{"model/pi/w:0": np.zeros((2, 2, 2), "f4")})}, "axes"),
    "a network that is not of these": (
        {"names": [*NAMES, "model/x/w:0"], "parameters": lambda: arrays(**{"model/x/w:0": np.zeros(1, "f4")})},
        "not one of Stable-Baselines 2: it has model/x/w:0",
    ),
    "data that are a list": ({"data": []}, "must be an object"),
    "names that are no list": ({"names": {"a": 1}}, "list of names"),
    "a space of a gigantic size": (
        {"data": {"observation_space": {":type:": "<class 'gym.spaces.Box'>", "shape": [1 << 40]}}},
        "claim more than",
    ),
    "a space with a negative size": (
        {"data": {"action_space": {":type:": "<class 'gym.spaces.Discrete'>", "n": -4}}},
        "cannot be imported|-4",
    ),
    "a space of another library": ({"data": {"action_space": {":type:": "<class 'os.system'>"}}}, "is a system"),
}


@pytest.mark.parametrize("case", ZIPS, ids=lambda case: case.replace(" ", "-"))
def test_a_hostile_zip_is_named_in_one_line(case, tmp_path):
    changes, message = ZIPS[case]
    changes = {name: value() if callable(value) else value for name, value in changes.items()}
    path = write_zip(tmp_path / "agent.zip", AGENT, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as error:
            import_sb2(path, tmp_path / "run")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 40 << 20
    assert {entry.name for entry in tmp_path.iterdir()} == {"agent.zip"}


def other_networks():
    plain = {name: value for name, value in AGENT.parameters.items() if "lstm1/g" not in name}
    return {
        "no layer normalisation": plain,
        "no LSTM": {"deepq/model/q/w:0": WX, "deepq/model/q/b:0": WX[0]},
        "no value": {name: value for name, value in AGENT.parameters.items() if "/vf/" not in name},
        "nothing": {},
    }


@pytest.mark.parametrize("case", other_networks(), ids=lambda case: case.replace(" ", "-"))
def test_agents_of_other_kinds_are_named(case, tmp_path):
    parameters = other_networks()[case]
    path = write_zip(tmp_path / "agent.zip", AGENT._replace(parameters=parameters))
    messages = {"no layer normalisation": "no layer normalisation", "no value": "has no vf"}
    with pytest.raises(UserError, match=messages.get(case, "the agent has no LSTM")):
        import_sb2(path)


def refusal(path):
    try:
        import_sb2(path, action_space=gym.spaces.Discrete(4))
    except UserError as error:
        return str(error)
    return None


def test_every_truncation_and_random_damage_is_one_line(tmp_path):
    content, path = write_zip(tmp_path / "agent.zip", AGENT).read_bytes(), tmp_path / "damaged.zip"
    rng = np.random.default_rng(0)
    cuts = [content[:size] for size in rng.integers(len(content), size=30)]
    for _ in range(30):
        flipped = bytearray(content)
        for position in rng.integers(len(content), size=3):
            flipped[position] ^= 1 << int(rng.integers(8))
        cuts.append(bytes(flipped))
    refused = 0
    for damaged in cuts:
        path.write_bytes(damaged)
        message = refusal(path)
        refused += message is not None
        assert "\n" not in (message or "")
    assert refused > 50  # the rest is in what does not matter, such as dates
