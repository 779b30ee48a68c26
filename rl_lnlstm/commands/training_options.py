"""The options of the command `train`, and where their defaults come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rl_lnlstm.commands.tuning_options import preset_options
from rl_lnlstm.commands.words import given_options, value_of
from rl_lnlstm.config import PPOConfig, check_types, from_saved
from rl_lnlstm.errors import UserError
from rl_lnlstm.files import read_json
from rl_lnlstm.option_types import Count, Index, NonNegative, from_json
from rl_lnlstm.rollout_sizes import default_minibatches, minibatches_before, sequence_length_before
from rl_lnlstm.runs.layout import CONFIG


@dataclasses.dataclass(kw_only=True)
class TrainOptions(PPOConfig):
    """Trains a policy with recurrent PPO.

    Defaults come from the environment's preset, if it has one.
    """

    preset: Path | None = None
    """file with options, as rl-lnlstm tune writes it; other flags override it; None: the environment's preset"""
    run_dir: Path | None = None
    """new folder to record the run in; None: runs/<env>-<seed>-<time>"""
    eval_episodes: Index = 20
    """episodes of the evaluation at the end; 0 for none"""
    seeds: tuple[Index, ...] = ()
    """train once with each of these seeds; each run is recorded in a folder seed-N in --run-dir"""
    parallel: Count = 1
    """number of these runs that train at the same time, each in a process of its own"""
    pretrain: str | None = None
    """folder of recorded episodes, as evaluate --record writes them: before training, the policy learns to act as in
    these episodes"""
    check_env: bool = True
    """before the run, make an environment, reset it, take one step and check what it returns"""
    track: Literal["wandb", "trackio", "mlflow"] | None = None
    """also send the metrics to this experiment tracker, whose package must be installed; its own settings apply, such
    as WANDB_MODE=offline or MLFLOW_TRACKING_URI"""

    resume: Path | None = None
    """run directory to resume from its newest checkpoint; resuming can execute code in the checkpoint, so use only your
    own; options default to those of the run, and you usually change only --total-timesteps"""
    checkpoint_interval: Count | None = None
    """iterations between checkpoints; None: as often as possible in 1% of the time"""
    checkpoint_minutes: NonNegative | None = None
    """minutes between checkpoints, if that is sooner"""
    keep_checkpoints: Count = 3
    """number of checkpoints to keep, the newest ones"""
    env_snapshot: bool = True
    """include the environments in checkpoints, pickled, so that a resumed run continues their episodes; otherwise it
    begins new episodes"""

    def __post_init__(self) -> None:
        """Does nothing, because tyro would print errors from here as its own. `parse` and `PPO` check the options."""


def train_defaults(arguments: Sequence[str]) -> TrainOptions:
    """The defaults of `train`: those of the run that is resumed, or of the preset."""
    resumed, file = value_of(arguments, "resume"), value_of(arguments, "preset")
    if resumed is not None:
        if file is not None:
            raise UserError("--resume continues with the options of the run: leave out --preset")
        saved_run = saved_options(Path(resumed))
        default = default_minibatches(saved_run.num_sequences)
        if saved_run.num_minibatches == default and given_options(arguments, ["num_envs"]):
            saved_run.num_minibatches = None  # it need not divide the sequences of other environments
        return saved_run
    return TrainOptions(**preset_options(arguments))


def saved_options(run_dir: Path) -> TrainOptions:
    """Reads the options of the run in `run_dir`.

    Raises:
        UserError: `config.json` is missing, cannot be read, or is not valid.
    """
    path = run_dir / CONFIG
    try:
        options = from_json(from_saved(read_config(path)))
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir} is not a run directory to resume, {path.name}: {error}") from error
    try:
        check_types(options, TrainOptions)
        names = {field.name for field in dataclasses.fields(PPOConfig)}
        PPOConfig(**{name: value for name, value in options.items() if name in names})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    saved_run = TrainOptions(**{**options, "resume": run_dir, "run_dir": None})
    if saved_run.sequence_length is None:  # an earlier version saved it
        length = sequence_length_before(saved_run.num_envs, saved_run.num_steps, saved_run.num_minibatches)
        saved_run = dataclasses.replace(saved_run, sequence_length=length)
    if saved_run.num_minibatches is None:
        saved_run = dataclasses.replace(saved_run, num_minibatches=minibatches_before(saved_run.num_sequences))
    return saved_run


def read_config(path: Path) -> dict[str, Any]:
    """Reads the JSON object in a `config.json`.

    Raises:
        OSError, ValueError: the file cannot be read, or is not a JSON object.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError("it is not a JSON object")
    return config
