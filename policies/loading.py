"""Loading saved policies; see `saving` for what a folder holds and who may have made it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.config import upgraded
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import read_json
from rl_lnlstm.policies import POLICIES, RecurrentPolicy
from rl_lnlstm.policies.saving import (
    DESCRIPTION,
    FORMAT,
    WEIGHTS,
    Header,
    open_weights,
    read_array,
    read_headers,
    weight_names,
)
from rl_lnlstm.spaces import space_from_json


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
                f"{folder} holds a policy of format {printable(description['format'])}, this version reads format "
                f"{FORMAT}"
            )
        policy_class = {**POLICIES, RecurrentPolicy.__name__: RecurrentPolicy}.get(description["policy"])
        if policy_class is None:
            raise UserError(f"{folder} holds a {printable(description['policy'])}, known are {', '.join(POLICIES)}")
        if description["custom_encoder"] != (encoder is not None):
            need = (
                "was saved with an encoder of its own: hand one that is built alike to load_policy(path, encoder=...)"
            )
            raise UserError(f"{folder} {need if encoder is None else 'was saved without an encoder of its own'}")
        with open_weights(folder / WEIGHTS) as archive:
            headers = read_headers(archive)
            arguments = upgraded({"rescale_actions": False, **description["arguments"]})
            _check_sizes(arguments, headers)
            if encoder is not None:
                arguments["encoder"] = encoder
            spaces = [space_from_json(description[f"{kind}_space"]) for kind in ("observation", "action")]
            build = functools.partial(policy_class, *spaces, **arguments)
            _check_headers(headers, _outline(build, encoder), folder / WEIGHTS)
            policy = build()
            policy.set_weights([read_array(archive, name) for name in weight_names(policy)])
            env_id = description.get("env_id")  # earlier versions did not save it
            policy.env_id = env_id if isinstance(env_id, str) else None
    except UserError:
        raise
    except Exception as error:  # whatever a file that somebody made up leads to, it is the file that is wrong
        raise UserError(
            f"{folder} holds no policy that can be loaded, {type(error).__name__}: {printable(error)}"
        ) from error
    return policy


def _find(path: Path) -> Path:
    for folder in (path, path / "policy", path / "checkpoints" / "best"):
        if (folder / DESCRIPTION).is_file():
            return folder
    problem = "does not exist" if not path.exists() else f"holds no {DESCRIPTION}, nor does its folder policy/"
    raise UserError(f"no saved policy in {path}: it {problem}")


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
            for name, weight in zip(weight_names(policy), policy.weights, strict=True)
        }


def _check_headers(got: Mapping[str, Header], expected: Mapping[str, Header], path: Path) -> None:
    if got.keys() != expected.keys():
        differing = ", ".join(sorted(got.keys() ^ expected.keys())[:5])
        raise UserError(f"{path}: its weights are not those of the policy it describes: {differing}")
    for name, (shape, dtype) in expected.items():
        if got[name] != (shape, dtype):
            raise UserError(f"{path}: {name} must be {dtype} {shape}, got {got[name].dtype} {got[name].shape}")
