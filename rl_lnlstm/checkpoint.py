"""Saved policies: a folder with JSON and arrays, from which nothing is ever executed or imported."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.files import replacing_folder
from rl_lnlstm.policies import POLICIES, RecurrentPolicy
from rl_lnlstm.spaces import space_from_json, space_to_json

FORMAT = 1
DESCRIPTION, WEIGHTS = "policy.json", "weights.npz"


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
        np.savez(folder / WEIGHTS, **_named_weights(policy))  # type: ignore[arg-type]


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
        description = json.loads((folder / DESCRIPTION).read_text())
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
        arguments = dict(description["arguments"])
        if encoder is not None:
            arguments["encoder"] = encoder
        spaces = [space_from_json(description[f"{kind}_space"]) for kind in ("observation", "action")]
        policy = policy_class(*spaces, **arguments)
        _load_weights(policy, folder / WEIGHTS)
    except UserError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder} holds no policy that can be loaded, {type(error).__name__}: {error}") from error
    return policy


def _find(path: Path) -> Path:
    for folder in (path, path / "policy", path / "checkpoints" / "best"):
        if (folder / DESCRIPTION).is_file():
            return folder
    problem = "does not exist" if not path.exists() else f"holds no {DESCRIPTION}, nor does its folder policy/"
    raise UserError(f"no saved policy in {path}: it {problem}")


def _named_weights(policy: RecurrentPolicy) -> dict[str, np.ndarray]:
    # Numbered, because layers of the same name may occur twice in an encoder.
    return {f"{number:03d}.{weight.name}": weight.numpy() for number, weight in enumerate(policy.weights)}


def _load_weights(policy: RecurrentPolicy, path: Path) -> None:
    expected = _named_weights(policy)
    with np.load(path, allow_pickle=False) as arrays:
        if set(arrays.files) != set(expected):
            differing = sorted(set(arrays.files) ^ set(expected))
            raise UserError(f"{path}: its weights are not those of the policy it describes: {', '.join(differing[:5])}")
        values: list[Any] = []
        for name, like in expected.items():
            shape, dtype = _array_header(arrays, name)
            if shape != like.shape or dtype != like.dtype:
                raise UserError(f"{path}: {name} must be {like.dtype} {like.shape}, got {dtype} {shape}")
            values.append(arrays[name])
    policy.set_weights(values)


def _array_header(arrays: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype, before anything of the size that a header claims is allocated."""
    with arrays.zip.open(f"{name}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return shape, dtype
