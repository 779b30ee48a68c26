"""Reads the agents of Stable-Baselines 2: their arrays, and what the file says in plain data about their spaces.

The file is a zip of `parameters` (arrays as of `numpy.savez`), `parameter_list` (JSON, their names in the order of the
network) and `data` (JSON). Objects in `data` are pickles in base64, which are never opened; beside each of them stand
its plain attributes. Before version 2.8 the file was a single pickle of both.

The file need not be trusted. Sizes are checked before memory is allocated.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import MAX_JSON_BYTES, open_regular, parse_json
from rl_lnlstm.importing.pickles import read_pickle
from rl_lnlstm.importing.plain_values import Array, DType, Instance, Reference, array_of
from rl_lnlstm.policies.saving import read_array, read_headers, stored_archive

ZIP = b"PK\x03\x04"
PICKLE = b"\x80", b"("
MAX_PARAMETERS = 1 << 30  # bytes
ENTRIES = ("parameters", "parameter_list", "data")


class Agent(NamedTuple):
    """An agent as its file describes it."""

    parameters: dict[str, np.ndarray]  # in the order of the network
    data: dict[str, Any]


def read_agent(path: Path) -> Agent:
    """Reads an agent from a file that need not be trusted.

    Raises:
        UserError: the file cannot be read, is damaged or too large, or is no agent of Stable-Baselines 2.
    """
    try:
        with open_regular(path) as (file, _):
            start = file.read(len(ZIP))
        agent = _from_zip(path) if start == ZIP else _from_pickle(path, start)
        _check(agent.parameters)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a malicious file can cause any error; blame the file
        raise UserError(
            f"{path} contains no agent that can be imported, {type(error).__name__}: {printable(error)}"
        ) from None
    return agent


def _from_zip(path: Path) -> Agent:
    with open_regular(path) as (file, size), stored_archive(file, size, path.name) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        for name in ENTRIES:
            if name not in sizes and name != "data":
                raise ValueError(f"a zip of Stable-Baselines 2 has {name}, and this one has {', '.join(sizes)}")
            limit = MAX_PARAMETERS if name == "parameters" else MAX_JSON_BYTES
            if sizes.get(name, 0) > limit:
                raise ValueError(f"its {name} has more than {limit:,} bytes")
        data = parse_json(archive.read("data")) if "data" in sizes else {}
        names = parse_json(archive.read("parameter_list"))
        packed = archive.read("parameters")
    if not isinstance(data, dict) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("data must be an object and parameter_list a list of names")
    with stored_archive(io.BytesIO(packed), len(packed), "parameters") as archive:
        headers = read_headers(archive)
        if sorted(names) != sorted(headers):
            differing = set(names) ^ headers.keys() or "a name that occurs twice"
            raise ValueError(f"parameter_list and parameters differ in {', '.join(sorted(differing)[:3])}")
        return Agent({name: read_array(archive, name) for name in names}, data)


def _from_pickle(path: Path, start: bytes) -> Agent:
    if not start.startswith(PICKLE):
        raise UserError(
            f"{path} is neither a zip nor a pickle of Stable-Baselines 2; load a file of joblib, as of OpenAI "
            "baselines, with joblib, and pass the arrays to rl_lnlstm.importing.weights_from_baselines"
        )
    try:
        content = read_pickle(path)
    except UserError as error:
        raise UserError(
            f"{error}; load the agent in Stable-Baselines 2.10 and save it again: its zip can be imported"
        ) from None
    if not isinstance(content, tuple) or len(content) != 2 or not all(isinstance(part, dict) for part in content):
        raise UserError(
            f"{path} is a pickle, but not of an agent's data and named parameters; load the agent in Stable-Baselines "
            "2.10 and save it again: its zip can be imported"
        )
    data, parameters = content
    return Agent({str(name): array_of(value) for name, value in parameters.items()}, data)


def _check(parameters: Mapping[str, np.ndarray]) -> None:
    for name, array in parameters.items():
        if array.dtype.kind != "f":
            raise ValueError(f"{name} must contain floats, got {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} contains values that are not finite")


# --------------------------------------------------------------------------------------------- what `data` says


class Described(NamedTuple):
    """An object of `data`: the name of its class, and its plain attributes."""

    kind: str
    attributes: Mapping[str, Any]

    def numbers(self, name: str) -> np.ndarray | None:
        """An attribute as float64 numbers, flat; None if it is missing or not complete."""
        value = self.attributes.get(name)
        if isinstance(value, Array):
            return array_of(value).astype(np.float64).ravel()
        if isinstance(value, str):  # an array as NumPy prints it; long ones are shortened
            words = re.findall(r"[^\s,\[\]()]+", value)
            values = _floats([word for word in words if word != "..."])
            shortened = "..." in words and len(set(values)) > 1
            return None if shortened else np.array(sorted(set(values)) if "..." in words else values)
        numbers = value if isinstance(value, list | tuple) else [value]
        # Not nested, because lists that contain each other several times would take for ever.
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            return None
        return np.array(numbers, np.float64)

    def text(self, name: str) -> str:
        """An attribute that is text or a type, as text; empty if it is anything else."""
        return text_of(self.attributes.get(name))


def text_of(value: Any) -> str:
    """A value that is text, a type or a function, as text; empty if it is anything else."""
    if isinstance(value, DType):
        return str(value.value)
    if isinstance(value, Reference):
        return value.name
    return value[:200] if isinstance(value, str) else ""


def describe_object(value: Any) -> Described | None:
    """An object of `data`; None if the file says nothing about it."""
    if isinstance(value, Instance) and isinstance(value.state, dict):
        return Described(value.name.rsplit(".", 1)[-1], value.state)
    if isinstance(value, dict) and isinstance(value.get(":type:"), str):
        kind = re.search(r"(\w+)'>$", value[":type:"])
        return None if kind is None else Described(kind[1], value)
    return None


def activation_in(data: Mapping[str, Any]) -> str | None:
    """The name of `act_fun` in the arguments of the policy; None if there is none.

    A function is printed as `<function relu at 0x...>`.
    """
    arguments = data.get("policy_kwargs")
    function = arguments.get("act_fun") if isinstance(arguments, dict) else None
    if function is None:
        return None
    text = text_of(function)
    name = re.fullmatch(r"<function (?:\w+\.)*(\w+) at 0x[0-9a-f]+>", text)
    return (printable(text, 60) or "an unknown function") if name is None else name[1]


def _floats(words: list[str]) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError:
        return []
