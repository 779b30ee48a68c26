"""The commands `train`, `evaluate` and `build-kernel`: the only place that wires everything together."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import RunFailure, UserError
from rl_lnlstm.presets import preset

# What an environment is made of, and what it is if a configuration does not say
ENVIRONMENT: dict[str, Any] = {"env_id": None, "env_kwargs": {}, "wrappers": (), "vectorization": "sync"}

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

messages = Console(stderr=True, highlight=False)


@dataclasses.dataclass(kw_only=True)
class TrainOptions(PPOConfig):
    """Trains a policy with recurrent PPO. Defaults are those of the environment's preset, where it has one."""

    run_dir: Path | None = None
    """where the run is recorded, a new folder; runs/<env>-<seed>-<time> if None"""
    eval_episodes: int = 20
    """episodes of the evaluation at the end; 0 for none"""

    def __post_init__(self) -> None:
        """Leaves the checks to `PPO`: tyro would take their errors for its own."""


@dataclasses.dataclass(kw_only=True)
class EvaluateOptions:
    """Rolls out a saved policy and reports what it earned."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """a run directory, or a folder that a policy was saved to"""
    episodes: int = 20
    """how many episodes"""
    deterministic: bool = True
    """take the most probable actions rather than sample"""
    seed: int = 0
    """of the first reset"""
    env_id: str | None = None
    """environment; the one the policy was trained in if None"""
    env_kwargs: dict[str, bool | int | float | str] | None = None
    """its keyword arguments; those of the training if None"""
    wrappers: tuple[str, ...] | None = None
    """wrappers around it; those of the training if None"""
    vectorization: Literal["sync", "vector_entry_point"] | None = None
    """one after the other, or their own vector implementation; that of the training if None"""
    num_envs: int = 8
    """environments that are stepped together"""
    video: Path | None = None
    """folder to record videos of the episodes in; steps one environment only"""
    record: Path | None = None
    """folder for the episodes as NumPy arrays, with the recurrent state beside them"""
    json: bool = False
    """print one JSON object on standard output"""


@dataclasses.dataclass(kw_only=True)
class BuildKernelOptions:
    """Compiles the CPU kernel ahead of its first use, for images, and prints where it is."""

    force: bool = False
    """build anew what is there already"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 1 failed, 2 a mistake of the user's, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _interrupts() as interrupted:
        try:
            options = _parse(arguments)
            _import_tensorflow_quietly()
            if isinstance(options, TrainOptions):
                _train(options, interrupted)
            elif isinstance(options, EvaluateOptions):
                _evaluate(options)
            else:
                _build_kernel(options)
        except UserError as error:
            messages.print(f"error: {error}", markup=False, soft_wrap=True)
            return EXIT_USAGE
        except RunFailure as error:
            messages.print(f"error: {error}", markup=False, soft_wrap=True)
            return EXIT_FAILURE
        except KeyboardInterrupt:
            return EXIT_INTERRUPTED
        except SystemExit as exit_of_parser:  # after --help, or after it explained what is wrong with the options
            return int(exit_of_parser.code or 0)
    return EXIT_INTERRUPTED if interrupted else 0


def _parse(arguments: list[str]) -> TrainOptions | EvaluateOptions | BuildKernelOptions:
    commands = {"train": TrainOptions, "evaluate": EvaluateOptions, "build-kernel": BuildKernelOptions}
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in commands:
        default = TrainOptions(**preset(_env_id(rest))) if command == "train" else None
        return tyro.cli(commands[command], args=rest, default=default, prog=f"rl-lnlstm {command}")  # type: ignore[return-value]
    if command not in ("-h", "--help"):
        raise UserError(f"unknown command {command!r}: expected {' or '.join(commands)}")
    return tyro.extras.subcommand_cli_from_dict(commands, args=["--help"], prog="rl-lnlstm")  # type: ignore[arg-type]


def _env_id(arguments: list[str]) -> str:
    """The environment whose preset the other options' defaults are."""
    for position, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in ("--env-id", "--env_id"):
            return value or next(iter(arguments[position + 1 :]), "")
    return PPOConfig.env_id


def _train(options: TrainOptions, interrupted: list[bool]) -> None:
    from rl_lnlstm.evaluation import evaluate_policy
    from rl_lnlstm.ppo import PPO
    from rl_lnlstm.run_directory import RunDirectory, check_is_free

    config = dataclasses.asdict(options)
    run_dir, eval_episodes = config.pop("run_dir"), config.pop("eval_episodes")
    if run_dir is None:
        name = re.sub(r"[^\w.-]", "-", options.env_id)
        run_dir = Path("runs") / f"{name}-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_is_free(run_dir)
    ppo = PPO(options.policy, options.env_id, **{k: v for k, v in config.items() if k not in ("policy", "env_id")})
    try:
        run = RunDirectory(run_dir, config, ppo.policy)
        messages.print(f"training {type(ppo.policy).__name__} in {options.env_id}, recorded in {run_dir}", markup=False)
        try:
            if not interrupted:
                with _progress(options.total_timesteps) as progress:
                    ppo.learn(callback=[run, progress, lambda _: not interrupted])
        finally:
            run.finish()
            messages.print(f"policy, metrics and learning curve are in {run_dir}", markup=False)
    finally:
        ppo.envs.close()
    if interrupted or eval_episodes == 0:
        return
    envs = _make_envs(config, eval_episodes, 8, **ppo.config.fault_tolerance)
    with contextlib.closing(envs):
        mean, std = evaluate_policy(ppo.policy, envs, eval_episodes, seed=options.seed + options.num_envs)
    print(f"{mean:.1f} +/- {std:.1f} over {eval_episodes} episodes")


def _evaluate(options: EvaluateOptions) -> None:
    import numpy as np

    from rl_lnlstm.checkpoint import load_policy
    from rl_lnlstm.evaluation import bootstrap_interval, evaluate_policy, interquartile_mean, record_episodes
    from rl_lnlstm.recording import save_episodes

    policy = load_policy(options.path)
    policy.seed(options.seed)
    environment = _trained_in(options)
    env_id = environment["env_id"]
    envs = _make_envs(environment, options.episodes, options.num_envs, options.video)
    with contextlib.closing(envs):
        how = policy, envs, options.episodes, options.deterministic, options.seed
        if options.record is not None:
            recorded = record_episodes(*how)
            save_episodes(recorded, options.record)
            returns = [float(episode["rewards"].sum()) for episode in recorded]
            lengths = [len(episode["rewards"]) for episode in recorded]
        else:
            returns, lengths = evaluate_policy(*how, return_episode_rewards=True)
    mean, std = float(np.mean(returns)), float(np.std(returns))
    iqm, (low, high) = float(interquartile_mean(np.array(returns))), bootstrap_interval(np.array(returns))
    for what, folder in (("videos", options.video), ("recorded episodes", options.record)):
        if folder is not None:
            messages.print(f"{what} are in {folder}", markup=False)
    if not options.json:
        print(f"{mean:.1f} +/- {std:.1f} over {options.episodes} episodes")
        print(
            f"interquartile mean {iqm:.1f} (95% confidence {low:.1f} to {high:.1f}), {np.mean(lengths):.0f} frames each"
        )
        return
    result: dict[str, Any] = {
        "env_id": env_id,
        "mean_reward": mean,
        "std_reward": std,
        "iqm_reward": iqm,
        "iqm_confidence_interval": [low, high],
        "n_episodes": len(returns),
        "mean_ep_length": float(np.mean(lengths)),
        "deterministic": options.deterministic,
        "seed": options.seed,
        "episode_rewards": returns,
        "episode_lengths": lengths,
    }
    print(json.dumps(result))


def _make_envs(
    environment: Mapping[str, Any], episodes: int, most: int, video: Path | None = None, **fault_tolerance: Any
) -> Any:
    """Those that a configuration names by `ENVIRONMENT`; for videos one after the other.

    Only if they may fail they are in processes of their own, where the configuration says so.
    """
    from gymnasium.wrappers import RecordVideo

    from rl_lnlstm.envs import make_vec

    env_id, env_kwargs, wrappers, vectorization = (environment[name] for name in ENVIRONMENT)
    if video is None:
        return make_vec(
            env_id,
            max(1, min(episodes, most)),
            vectorization="sync" if vectorization == "async" and not fault_tolerance else vectorization,
            wrappers=wrappers,
            env_kwargs=env_kwargs,
            **fault_tolerance,
        )

    # Videos need no screen. SDL's search for one loads graphics drivers, whose LLVM and TensorFlow's crash.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

    def record(env: Any) -> Any:
        return RecordVideo(env, str(video), episode_trigger=lambda episode: episode < episodes)

    return make_vec(env_id, 1, render_mode="rgb_array", wrappers=[record, *wrappers], env_kwargs=env_kwargs)


def _trained_in(options: EvaluateOptions) -> dict[str, Any]:
    """What `_make_envs` takes: what the options name and, for the rest, what the run was configured with."""
    try:
        config = json.loads((options.path / "config.json").read_text())
        known = {name: config.get(name, default) for name, default in ENVIRONMENT.items()}
    except (OSError, ValueError, AttributeError):
        known = dict(ENVIRONMENT)
    given = {name: getattr(options, name) for name in ENVIRONMENT if getattr(options, name) is not None}
    if "env_id" not in given and known["env_id"] is None:
        raise UserError(f"{options.path} does not say which environment its policy was trained in: give --env-id")
    return {**known, **given}


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A progress bar, as a callback of `PPO.learn`."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} frames"),
        TextColumn("{task.fields[fps]:,.0f} frames/s"),
        TextColumn("return {task.fields[ret]:.1f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=messages) as bar:
        task = bar.add_task("", total=total, fps=0.0, ret=float("nan"))

        def show(metrics: dict[str, float]) -> None:
            bar.update(
                task,
                completed=min(total, int(metrics["time/total_timesteps"])),
                fps=metrics["time/fps"],
                ret=metrics["rollout/ep_rew_mean"],
            )

        yield show


def _build_kernel(options: BuildKernelOptions) -> None:
    from rl_lnlstm.kernel.build import library

    print(library(options.force))


@contextlib.contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """The first Ctrl-C is noted in the list that is given, for the run to end in order; the second one raises."""
    noted: list[bool] = []

    def note(*_: Any) -> None:
        if noted:
            raise KeyboardInterrupt
        noted.append(True)
        messages.print("stopping after this iteration; Ctrl-C again stops at once")

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not in the main thread, which alone receives signals
        yield noted
        return
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _import_tensorflow_quietly() -> None:
    """TensorFlow writes to the file descriptor, past its own log level, until it is imported.

    The garbage collector sleeps meanwhile, and from then on leaves aside what stays for the life of the process.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silence, 2)
        gc.disable()
        import rl_lnlstm.layer  # noqa: F401
    except ImportError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        raise UserError(f"Keras on TensorFlow is needed, got KERAS_BACKEND={backend}: {error}") from error
    finally:
        gc.enable()
        gc.freeze()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(silence)
