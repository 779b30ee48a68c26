"""Loading saved policies. `saving.py` describes the files, which need not be trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.config import PolicyOptions, from_saved
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import folder_path, parse_json, read_regular
from rl_lnlstm.lstm.equations import Weights
from rl_lnlstm.option_types import tuple_if_list
from rl_lnlstm.policies import POLICIES, RecurrentPolicy
from rl_lnlstm.policies.critic_entries import split_observation_space
from rl_lnlstm.policies.encoder_check import check_encoder, keras_defaults
from rl_lnlstm.policies.saving import (
    DESCRIPTION,
    FORMAT,
    MAX_ARRAYS,
    MAX_DESCRIPTION,
    WEIGHTS,
    Header,
    open_weights,
    read_array,
    read_headers,
    weight_names,
)
from rl_lnlstm.spaces import check_observation_space, has_box
from rl_lnlstm.spaces_json import Budget, space_from_json

ARRAYS_OF_DENSE, ARRAYS_OF_LSTM = 2, len(Weights._fields)
MAX_REPLACED = 100  # attempts to open a policy that keeps being replaced
MAX_MESSAGE = 2000  # characters
Made = TypeVar("Made")


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
            arguments = from_saved(description["arguments"], PolicyOptions)
            _check_sizes(arguments, headers)
            for name in description.get("tuples", ()):  # earlier versions saved none
                arguments[name] = tuple_if_list(arguments[name])
            budget = Budget()
            spaces = [space_from_json(description[name], budget) for name in ("observation_space", "action_space")]
            if encoder is not None:
                _build_encoder(encoder, spaces[0], arguments.get("critic_keys") or ())
                arguments["encoder"] = encoder
                if not arguments.get("critic_keys"):
                    arguments["encoder_layers"] = None  # earlier versions ignored it
            if arguments.get("std") == "gsde" and not has_box(spaces[1]):
                arguments["std"] = "free"  # earlier versions ignored it
            build = functools.partial(built, *spaces)
            expected, taken = call_without_fixed_options(
                lambda **taken: _outline(functools.partial(build, **taken), encoder), options_taken(built, arguments)
            )
            names = _matched(headers, expected, folder / WEIGHTS)
            policy = build(**taken)
            for name in arguments.keys() - taken.keys():
                if (own := getattr(policy.options, name, None)) != tuple_if_list(arguments[name]):
                    raise UserError(f"it was saved with {name}={arguments[name]!r}, and its class now has {own!r}")
            policy.set_weights([read_array(archive, name) for name in names])
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


def call_without_fixed_options(make: Callable[..., Made], options: Mapping[str, Any]) -> tuple[Made, dict[str, Any]]:
    """Calls `make(**options)`. Leaves out options that the constructor of a user's own policy class sets itself.

    Python tells this only by a TypeError: the constructor passes such an option and `**options` to its base class.

    Returns:
        The result, and the options that were passed.
    """
    options = dict(options)
    while True:
        try:
            return make(**options), options
        except TypeError as error:
            twice = re.search(r"got multiple values for keyword argument '(\w+)'", str(error))
            if twice is None or twice[1] not in options:
                raise
            del options[twice[1]]


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
    fields = {field.name for field in dataclasses.fields(PolicyOptions)}
    for name, value in arguments.items():
        values = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, bool | int | float | str) for part in values):
            raise ValueError(f"{name} must be a number, a word, or a list of these")
        if name not in fields:
            continue  # an argument of the user's own class
        # The names in critic_keys must be entries of the space, and need no weights of their own.
        longest = MAX_ARRAYS if name == "critic_keys" else max(1, len(headers) // ARRAYS_OF_DENSE)
        if len(values) > longest:
            raise ValueError(f"{name} is too long for the weights")
        most = len(headers) // ARRAYS_OF_LSTM if name == "num_layers" else numbers
        if any(isinstance(part, int) and part > most for part in values):
            raise ValueError(f"{name} is too large for the weights")


def _build_encoder(encoder: keras.Model, space: gym.Space, critic_keys: Sequence[str]) -> None:
    """Builds the user's encoder now. The weights of one that is built in the graph of `_outline` end with the graph."""
    check_observation_space(space)
    with keras_defaults():
        check_encoder(encoder, split_observation_space(space, critic_keys).actor)


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


def _matched(got: Mapping[str, Header], expected: Mapping[str, Header], path: Path) -> list[str]:
    """The arrays of the archive, in the order of the expected weights.

    Only their numbers and headers must match. Keras names weights without a name by a counter of the process.

    Raises:
        UserError: a number, a shape or a dtype differs.
    """
    names = {_number(name): name for name in got}
    if len(names) < len(got) or names.keys() != set(map(_number, expected)):
        differing = ", ".join(sorted(got.keys() ^ expected.keys())[:5])
        raise UserError(f"{path}: the weights do not match the policy's description: {differing}")
    for name, (shape, dtype) in expected.items():
        header = got[names[_number(name)]]
        if header != (shape, dtype):
            raise UserError(f"{path}: {name} must be {dtype} {shape}, got {header.dtype} {header.shape}")
    return [names[_number(name)] for name in expected]


def _number(name: str) -> str:
    return name.partition(".")[0]
