"""The environments that a saved policy runs in: from the command line, or from the configuration of its run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from rl_lnlstm.commands.console import tell
from rl_lnlstm.commands.options import EpisodesOptions
from rl_lnlstm.commands.training_options import TrainOptions, read_config
from rl_lnlstm.config import check_types
from rl_lnlstm.envs.registry import may_be_registered
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.evaluation.environments import MakeEnvs, make_evaluation_envs
from rl_lnlstm.option_types import from_json
from rl_lnlstm.runs.layout import CHECKPOINTS, CONFIG, POLICY

# The options that describe the environments -> their values if a configuration does not contain them
ENVIRONMENT: dict[str, Any] = {"env_id": None, "env_kwargs": {}, "wrappers": (), "mask_key": None}
MAX_NAME = 200  # longest name in a file, in characters


def environment_options(options: EpisodesOptions, env_id: str | None) -> dict[str, Any]:
    """The options of `ENVIRONMENT` from the command line and, where it does not set them, from the run's configuration.

    Args:
        options: the options of the command.
        env_id: the environment id in the policy's folder.

    Raises:
        UserError: the configuration is wrong, or would import a module or write files.
    """
    path, config = config_path(options.run_dir), saved_config(options.run_dir)
    known = {name: config.get(name, default) for name, default in ENVIRONMENT.items()}
    known["env_id"] = env_id if known["env_id"] is None else known["env_id"]
    given = {name: getattr(options, name) for name in ENVIRONMENT if getattr(options, name) is not None}
    if "env_id" not in given and known["env_id"] is None:
        raise UserError(f"{options.run_dir} does not say which environment its policy was trained in: give --env-id")
    taken = from_json({name: value for name, value in known.items() if name not in given})
    try:
        check_types(taken, TrainOptions)
    except UserError as error:
        raise UserError(f"{path}: {error}; give --{str(error).split()[0].replace('_', '-')}") from None
    for name in needs_naming(taken):
        value = taken[name] if name == "env_id" else ", ".join(taken[name])
        raise UserError(
            f"{options.run_dir} names {printable(value)!r}, which would import a module or write files; a file is not "
            f"trusted to do that: give --{name.replace('_', '-')} to allow it"
        )
    if "env_id" not in given and not may_be_registered(taken["env_id"]):
        raise UserError(
            f"{options.run_dir} says that its policy was trained in {printable(taken['env_id'])!r}, which is no known "
            "environment id: give --env-id (an id that a module registers is written module:ID)"
        )
    if not config and "env_kwargs" not in given and "wrappers" not in given:
        tell(
            f"{options.run_dir} has no {CONFIG} that can be read: the environment gets no env_kwargs and no wrappers; "
            "if it had any in training, give --env-kwargs and --wrappers"
        )
    return {**taken, **given}


def config_path(folder: Path) -> Path:
    """The configuration of a run directory, or of the run in which a policy folder is."""
    whole = Path(os.path.abspath(folder))
    above = [whole.parent] if whole.name == POLICY else [whole.parent.parent] * (whole.parent.name == CHECKPOINTS)
    return next((path for place in (folder, *above) if os.path.isfile(path := place / CONFIG)), folder / CONFIG)


def saved_config(run_dir: Path) -> dict[str, Any]:
    """The options in the configuration of a run or of a policy in it; empty if there is none that can be read."""
    try:
        return read_config(config_path(run_dir))
    except (OSError, ValueError):
        return {}


def needs_naming(config: Mapping[str, Any]) -> list[str]:
    """Those of the options "env_id" and "wrappers" that must be on the command line, because they import or write."""

    def is_untrusted(name: str, value: str) -> bool:
        named = value
        if name == "wrappers":
            named = value.partition("(")[0].strip().removeprefix("gymnasium.wrappers:")
        return ":" in named or named == "RecordVideo" or len(value) > MAX_NAME

    values = {"env_id": [config.get("env_id") or ""], "wrappers": config.get("wrappers", ())}
    return [name for name, found in values.items() if any(is_untrusted(name, value) for value in found)]


def naming_words(env_id: str | None, wrappers: Sequence[str]) -> list[str]:
    """The words of a command line for those of the two options that must be on it."""
    unnamed = needs_naming({"env_id": env_id, "wrappers": wrappers})
    words = ["--env-id", str(env_id)] if "env_id" in unnamed else []
    return words + (["--wrappers", *wrappers] if "wrappers" in unnamed else [])


def environment_maker(options: EpisodesOptions, environment: Mapping[str, Any], trained_on: gym.Space) -> MakeEnvs:
    """A function that makes environments, given their number and whether pictures are needed.

    Args:
        options: the options of the command.
        environment: the options of `ENVIRONMENT`, see `environment_options`.
        trained_on: the policy's observation space.
    """

    def make_envs(num_envs: int, render: bool) -> VectorEnv:
        if render:
            # Videos need no screen. If SDL looks for one, it loads graphics drivers whose LLVM makes TensorFlow's LLVM
            # crash.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        return make_evaluation_envs(
            environment["env_id"],
            num_envs,
            options.vectorization or "auto",
            trained_on,
            wrappers=environment["wrappers"],
            render_mode="rgb_array" if render else None,
            env_kwargs=environment["env_kwargs"],
            mask_key=environment["mask_key"],
        )

    return make_envs
