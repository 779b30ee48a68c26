"""Loading saved policies. `saving.py` describes the files, which need not be trusted."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.config import upgraded
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import folder_path, parse_json, read_regular
from rl_lnlstm.lstm.equations import Weights
from rl_lnlstm.option_types import tuple_if_list
from rl_lnlstm.policies import POLICIES, RecurrentPolicy
from rl_lnlstm.policies.heads import has_box
from rl_lnlstm.policies.saving import (
    DESCRIPTION,
    FORMAT,
    MAX_DESCRIPTION,
    WEIGHTS,
    Header,
    open_weights,
    read_array,
    read_headers,
    weight_names,
)
from rl_lnlstm.spaces_json import Budget, space_from_json

ARRAYS_OF_DENSE, ARRAYS_OF_LSTM = 2, len(Weights._fields)
MAX_REPLACED = 100  # attempts to open a policy that keeps being replaced
MAX_MESSAGE = 2000  # characters


def load_policy(
    path: str | os.PathLike,
    encoder: keras.Model | None = None,
    policy_class: type[RecurrentPolicy] | None = None,
) -> RecurrentPolicy:
    """Loads a policy from a policy folder or a run directory.

    Args:
        path: the folder. In the directory of an unfinished run, this loads the best policy so far.
        encoder: needed if the policy was made with an encoder of your own, because code is never saved. Build it in the
            same way.
        policy_class: the class of the policy, if it is a class of your own.

    Raises:
        UserError: there is no saved policy, it is damaged, or `encoder` or `policy_class` is missing.
    """
    folder = _find(folder_path(path))
    try:
        with _opened(folder) as (description, archive):
            if description["format"] != FORMAT:
                raise UserError(
                    f"{folder} contains a policy of format {description['format']}, this version reads format {FORMAT}"
                )
            built: Callable[..., RecurrentPolicy] = _class_of(description["policy"], policy_class)
            if description["custom_encoder"] != (encoder is not None):
                if encoder is None:
                    raise UserError(
                        f"{folder} was saved with an encoder of its own: pass one that is built in the same way to "
                        "load_policy(path, encoder=...)"
                    )
                raise UserError(f"{folder} was saved without an encoder of its own")
            headers = read_headers(archive)
            arguments = upgraded({"rescale_actions": False, **description["arguments"]})
            _check_sizes(arguments, headers)
            if encoder is not None:
                arguments["encoder"] = encoder
            budget = Budget()
            spaces = [space_from_json(description[name], budget) for name in ("observation_space", "action_space")]
            if arguments.get("std") == "gsde" and not has_box(spaces[1]):
                arguments["std"] = "free"  # earlier versions ignored it
            taken = options_taken(built, arguments)
            build = functools.partial(built, *spaces, **taken)
            _check_headers(headers, _outline(build, encoder), folder / WEIGHTS)
            policy = build()
            for name in arguments.keys() - taken.keys():
                if (own := getattr(policy.options, name, None)) != tuple_if_list(arguments[name]):
                    raise UserError(f"it was saved with {name}={arguments[name]!r}, and its class now has {own!r}")
            policy.set_weights([read_array(archive, name) for name in weight_names(policy)])
            env_id = description.get("env_id")  # earlier versions did not save these two
            policy.env_id = env_id if isinstance(env_id, str) else None
            policy.uses_action_masks = description.get("uses_action_masks") is True
    except UserError as error:
        raise UserError(printable(error, MAX_MESSAGE)) from None
    except Exception as error:  # a malicious file can cause any error; blame the file
        raise UserError(
            f"{folder} contains no policy that can be loaded, {type(error).__name__}: {printable(error)}"
        ) from error
    return policy


def options_taken(policy_class: Callable[..., RecurrentPolicy], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that the constructor takes. A policy class of the user's own need not take all."""
    parameters = inspect.signature(policy_class).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {name: value for name, value in options.items() if takes_all or name in parameters}


def _class_of(name: Any, policy_class: type[RecurrentPolicy] | None) -> type[RecurrentPolicy]:
    known: dict[str, type[RecurrentPolicy]] = {**POLICIES, RecurrentPolicy.__name__: RecurrentPolicy}
    if policy_class is None:
        if not isinstance(name, str) or name not in known:
            raise UserError(
                f"the policy is a {name}, which is no class of this package ({', '.join(known)}): pass its class to "
                "load_policy(path, policy_class=...)"
            )
        return known[name]
    if not (isinstance(policy_class, type) and issubclass(policy_class, RecurrentPolicy)):
        raise UserError(f"policy_class must be a subclass of RecurrentPolicy, got {policy_class!r}")
    if name not in [kind.__name__ for kind in policy_class.__mro__]:
        raise UserError(f"the policy is a {name}, but policy_class is {policy_class.__name__}")
    return policy_class


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[tuple[Any, zipfile.ZipFile]]:
    """Opens the description and the archive of one policy, even if another policy replaces it at that moment."""
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_REPLACED):
            opened = _identity(folder)
            try:
                description = parse_json(read_regular(folder / DESCRIPTION, MAX_DESCRIPTION))
                archive = stack.enter_context(open_weights(folder / WEIGHTS))
            except Exception:
                if _identity(folder) == opened:
                    raise
                continue
            if _identity(folder) == opened:
                break
        else:
            raise UserError(f"{folder} cannot be read, because another process keeps replacing it")
        yield description, archive


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_ino, status.st_mtime_ns


def _find(path: Path) -> Path:
    try:
        for folder in (path, path / "policy", path / "checkpoints" / "best"):
            if (folder / DESCRIPTION).is_file():
                return folder
        problem = "does not exist" if not path.exists() else f"holds no {DESCRIPTION}, nor does its folder policy/"
    except OSError as error:  # such as a name that is too long
        raise UserError(f"no saved policy: {error}") from error
    raise UserError(f"no saved policy in {path}: it {problem}")


def _check_sizes(arguments: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    """Before anything is built, refuses arguments that do not fit the sizes of the weights."""
    numbers = sum(math.prod(header.shape) for header in headers.values())
    for name, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, bool | int | float | str) for part in values):
            raise ValueError(f"{name} must be a number, a word, or a list of these")
        if len(values) > max(1, len(headers) // ARRAYS_OF_DENSE):
            raise ValueError(f"{name} is too long for the weights")
        most = len(headers) // ARRAYS_OF_LSTM if name == "num_layers" else numbers
        if any(isinstance(part, int) and part > most for part in values):
            raise ValueError(f"{name} is too large for the weights")


def _outline(build: Callable[[], RecurrentPolicy], encoder: keras.Model | None) -> dict[str, Header]:
    """Names, shapes and dtypes of the weights that `build` makes. Building in a graph allocates no memory."""
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
        raise UserError(f"{path}: the weights do not match the policy's description: {differing}")
    for name, (shape, dtype) in expected.items():
        if got[name] != (shape, dtype):
            raise UserError(f"{path}: {name} must be {dtype} {shape}, got {got[name].dtype} {got[name].shape}")
