"""The options of each command, and parsing a command line. `train` and `tune` have files of their own for options."""

from __future__ import annotations

import dataclasses
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rl_lnlstm.commands.parser import parse_options
from rl_lnlstm.commands.training_options import TrainOptions, train_defaults
from rl_lnlstm.commands.tuning_options import TuneOptions, tune_defaults
from rl_lnlstm.config import (
    EnvironmentOptions,
    PolicyOptions,
    PPOConfig,
    PPOOptions,
    WorkerOptions,
)
from rl_lnlstm.errors import UserError
from rl_lnlstm.option_types import Count, Index
from rl_lnlstm.version import __version__


@dataclasses.dataclass(kw_only=True)
class EpisodesOptions:
    """Options of all commands that run a saved policy for whole episodes."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """a run directory, or a folder that a policy was saved to"""
    episodes: Count = 20
    """number of episodes"""
    deterministic: bool = True
    """take the most probable actions; otherwise sample"""
    seed: Index = 0
    """seed of the episodes: the same seed gives the same episodes"""
    env_id: str | None = None
    """environment; None: the training environment"""
    env_kwargs: dict[str, bool | int | float | str] | None = None
    """keyword arguments for each environment, such as length=5 fast=true; None: as in training"""
    wrappers: tuple[str, ...] | None = None
    """wrappers around each environment; None: as in training"""
    mask_key: str | None = None
    """the entry of a Dict observation that is the action mask; None: as in training"""
    vectorization: Literal["auto", "sync", "vector_entry_point"] | None = None
    """sync: one environment after the other; vector_entry_point: the vector implementation of the id, whose episodes
    cannot be seeded one by one; None or auto: sync, or the vector implementation if only that has the observations of
    the policy, as for Atari"""
    num_envs: Count = 8
    """number of environments that are stepped together; the episodes do not depend on it"""
    max_steps: Count | None = None
    """limit of an episode's steps; None: 10,000 if the environment has no time limit; an episode that reaches the limit
    ends there and counts"""


@dataclasses.dataclass(kw_only=True)
class EvaluateOptions(EpisodesOptions):
    """Runs a saved policy for whole episodes and reports their returns."""

    episode_seeds: tuple[Index, ...] | None = None
    """run the episodes with these seeds, for example from an earlier evaluation; --episodes and --seed are then
    ignored"""
    video: Path | None = None
    """new folder to record a video of each episode in"""
    record: Path | None = None
    """new folder to save the episodes in, as NumPy arrays, with the recurrent state"""
    csv: Path | None = None
    """file to write a row for each episode to: number, seed, return, length"""
    json: bool = False
    """print one JSON object on standard output"""


@dataclasses.dataclass(kw_only=True)
class CardOptions(EpisodesOptions):
    """Writes a folder that shares a policy: a model card with its scores, the policy, and a video of an episode."""

    folder: Annotated[Path, tyro.conf.Positional]
    """new folder, which can be pushed to a model hub as it is"""


@dataclasses.dataclass(kw_only=True)
class ReportOptions(EpisodesOptions):
    """Writes a report of a run to a single HTML file: scores, episodes, and what the policy remembers."""

    cuts: tuple[Count, ...] | None = None
    """run the episodes again with the memory cut every so many steps, for each of these numbers; None: all numbers up
    to the longest episode, if that is at most 16, otherwise powers of two"""
    max_lag: Index = 100
    """largest number of steps between an observation and an action, for the gradient"""
    out: Path | None = None
    """file for the report; None: report.html in the run directory, or policy-report.html beside a folder policy"""


Format = Literal["text", "csv", "json"]


@dataclasses.dataclass(kw_only=True)
class PlotOptions:
    """Draws the learning curves of runs in one picture, and prints a table of their scores."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """run directories, or folders of run directories that differ in their seeds; each is a group with a curve of its
    own"""
    out: Path = Path("learning_curves.png")
    """file for the picture; the extension, such as .pdf, determines the format"""
    format: Format = "text"
    """format of the table"""


@dataclasses.dataclass(kw_only=True)
class CompareOptions:
    """Compares two runs, or two groups of runs: their scores, and the options that differ."""

    first: Annotated[Path, tyro.conf.Positional]
    """a run directory, or a folder of run directories that differ in their seeds"""
    second: Annotated[Path, tyro.conf.Positional]
    """another one"""
    format: Format = "text"
    """format of the output"""


@dataclasses.dataclass(kw_only=True)
class ImportSb2Options:
    """Imports an agent of Stable-Baselines 2 with a layer-normalised LSTM, and writes a run directory.

    Nothing in the files is executed; you need not trust them.
    """

    agent: Annotated[Path, tyro.conf.Positional]
    """the zip that model.save of Stable-Baselines 2 wrote, of MlpLnLstmPolicy or CnnLnLstmPolicy"""
    run_dir: Annotated[Path, tyro.conf.Positional]
    """new folder for the policy"""
    env_id: str | None = None
    """environment, whose spaces the policy then has; None: the spaces that the file describes, with rounded bounds"""
    env_kwargs: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """keyword arguments for the environment, such as length=5 fast=true"""
    wrappers: tuple[str, ...] = ()
    """wrappers around the environment, as for train"""
    vecnormalize: Path | None = None
    """file that VecNormalize.save wrote: its statistics become part of the policy"""
    activation: str | None = None
    """activation of the dense layers; None: as in the file, or tanh"""


@dataclasses.dataclass(kw_only=True)
class ExportOptions:
    """Writes a trained policy as one model that runs without this package, and compares it with the policy."""

    run_dir: Annotated[Path, tyro.conf.Positional]
    """a run directory, or a folder that a policy was saved to"""
    file: Annotated[Path, tyro.conf.Positional]
    """the file to write, for example policy.onnx; for a SavedModel the folder"""
    format: Literal["onnx", "tflite", "saved_model"] | None = None
    """format of the model; None: by the extension .onnx or .tflite, and saved_model without one"""
    batch: Count | None = None
    """batch size; None: any"""
    sequence: bool = False
    """export sequences [batch, time] of any length, with the resets inside, instead of single steps"""
    action_masks: bool = False
    """let the model take action masks even if the policy was trained without them"""


@dataclasses.dataclass(kw_only=True)
class BuildKernelOptions:
    """Compiles the CPU kernel ahead of its first use, for example for an image, and prints its path."""

    force: bool = False
    """compile even if it is there already"""


Options = (
    TrainOptions
    | TuneOptions
    | EvaluateOptions
    | ReportOptions
    | CardOptions
    | PlotOptions
    | CompareOptions
    | ImportSb2Options
    | ExportOptions
    | BuildKernelOptions
)
USAGE = """usage: rl-lnlstm COMMAND [OPTIONS]

Recurrent PPO with a masked layer-normalised LSTM.

commands:
  train         train a policy in an environment
  tune          search for good options with Ray Tune and Optuna
  evaluate      run a saved policy for whole episodes and report their returns
  report        write what a policy does and remembers to a single HTML file
  plot          draw the learning curves of runs, over seeds, in one picture
  compare       compare the scores and the options of two groups of runs
  card          write a folder that shares a policy: a model card, the policy, a video
  import-sb2    import an agent of Stable-Baselines 2 with a layer-normalised LSTM
  export        write a policy as ONNX, TFLite or SavedModel
  build-kernel  compile the CPU kernel ahead of its first use

`rl-lnlstm COMMAND --help` lists the options of a command, `rl-lnlstm --version` tells the version."""
COMMANDS: dict[str, Any] = {
    "train": TrainOptions,
    "tune": TuneOptions,
    "evaluate": EvaluateOptions,
    "report": ReportOptions,
    "plot": PlotOptions,
    "compare": CompareOptions,
    "card": CardOptions,
    "import-sb2": ImportSb2Options,
    "export": ExportOptions,
    "build-kernel": BuildKernelOptions,
}


def parse(arguments: list[str]) -> Options | None:
    """Parses a command line. Returns None after it printed help or the version.

    Raises:
        UserError: the command or an option is unknown, or a value is out of range.
        SystemExit: tyro printed help.
    """
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE, flush=True)
        return None
    if "--version" in (command, *rest):
        print(f"rl-lnlstm {__version__}", flush=True)
        return None
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected {' or '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}: {hint}")
    kind, default, marks = COMMANDS[command], None, dict[str, str]()
    if kind in (TrainOptions, TuneOptions):
        default = train_defaults(rest) if kind is TrainOptions else tune_defaults(rest)
        plain, word = kind(), "preset" if default.resume is None else "of the run"
        marks = {name: word for name, value in vars(default).items() if value != getattr(plain, name)}
    return parse_options(kind, rest, groups_of(kind), default, marks, f"rl-lnlstm {command}")


def groups_of(kind: type[Options]) -> dict[str, list[str]]:
    """The titles in the help of a command, and the options below each."""
    names = [field.name for field in dataclasses.fields(kind)]
    if issubclass(kind, EpisodesOptions):
        environment = ["env_id", "env_kwargs", "wrappers", "mask_key", "vectorization"]
        results = [name for name in names if name in ("video", "record", "csv", "json", "folder", "out")]
        return {
            "evaluation": [name for name in names if name not in (*environment, *results)],
            "environment": environment,
            "output": results,
        }
    if not issubclass(kind, PPOConfig):
        return {"command": names}
    by_class = {
        "environment": EnvironmentOptions,
        "network": PolicyOptions,
        "PPO": PPOOptions,
        "workers": WorkerOptions,
    }
    groups: dict[str, list[str]] = {
        "run": [],
        "environment": [],
        "rollout": [],
        "PPO": [],
        "network": [],
        "workers": [],
        "evaluation": [],
    }
    title_of = {field.name: title for title, part in by_class.items() for field in dataclasses.fields(part)}
    title_of.update(dict.fromkeys(("num_envs", "num_steps", "sequence_length"), "rollout"))
    title_of.update(dict.fromkeys(("eval_interval", "n_eval_episodes", "eval_episodes"), "evaluation"))
    title_of["policy"] = "network"
    if kind is TuneOptions:  # a trial has no workers
        title_of["ray"] = "run"
        names = [name for name in names if title_of.get(name) != "workers"]
    for name in names:
        groups[title_of.get(name, "run")].append(name)
    return groups
