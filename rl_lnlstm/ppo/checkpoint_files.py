"""Checkpoints: folders with the state of a training run as JSON, arrays and, if possible, pickled environments."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs import restore_snapshot
from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.files import is_empty_folder, parse_json, read_regular, replacing_folder

FORMAT = 1
STATE, ARRAYS, ENVIRONMENTS, MANIFEST = "state.json", "arrays.npz", "envs.pkl", "manifest.json"
NO_SNAPSHOT = "the checkpoint does not contain their snapshot"

Environments = dict[str, list[bytes]]  # purpose -> the snapshots that envs.take_snapshot returned


class TrainingState(NamedTuple):
    """The contents of a checkpoint: a tree of JSON types, tuples and arrays, and the environments if they are there."""

    tree: Any
    environments: bytes | None

    def unpickled_environments(self) -> Environments:
        """Unpickles the environments. This is the only place where code from a file is executed."""
        return {} if self.environments is None else pickle.loads(self.environments)


def write(path: Path, tree: Any, environments: Environments) -> None:
    """Writes a checkpoint in the folder `path`. The folder is either complete on the disk, or not there.

    Raises:
        UserError: the folder holds something else.
        OSError: the disk is full or cannot be written.
    """
    if path.exists() and not is_empty_folder(path) and not (path / MANIFEST).exists():
        raise UserError(f"{path} holds something else than a checkpoint: a checkpoint needs a folder of its own")
    arrays: dict[str, np.ndarray] = {}
    files = {STATE: json.dumps({"format": FORMAT, "tree": _tree_to_json(tree, arrays)}).encode()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files[ARRAYS] = buffer.getvalue()
    if environments:
        files[ENVIRONMENTS] = pickle.dumps(environments)
    files[MANIFEST] = json.dumps(
        {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    ).encode()
    with replacing_folder(path, durable=True) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)


def read(path: Path) -> TrainingState:
    """Reads the checkpoint in the folder `path`. Nothing is unpickled.

    Raises:
        UserError: there is no checkpoint, or it is damaged; the message names the file.
    """
    if not any(os.path.exists(path / name) for name in (MANIFEST, STATE, ARRAYS)):
        raise UserError(
            f"{path} is no checkpoint: it has no {MANIFEST} (the checkpoints of a run are in its folder `checkpoints`)"
        )
    name = MANIFEST
    try:
        manifest = parse_json(read_regular(path / MANIFEST))
        if not isinstance(manifest, dict) or not {STATE, ARRAYS} <= set(manifest) <= {STATE, ARRAYS, ENVIRONMENTS}:
            raise ValueError("it does not list the files of a checkpoint")
        contents = {}
        for name, checksum in manifest.items():
            contents[name] = read_regular(path / name)
            if hashlib.sha256(contents[name]).hexdigest() != checksum:
                raise ValueError("its checksum differs from the one in the manifest")
        name = STATE
        state = parse_json(contents[STATE])
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']}, but this version reads format {FORMAT}")
        with np.load(io.BytesIO(contents[ARRAYS]), allow_pickle=False) as arrays:
            tree = _tree_from_json(state["tree"], arrays)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"checkpoint {path} is damaged: {name}, {type(error).__name__}: {error}") from error
    return TrainingState(tree, contents.get(ENVIRONMENTS))


def check_alike(what: str, saved: Iterable[np.ndarray], own: Iterable[np.ndarray]) -> None:
    """Raises `UserError` unless the arrays of a checkpoint have the same shapes and dtypes as the trainer's."""
    got, expected = ([(part.shape, str(part.dtype)) for part in parts] for parts in (saved, own))
    if got != expected:
        raise UserError(f"the checkpoint is from another trainer: its {what} are {got}, this trainer's {expected}")


def take_snapshots(takers: Mapping[str, Callable[[], list[bytes]]]) -> Environments:
    """Takes snapshots of the environments for each purpose. A `RunWarning` names those that cannot be pickled.

    Args:
        takers: functions that take a snapshot. They raise ValueError if they cannot.
    """
    snapshots = {}
    for purpose, take in takers.items():
        try:
            snapshots[purpose] = take()
        except ValueError as error:
            warn(
                f"checkpoints do not contain the environments for {purpose}, so a resumed run begins new episodes: "
                f"{error}"
            )
    return snapshots


def restore_environments(envs: VectorEnv, state: dict[str, Any], snapshot: list[bytes] | None) -> str | None:
    """Restores environments. Returns None, or the reason why that is not possible.

    Args:
        envs: the environments, made by `make_vec`.
        state: what their `get_state` returned: counters and seeds.
        snapshot: what `take_snapshot` returned, or None if the checkpoint has none.
    """
    saved = len(state["_seeds"])
    if saved != envs.num_envs:
        envs.failures = state["failures"]  # type: ignore[attr-defined]
        return f"the checkpoint has {saved} environments, this trainer {envs.num_envs}"
    envs.set_state(state)  # type: ignore[attr-defined]
    if snapshot is None:
        return NO_SNAPSHOT
    try:
        restore_snapshot(envs, snapshot)
    except ValueError as error:
        return f"their snapshot cannot be restored, {error}"
    return None


def _tree_to_json(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`tree` in JSON types. Its arrays move to `arrays`, and the tree holds their names instead."""
    if isinstance(tree, np.ndarray | np.generic):
        if tree.dtype.hasobject:
            raise TypeError(f"arrays of {tree.dtype} cannot be saved")
        name = f"{len(arrays):04d}"
        arrays[name] = np.asarray(tree)
        return {"array": name}
    if isinstance(tree, dict):
        return {"dict": {name: _tree_to_json(part, arrays) for name, part in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [_tree_to_json(part, arrays) for part in tree]}
    if isinstance(tree, list):
        return [_tree_to_json(part, arrays) for part in tree]
    return tree


def _tree_from_json(description: Any, arrays: Any) -> Any:
    if isinstance(description, list):
        return [_tree_from_json(part, arrays) for part in description]
    if not isinstance(description, dict):
        return description
    ((kind, content),) = description.items()
    if kind == "array":
        return arrays[content]
    if kind == "tuple":
        return tuple(_tree_from_json(part, arrays) for part in content)
    return {name: _tree_from_json(part, arrays) for name, part in content.items()}
