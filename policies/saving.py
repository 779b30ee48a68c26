"""Saved policies: a folder with JSON and arrays, from which nothing is ever executed or imported.

Who loads one need not trust who made it. Everything is checked against the size of the file before it is allocated: the
JSON's claims against the arrays' headers, these against the archive's entries, and these against what the file holds.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.config import upgraded
from rl_lnlstm.errors import UserError
from rl_lnlstm.files import open_regular, read_json, replacing_folder
from rl_lnlstm.policies import POLICIES, RecurrentPolicy
from rl_lnlstm.spaces import space_from_json, space_to_json

FORMAT = 1
DESCRIPTION, WEIGHTS = "policy.json", "weights.npz"
MAX_ARRAYS = 1000  # building a layer for each takes seconds


class Header(NamedTuple):
    """What an array is said to be."""

    shape: tuple[int, ...]
    dtype: np.dtype


def save_policy(policy: RecurrentPolicy, path: str | os.PathLike) -> None:
    """Saves `policy` in the folder `path`, which is replaced if it is there."""
    description = {
        "format": FORMAT,
        "policy": type(policy).__name__,
        "custom_encoder": policy.custom_encoder,
        "observation_space": space_to_json(policy.observation_space),
        "action_space": space_to_json(policy.action_space),
        "arguments": policy.arguments,
    }
    target = Path(path)
    if target.exists() and not (target / DESCRIPTION).is_file():
        raise UserError(f"a policy is saved as a folder, and {target} is something else: name another path")
    with replacing_folder(target) as folder:
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2))
        weights = dict(zip(_weight_names(policy), policy.get_weights(), strict=True))
        np.savez(folder / WEIGHTS, **weights)


def load_policy(path: str | os.PathLike, encoder: keras.Model | None = None) -> RecurrentPolicy:
    """Loads a policy from a policy folder or a run directory.

    Args:
        path: what was saved to. Of a run directory that holds no finished policy the best one so far is taken.
        encoder: an encoder built as the saved policy's was, if that had one of its own: code is never saved.

    Raises:
        UserError: there is no saved policy, or it is damaged.
    """
    folder = _find(Path(path))
    try:
        description = read_json(folder / DESCRIPTION)
        if description["format"] != FORMAT:
            raise UserError(
                f"{folder} holds a policy of format {description['format']}, this version reads format {FORMAT}"
            )
        policy_class = {**POLICIES, RecurrentPolicy.__name__: RecurrentPolicy}.get(description["policy"])
        if policy_class is None:
            raise UserError(f"{folder} holds a {description['policy']}, known are {', '.join(POLICIES)}")
        if description["custom_encoder"] != (encoder is not None):
            need = (
                "was saved with an encoder of its own: hand one that is built alike to load_policy(path, encoder=...)"
            )
            raise UserError(f"{folder} {need if encoder is None else 'was saved without an encoder of its own'}")
        with _open_weights(folder / WEIGHTS) as archive:
            headers = _headers(archive)
            arguments = upgraded(description["arguments"])
            _check_sizes(arguments, headers)
            if encoder is not None:
                arguments["encoder"] = encoder
            spaces = [space_from_json(description[f"{kind}_space"]) for kind in ("observation", "action")]
            build = functools.partial(policy_class, *spaces, **arguments)
            _check_headers(headers, _outline(build, encoder), folder / WEIGHTS)
            policy = build()
            policy.set_weights([_array(archive, name) for name in _weight_names(policy)])
    except UserError:
        raise
    except Exception as error:  # whatever a file that somebody made up leads to, it is the file that is wrong
        raise UserError(f"{folder} holds no policy that can be loaded, {type(error).__name__}: {error}") from error
    return policy


def _find(path: Path) -> Path:
    for folder in (path, path / "policy", path / "checkpoints" / "best"):
        if (folder / DESCRIPTION).is_file():
            return folder
    problem = "does not exist" if not path.exists() else f"holds no {DESCRIPTION}, nor does its folder policy/"
    raise UserError(f"no saved policy in {path}: it {problem}")


def _weight_names(policy: RecurrentPolicy) -> list[str]:
    # Numbered, because layers of the same name may occur twice in an encoder.
    return [f"{number:03d}.{weight.name}" for number, weight in enumerate(policy.weights)]


@contextlib.contextmanager
def _open_weights(path: Path) -> Iterator[zipfile.ZipFile]:
    """The arrays' archive, which claims no more than the file holds: no compression, no entry over another."""
    with open_regular(path) as (file, size), zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_ARRAYS:
            raise ValueError(f"{path.name} holds more than {MAX_ARRAYS} arrays")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError(f"{path.name} holds an array twice")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError(f"{path.name} is compressed")
        if sum(entry.file_size for entry in entries) > size:
            raise ValueError(f"{path.name} claims more than it holds")
        yield archive


def _headers(archive: zipfile.ZipFile) -> dict[str, Header]:
    headers = {}
    for entry in archive.infolist():
        with archive.open(entry) as file:
            shape, dtype = _read_header(file)
            # Python's integers: a product that overflows is how a small file claims a large array.
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
                raise ValueError(f"{entry.filename} must hold {dtype} {shape}, and is of another size")
        headers[entry.filename.removesuffix(".npy")] = Header(tuple(shape), dtype)
    return headers


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_sizes(arguments: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    """Refuses arguments that no policy with these weights can have, before anything is built with them."""
    numbers = sum(math.prod(header.shape) for header in headers.values())
    for name, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, bool | int | float | str) for part in values):
            raise ValueError(f"{name} must be a number, a word, or a list of these")
        most = len(headers) if name.endswith("layers") and value is not values else numbers
        if len(values) > max(1, len(headers)) or any(isinstance(part, int) and part > most for part in values):
            raise ValueError(f"{name} is more than the weights are for")


def _outline(build: Callable[[], RecurrentPolicy], encoder: keras.Model | None) -> dict[str, Header]:
    """Names, shapes and dtypes of the weights that `build` makes; in a graph, where nothing is allocated for them."""
    with tf.Graph().as_default():
        own = [(weight, tf.zeros(weight.shape, weight.dtype)) for weight in (encoder.variables if encoder else ())]
        with keras.StatelessScope(own):
            policy = build()
        return {
            name: Header(tuple(weight.shape), np.dtype(weight.dtype))
            for name, weight in zip(_weight_names(policy), policy.weights, strict=True)
        }


def _check_headers(got: Mapping[str, Header], expected: Mapping[str, Header], path: Path) -> None:
    if got.keys() != expected.keys():
        differing = ", ".join(sorted(got.keys() ^ expected.keys())[:5])
        raise UserError(f"{path}: its weights are not those of the policy it describes: {differing}")
    for name, (shape, dtype) in expected.items():
        if got[name] != (shape, dtype):
            raise UserError(f"{path}: {name} must be {dtype} {shape}, got {got[name].dtype} {got[name].shape}")
