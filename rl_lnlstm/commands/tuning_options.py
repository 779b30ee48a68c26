"""The options of the command `tune`, and where their defaults come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_lnlstm.commands.words import numbers_of, value_of
from rl_lnlstm.config import PPOConfig, check_types, from_saved
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import read_json
from rl_lnlstm.option_types import Count, from_json
from rl_lnlstm.presets import preset, read_preset
from rl_lnlstm.tuning.records import SWEEP

SIZES = "num_envs", "num_steps", "sequence_length", "num_minibatches"


@dataclasses.dataclass(kw_only=True)
class TuneOptions(PPOConfig):
    """Searches for good options: many short training runs, of which the bad ones are ended early.

    An option that you give is fixed. The search starts at the environment's preset and varies learning_rate, gamma,
    gae_lambda, update_epochs, clip_coef, ent_coef, units, shared_lstm, normalize_observations, normalize_rewards,
    num_steps, sequence_length and num_minibatches. The best trials train again with another seed, and the best of these
    becomes a preset file for train --preset.
    """

    trials: Count = 50
    """number of trials, each of total_timesteps frames unless it is ended early"""
    parallel: Count | None = None
    """number of trials at the same time, each with one CPU; None: the number of CPUs"""
    ray: str | None = "local"
    """where the trials run; local: on this machine; auto: on the Ray cluster that runs on this machine; HOST:PORT: on
    that cluster"""
    finalists: Count = 3
    """number of trials, the best ones, that train again with the next seed and are evaluated"""
    eval_episodes: Count = 100
    """number of episodes to evaluate each of them with"""
    preset: Path | None = None
    """file with the options to start from; None: the environment's preset"""
    run_dir: Path | None = None
    """new folder to record the trials in; None: runs/<env>-tune-<time>"""
    resume: Path | None = None
    """folder of a sweep to resume; it executes code in checkpoints, so use only your own; you can change --trials,
    --parallel, --ray, --finalists and --eval-episodes"""

    def __post_init__(self) -> None:
        """Does nothing, because tyro would print errors from here as its own. `parse` and `tune` check the options."""


def preset_options(arguments: Sequence[str]) -> dict[str, Any]:
    """The options of the preset that a command line chooses: with --preset, or with --env-id."""
    file, env_id = value_of(arguments, "preset"), value_of(arguments, "env_id")
    if file is not None:
        return _fitting(read_preset(Path(file)), arguments)
    return _fitting(preset(PPOConfig.env_id if env_id is None else env_id), arguments)


def _fitting(options: dict[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """The options of a preset. Sizes that do not fit those on the command line are left out, and get their defaults."""
    options, given = dict(options), numbers_of(arguments, SIZES)
    length = options.get("sequence_length")
    if length is not None and given.get("num_steps", length) % length:
        del options["sequence_length"]
    try:
        PPOConfig(**{**options, **given})
    except UserError:
        options.pop("num_minibatches", None)  # if that does not help, `parse` tells what is wrong
    return options


def tune_defaults(arguments: Sequence[str]) -> TuneOptions:
    """The defaults of `tune`: those of the sweep that is resumed, or of the preset."""
    resumed = value_of(arguments, "resume")
    if resumed is not None:
        for name, flag in (("preset", "--preset"), ("run_dir", "--run-dir")):
            if value_of(arguments, name) is not None:
                raise UserError(f"--resume continues the sweep in its own folder: leave out {flag}")
        return read_sweep(Path(resumed)).options
    return TuneOptions(**preset_options(arguments))


@dataclasses.dataclass(frozen=True)
class SavedSweep:
    """The options of a sweep, and the names of those that were fixed."""

    options: TuneOptions
    fixed: frozenset[str]


def read_sweep(folder: Path) -> SavedSweep:
    """Reads the options of the sweep in `folder`.

    Raises:
        UserError: `folder` is not the folder of a sweep, or its file is damaged.
    """
    path = folder / SWEEP
    try:
        content = read_json(path)
        options = from_json(from_saved(content["options"]))
        check_types(options, TuneOptions)
        return SavedSweep(TuneOptions(**options, resume=folder), frozenset(content["fixed"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is not the folder of a sweep to resume, {path.name}: {printable(error)}") from error
