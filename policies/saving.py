"""Saved policies: a folder with JSON and arrays. Loading executes and imports nothing from it.

You need not trust the author of the files. Sizes are checked before memory is allocated: the JSON against the headers
of the arrays, the headers against the entries of the archive, and the entries against the size of the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.config import upgraded
from rl_lnlstm.errors import UserError
from rl_lnlstm.files import folder_path, is_empty_folder, open_regular, replacing_folder
from rl_lnlstm.spaces_json import space_to_json

FORMAT = 1
DESCRIPTION, WEIGHTS = "policy.json", "weights.npz"
CONSTRUCTOR = "observation_space", "action_space", "encoder", "seed"  # arguments of every policy, beside the options
MAX_ARRAYS = 1000  # building layers for more arrays takes too long
MAX_DESCRIPTION = 2 << 20  # bytes; parsed to Python objects, they take about 25 times as much memory


class Header(NamedTuple):
    """Shape and dtype of an array, from its header."""

    shape: tuple[int, ...]
    dtype: np.dtype


def save_policy(policy: Any, path: str | os.PathLike) -> None:
    """Saves `policy` in the folder `path`, and replaces a policy that is there.

    Raises:
        UserError: an argument of the policy's class cannot be saved, or the folder holds something else.
    """
    target = folder_path(path)
    options = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(policy.options).items()
    }
    own = _own_arguments(policy, options)
    description = {
        "format": FORMAT,
        "policy": type(policy).__name__,
        "env_id": getattr(policy, "env_id", None),
        "uses_action_masks": bool(policy.uses_action_masks),
        "custom_encoder": policy.custom_encoder,
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        "arguments": {**options, **own},
        "tuples": [name for name, value in own.items() if isinstance(value, tuple)],  # JSON has only lists
    }
    text = json.dumps(description, indent=2).encode()
    if len(text) > MAX_DESCRIPTION:
        raise UserError(
            f"a policy's spaces and options must be described in {MAX_DESCRIPTION:,} bytes to be saved, got "
            f"{len(text):,}; a Box with the same bounds for all components takes few"
        )
    if target.exists() and not (target / DESCRIPTION).is_file() and not is_empty_folder(target):
        raise UserError(f"a policy is saved as a folder, and {target} is something else: name another path")
    with replacing_folder(target) as folder:
        (folder / DESCRIPTION).write_bytes(text)
        weights = dict(zip(weight_names(policy), policy.get_weights(), strict=True))
        np.savez(folder / WEIGHTS, **weights)


def check_can_be_saved(policy: Any) -> None:
    """Raises `UserError` if an argument of the policy's class cannot be saved. Call it before long work."""
    _own_arguments(policy, dataclasses.asdict(policy.options))


def _own_arguments(policy: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that a subclass adds to the policy options.

    Raises:
        UserError: one is no plain data, and differs from its default.
    """
    parameters = inspect.signature(type(policy)).parameters
    own: dict[str, Any] = {}
    for name, value in upgraded(_given_arguments(policy)).items():
        if name in options or name in CONSTRUCTOR or isinstance(value, gym.Space):
            continue
        several = type(value) in (list, tuple)
        parts = [part.item() if isinstance(part, np.generic) else part for part in (value if several else [value])]
        if name.isidentifier() and all(isinstance(part, bool | int | float | str | None) for part in parts):
            own[name] = type(value)(parts) if several else parts[0]
        elif name not in parameters or not _is_same(value, parameters[name].default):
            raise UserError(
                f"{type(policy).__name__} cannot be saved with {name}={value!r:.80}: arguments of a class of your own "
                "must be numbers, text, None, or lists or tuples of these, because a saved policy contains no code"
            )
    return own


def _given_arguments(policy: Any) -> dict[str, Any]:
    """The arguments that the policy's class was called with, by name; `*rest` has those that have no name."""
    arguments, keywords = policy.constructor_arguments
    bound = inspect.signature(type(policy)).bind(*arguments, **keywords)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            given |= value
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            given[name] = value
        elif len(given) < 2:  # the spaces are among them: they are passed on to `RecurrentPolicy`
            given |= zip(CONSTRUCTOR[len(given) :], value, strict=False)
        else:
            given[f"*{name}"] = value
    return given


def _is_same(value: Any, default: Any) -> bool:
    try:
        return value is default or bool(value == default)
    except ValueError:  # arrays
        return False


def weight_names(policy: Any) -> list[str]:
    """The names of a policy's arrays in the archive, in the order of its weights."""
    # Numbered, because layers of the same name may occur twice in an encoder. Names are for people and messages.
    return [f"{number:03d}.{weight.name}" for number, weight in enumerate(policy.weights)]


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens the archive of arrays, and refuses it if its entries claim more than the file holds."""
    with open_regular(path) as (file, size), stored_archive(file, size, path.name) as archive:
        yield archive


@contextlib.contextmanager
def stored_archive(file: BinaryIO, size: int, name: str) -> Iterator[zipfile.ZipFile]:
    """Opens a zip whose entries are not compressed.

    Args:
        file: the zip.
        size: its size in bytes.
        name: its name, for error messages.

    Raises:
        ValueError: it has too many entries, two of the same name, or they claim more than the file holds.
    """
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ARRAYS:
            raise ValueError(f"{name} contains more than {MAX_ARRAYS} arrays")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError(f"{name} contains an array twice")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"{name} is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError(f"{name} claims more data than it contains")
        yield archive


def read_headers(archive: zipfile.ZipFile) -> dict[str, Header]:
    """Reads shape and dtype of each array in the archive, without allocating the arrays."""
    headers = {}
    for entry in archive.infolist():
        with archive.open(entry) as file:
            shape, dtype = _read_header(file)
            # Python integers, because a product that overflows could hide the size of an array.
            if dtype.kind not in "biuf" or math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                raise ValueError(f"{entry.filename} must contain {dtype} {shape}, but has another size")
        headers[entry.filename.removesuffix(".npy")] = Header(tuple(shape), dtype)
    return headers


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """Reads an array. Pickles are refused."""
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)
