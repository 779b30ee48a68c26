"""The options of each command, and their defaults: those of a preset, or of the run that is resumed."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rl_lnlstm.config import Count, Index, NonNegative, PPOConfig, check_types, checked, upgraded
from rl_lnlstm.errors import UserError
from rl_lnlstm.files import read_json
from rl_lnlstm.presets import preset
from rl_lnlstm.runs.layout import CONFIG


@dataclasses.dataclass(kw_only=True)
class TrainOptions(PPOConfig):
    """Trains a policy with recurrent PPO. Defaults come from the environment's preset, if it has one."""

    run_dir: Path | None = None
    """new folder to record the run in; runs/<env>-<seed>-<time> if None"""
    eval_episodes: Index = 20
    """episodes of the evaluation at the end; 0 for none"""
    check_env: bool = True
    """before the run, make an environment, reset it, take one step and check what it returns"""

    resume: Path | None = None
    """run directory to resume, from its newest checkpoint; the checkpoint is unpickled, so name only your own. Options
    default to those of the run; the usual change is a larger --total-timesteps"""
    checkpoint_interval: Count | None = None
    """iterations between checkpoints; if None, as often as costs less than 1% of the time"""
    checkpoint_minutes: NonNegative | None = None
    """minutes between checkpoints, if that is sooner"""
    keep_checkpoints: Count = 3
    """number of checkpoints to keep, the newest ones"""
    env_snapshot: bool = True
    """save the environments in checkpoints, pickled, so that a resumed run continues their episodes; otherwise it
    begins new ones"""

    def __post_init__(self) -> None:
        """Leaves the checks to `parse` and `PPO`, because tyro would print their errors as its own."""


@dataclasses.dataclass(kw_only=True)
class EvaluateOptions:
    """Runs a saved policy for whole episodes and reports their returns."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """a run directory, or a folder that a policy was saved to"""
    episodes: Count = 20
    """number of episodes"""
    deterministic: bool = True
    """take the most probable actions; otherwise sample"""
    seed: Index = 0
    """decides the episodes: the same seed gives the same episodes"""
    env_id: str | None = None
    """environment; that of the training if None"""
    env_kwargs: dict[str, bool | int | float | str] | None = None
    """keyword arguments for each environment; those of the training if None"""
    wrappers: tuple[str, ...] | None = None
    """wrappers around each environment; those of the training if None"""
    mask_key: str | None = None
    """the entry of a Dict observation that is the action mask; that of the training if None"""
    vectorization: Literal["auto", "sync", "vector_entry_point"] | None = None
    """sync: one environment after the other; vector_entry_point: the id's own vector implementation, whose episodes
    cannot be seeded one by one; sync if None"""
    num_envs: Count = 8
    """number of environments that are stepped together; the episodes do not depend on it"""
    episode_seeds: tuple[Index, ...] | None = None
    """run the episodes of these seeds, which an earlier evaluation reported; --episodes and --seed then do not apply"""
    max_steps: Count | None = None
    """limit of an episode's steps; if None, 10,000 for an environment without a time limit of its own. An episode that
    reaches it is cut and counts"""
    video: Path | None = None
    """folder to record a video of each episode in"""
    record: Path | None = None
    """new folder to save the episodes in, as NumPy arrays, with the recurrent state"""
    csv: Path | None = None
    """file to write a row for each episode to: number, seed, return, length"""
    json: bool = False
    """print one JSON object on standard output"""


@dataclasses.dataclass(kw_only=True)
class BuildKernelOptions:
    """Compiles the CPU kernel ahead of its first use, for example for an image, and prints its path."""

    force: bool = False
    """compile even if it is there already"""


Options = TrainOptions | EvaluateOptions | BuildKernelOptions
COMMANDS: dict[str, Any] = {
    "train": TrainOptions,
    "evaluate": EvaluateOptions,
    "build-kernel": BuildKernelOptions,
}


def parse(arguments: list[str]) -> Options:
    """The options that a command line gives.

    Raises:
        UserError: unknown command, or a value out of its range.
        SystemExit: after help, or after tyro explained what is wrong with the options.
    """
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        tyro.extras.subcommand_cli_from_dict(COMMANDS, args=["--help"], prog="rl-lnlstm")
    if command not in COMMANDS:
        raise UserError(f"unknown command {command!r}: expected {' or '.join(COMMANDS)}")
    default: Any = _train_defaults(rest) if command == "train" else None
    options: Any = tyro.cli(COMMANDS[command], args=rest, default=default, prog=f"rl-lnlstm {command}")
    _check(options)
    return options


def saved_options(run_dir: Path) -> TrainOptions:
    """The options that the run in `run_dir` was started with.

    Raises:
        UserError: `config.json` is missing, unreadable, or holds something else.
    """
    path = run_dir / CONFIG
    try:
        saved = upgraded({"rescale_actions": False, **read_config(path)})  # runs from before that option
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir} is no run directory to resume, {path.name}: {error}") from error
    options: dict[str, Any] = {name: tuple_if_list(value) for name, value in saved.items()}
    try:
        check_types(options, TrainOptions)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return TrainOptions(**{**options, "resume": run_dir, "run_dir": None})


def read_config(path: Path) -> dict[str, Any]:
    """The object in a `config.json`.

    Raises:
        OSError, ValueError: it cannot be read, or holds something else.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError("it is no object")
    return config


def tuple_if_list(value: Any) -> Any:
    """JSON has lists where options have tuples."""
    return tuple(value) if isinstance(value, list) else value


def _check(options: Options) -> None:
    """Raises `UserError` for a value out of its range. `PPO` checks the options that it takes itself."""
    checked_later = {field.name for field in dataclasses.fields(PPOConfig)} if isinstance(options, TrainOptions) else ()
    hints = typing.get_type_hints(type(options), include_extras=True)
    for name, value in vars(options).items():
        if name not in checked_later and not isinstance(value, Path):
            checked(name, value, hints[name])


def _train_defaults(arguments: list[str]) -> TrainOptions:
    resumed = _value(arguments, "--resume")
    if resumed is not None:
        return saved_options(Path(resumed))
    env_id = _value(arguments, "--env-id")
    return TrainOptions(**preset(PPOConfig.env_id if env_id is None else env_id))


def _value(arguments: list[str], option: str) -> str | None:
    """What the command line gives for `option`: defaults depend on it, and are needed before the rest is parsed."""
    for position, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in (option, option.replace("-", "_").replace("__", "--", 1)):
            return value or next(iter(arguments[position + 1 :]), "")
    return None
