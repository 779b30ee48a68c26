"""The commands `train`, `evaluate` and `build-kernel`: the only place that wires everything together."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from rl_lnlstm.config import PPOConfig, check_types, upgraded
from rl_lnlstm.errors import RunFailure, RunWarning, UserError
from rl_lnlstm.files import check_is_free, read_json
from rl_lnlstm.presets import preset

CONFIG = "config.json"  # of a run directory
OTHER_RUN = "--run-dir, or go on with a run by --resume"  # how to name another run directory

# What an environment is made of, and what it is if a configuration does not say
ENVIRONMENT: dict[str, Any] = {"env_id": None, "env_kwargs": {}, "wrappers": (), "vectorization": "auto"}

EXIT_FAILURE, EXIT_USAGE = 1, 2
MAX_NAME = 200  # characters of what a file names
GRACE = 8.0  # seconds from SIGTERM to the end, whatever the run is doing: who sends it often kills after 10

messages = Console(stderr=True, highlight=False)


@dataclasses.dataclass(kw_only=True)
class TrainOptions(PPOConfig):
    """Trains a policy with recurrent PPO. Defaults are those of the environment's preset, where it has one."""

    run_dir: Path | None = None
    """where the run is recorded, a new folder; runs/<env>-<seed>-<time> if None"""
    eval_episodes: int = 20
    """episodes of the evaluation at the end; 0 for none"""

    resume: Path | None = None
    """run directory to go on in, from its newest checkpoint, which is unpickled: name only one of your own; the other
    options are those of the run, and of those that are named a larger --total-timesteps is the usual"""
    checkpoint_interval: int | None = None
    """iterations from a checkpoint to the next; as often as costs less than 1% of the time if None"""
    checkpoint_minutes: float | None = None
    """minutes from a checkpoint to the next, where that is sooner"""
    keep_checkpoints: int = 3
    """how many checkpoints are kept, the newest ones"""
    env_snapshot: bool = True
    """checkpoints hold the environments, pickled, and are resumed with them; otherwise with new episodes"""

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
    vectorization: Literal["auto", "sync", "vector_entry_point"] | None = None
    """one after the other, their own vector implementation, or the latter where there is one; as in training if None"""
    num_envs: int = 8
    """environments that are stepped together"""
    video: Path | None = None
    """folder to record videos of the episodes in; steps one environment only"""
    record: Path | None = None
    """new folder for the episodes as NumPy arrays, with the recurrent state beside them"""
    json: bool = False
    """print one JSON object on standard output"""


@dataclasses.dataclass(kw_only=True)
class BuildKernelOptions:
    """Compiles the CPU kernel ahead of its first use, for images, and prints where it is."""

    force: bool = False
    """build anew what is there already"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code.

    It is 0, 1 if it failed, 2 for a mistake of the user's, and 128 and the number of what ended it: 130 SIGINT, 141
    SIGPIPE, 143 SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with _signals() as stop, _warnings_as_messages():
        try:
            options = _parse(arguments)
            _import_tensorflow_quietly()
            if isinstance(options, TrainOptions):
                code = _train(options, stop)
            elif isinstance(options, EvaluateOptions):
                with stop.at_once():
                    code = _evaluate(options)
            else:
                code = _build_kernel(options)
        except UserError as error:
            messages.print(f"error: {error}", markup=False, soft_wrap=True)
            code = EXIT_USAGE
        except RunFailure as error:
            messages.print(f"error: {error}", markup=False, soft_wrap=True)
            code = EXIT_FAILURE
        except BrokenPipeError:  # whoever read the output, `head` say, has gone
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = 128 + signal.SIGPIPE
        except KeyboardInterrupt:
            stop.signal = stop.signal or signal.SIGINT
        except SystemExit as exit_of_parser:  # after --help, or after it explained what is wrong with the options
            code = int(exit_of_parser.code or 0)
    return code if stop.signal is None else 128 + stop.signal


def _parse(arguments: list[str]) -> TrainOptions | EvaluateOptions | BuildKernelOptions:
    commands = {"train": TrainOptions, "evaluate": EvaluateOptions, "build-kernel": BuildKernelOptions}
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in commands:
        default = _train_defaults(rest) if command == "train" else None
        return tyro.cli(commands[command], args=rest, default=default, prog=f"rl-lnlstm {command}")  # type: ignore[return-value]
    if command not in ("-h", "--help"):
        raise UserError(f"unknown command {command!r}: expected {' or '.join(commands)}")
    return tyro.extras.subcommand_cli_from_dict(commands, args=["--help"], prog="rl-lnlstm")  # type: ignore[arg-type]


def _train_defaults(arguments: list[str]) -> TrainOptions:
    """Of a run that is resumed, its options; otherwise those of the environment's preset."""
    resumed = _value(arguments, "--resume")
    if resumed is not None:
        return _saved_options(Path(resumed))
    env_id = _value(arguments, "--env-id")
    return TrainOptions(**preset(PPOConfig.env_id if env_id is None else env_id))


def _value(arguments: list[str], option: str) -> str | None:
    for position, argument in enumerate(arguments):
        flag, _, value = argument.partition("=")
        if flag in (option, option.replace("-", "_").replace("__", "--", 1)):
            return value or next(iter(arguments[position + 1 :]), "")
    return None


def _saved_options(run_dir: Path) -> TrainOptions:
    path = run_dir / CONFIG
    try:
        saved = upgraded(_read_config(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir} is no run directory to resume, {path.name}: {error}") from error
    options: dict[str, Any] = {name: _tuple_if_list(value) for name, value in saved.items()}
    try:
        check_types(options, TrainOptions)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return TrainOptions(**{**options, "resume": run_dir, "run_dir": None})


def _train(options: TrainOptions, stop: _Stop) -> int:
    from rl_lnlstm.evaluation.evaluate import evaluate_policy
    from rl_lnlstm.ppo.train import PPO
    from rl_lnlstm.runs.checkpoints import Checkpoints, read_newest
    from rl_lnlstm.runs.run_directory import CHECKPOINTS, RunDirectory, locked

    _check_checkpoint_options(options)
    run_dir = options.resume or options.run_dir or _new_run_dir(options)
    config = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("run_dir", "resume")}
    hyperparameters = {field.name: config[field.name] for field in dataclasses.fields(PPOConfig)}
    with contextlib.ExitStack() as resources:
        state = None
        if options.resume is None:
            check_is_free(run_dir, "run directory", OTHER_RUN)
        else:
            resources.enter_context(locked(run_dir))
            _list_changes(_saved_options(run_dir), options)
            state = read_newest(run_dir / CHECKPOINTS)
        ppo = PPO(hyperparameters.pop("policy"), hyperparameters.pop("env_id"), **hyperparameters)
        resources.callback(ppo.envs.close)
        if state is None:
            resources.enter_context(locked(run_dir))
            check_is_free(run_dir, "run directory", OTHER_RUN)
            run = RunDirectory(run_dir, config, ppo.policy)
            messages.print(
                f"training {type(ppo.policy).__name__} in {options.env_id}, recorded in {run_dir}", markup=False
            )
        else:
            if options.env_snapshot and state.environments is not None:
                messages.print("unpickling the environments of the checkpoint; --no-env-snapshot avoids it")
            ppo.load_checkpoint(state, options.total_timesteps, options.env_snapshot)
            run = RunDirectory(run_dir, config, ppo.policy, ppo.iteration, ppo.num_timesteps)
            left = "nothing is left to train" if ppo.finished else f"training on to {options.total_timesteps:,}"
            messages.print(
                f"resumed after {ppo.num_timesteps:,} frames in {run_dir}: {left}", markup=False, soft_wrap=True
            )
        checkpoints = Checkpoints(
            run_dir / CHECKPOINTS,
            ppo,
            run.flush,
            options.checkpoint_interval,
            options.checkpoint_minutes,
            options.keep_checkpoints,
            options.env_snapshot,
            stopping=lambda: stop.signal is not None,
        )
        try:
            checkpoints.save()  # from now on there always is one
            if stop.signal is None:
                with _progress(options.total_timesteps, ppo.num_timesteps) as progress:
                    ppo.learn(callback=[run, progress, checkpoints])
        except BaseException:
            # In the middle of an iteration the run is in no state that it could go on from: the one before holds.
            if ppo.between_iterations:
                checkpoints.save()
            raise
        finally:
            everything = run.finish()
            messages.print(f"policy, metrics and learning curve are in {run_dir}", markup=False)
    if not everything:
        messages.print(f"error: {run_dir} could not be written to the end", markup=False)
        return EXIT_FAILURE
    if stop.signal is None and options.eval_episodes:
        envs = _make_envs(config, options.eval_episodes, 8, **ppo.config.fault_tolerance)
        with stop.at_once(), contextlib.closing(envs):
            mean, std = evaluate_policy(ppo.policy, envs, options.eval_episodes, seed=options.seed + options.num_envs)
        print(f"{mean:.1f} +/- {std:.1f} over {options.eval_episodes} episodes")
    return 0


def _new_run_dir(options: TrainOptions) -> Path:
    name = re.sub(r"[^\w.-]", "-", options.env_id)
    return Path("runs") / f"{name}-{options.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def _check_checkpoint_options(options: TrainOptions) -> None:
    if options.resume is not None and options.run_dir is not None:
        raise UserError("--resume goes on in the run directory that it names: leave out --run-dir")
    for name, at_least in (("checkpoint_interval", 1), ("keep_checkpoints", 1), ("checkpoint_minutes", 0)):
        value = getattr(options, name)
        if value is not None and not value >= at_least:
            raise UserError(f"{name} must be at least {at_least}, got {value}")


def _list_changes(saved: TrainOptions, options: TrainOptions) -> None:
    """Tells which options are not those that the run had; raises `UserError` for those that cannot be changed."""
    changes = {
        field.name: f"{field.name} {getattr(saved, field.name)} -> {getattr(options, field.name)}"
        for field in dataclasses.fields(options)
        if getattr(saved, field.name) != getattr(options, field.name)
    }
    refused = changes.keys() & PPOConfig.fixed()
    if refused:
        listed = ", ".join(changes[name] for name in sorted(refused))
        raise UserError(f"a run that is resumed cannot change what its weights or environments are: {listed}")
    if changes:
        messages.print(f"changed: {', '.join(changes.values())}", markup=False, soft_wrap=True)


def _evaluate(options: EvaluateOptions) -> int:
    import numpy as np

    from rl_lnlstm.evaluation.evaluate import bootstrap_interval, interquartile_mean, run_episodes
    from rl_lnlstm.evaluation.record import save_episode
    from rl_lnlstm.policies.loading import load_policy

    policy = load_policy(options.path)
    policy.seed(options.seed)
    environment = _trained_in(options)
    env_id = environment["env_id"]
    record = options.record
    if record is not None:
        check_is_free(record, "folder", "--record")
    returns, lengths = [], []
    envs = _make_envs(environment, options.episodes, options.num_envs, options.video)
    with contextlib.closing(envs):
        runs = run_episodes(policy, envs, options.episodes, options.deterministic, options.seed, record is not None)
        for number, (episode, arrays) in enumerate(runs):
            returns.append(episode.episode_return)
            lengths.append(episode.length)
            if record is not None:
                save_episode(arrays, record / f"episode-{number:05d}.npz")
    earned = np.array(returns)
    mean, std = float(np.mean(earned)), float(np.std(earned))
    iqm, (low, high) = float(interquartile_mean(earned)), bootstrap_interval(earned)
    for what, folder in (("videos", options.video), ("recorded episodes", record)):
        if folder is not None:
            messages.print(f"{what} are in {folder}", markup=False)
    if not options.json:
        print(f"{mean:.1f} +/- {std:.1f} over {options.episodes} episodes")
        frames = np.mean(lengths)
        print(f"interquartile mean {iqm:.1f}, {low:.1f} to {high:.1f} with 95% confidence; {frames:.0f} frames each")
        return 0
    result: dict[str, Any] = {
        "env_id": env_id,
        "mean_reward": mean,
        "std_reward": std,
        "median_reward": float(np.median(earned)),
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
    return 0


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
    """What `_make_envs` takes: what the options name and, for the rest, what the run was configured with.

    Of a configuration nothing is taken that imports a module or writes a file: that is not for a file to decide.
    """
    path = options.path / CONFIG
    try:
        config = _read_config(path)
    except (OSError, ValueError):
        config = {}
    known = {name: config.get(name, default) for name, default in ENVIRONMENT.items()}
    given = {name: getattr(options, name) for name in ENVIRONMENT if getattr(options, name) is not None}
    if "env_id" not in given and known["env_id"] is None:
        raise UserError(f"{options.path} does not say which environment its policy was trained in: give --env-id")
    taken = {name: _tuple_if_list(value) for name, value in known.items() if name not in given}
    try:
        check_types(taken, TrainOptions)
    except UserError as error:
        raise UserError(f"{path}: {error}; give --{str(error).split()[0].replace('_', '-')}") from None
    for name, values in (("env_id", [taken.get("env_id", "")]), ("wrappers", taken.get("wrappers", ()))):
        for value in values:
            named = value.partition("(")[0].strip().removeprefix("gymnasium.wrappers:" if name == "wrappers" else "")
            if ":" in named or named == "RecordVideo" or len(value) > MAX_NAME:
                flag = name.replace("_", "-")
                raise UserError(
                    f"{path} names {value[:MAX_NAME]!r}, which a file is not trusted with, as it imports a module or "
                    f"writes files: give --{flag} to allow it"
                )
    return {**taken, **given}


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError("it is no object")
    return config


def _tuple_if_list(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@contextlib.contextmanager
def _progress(total: int, completed: int) -> Iterator[Any]:
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
        task = bar.add_task("", total=total, completed=min(total, completed), fps=0.0, ret=float("nan"))

        def show(metrics: dict[str, float]) -> None:
            bar.update(
                task,
                completed=min(total, int(metrics["time/total_timesteps"])),
                fps=metrics["time/fps"],
                ret=metrics["rollout/ep_rew_mean"],
            )

        yield show


def _build_kernel(options: BuildKernelOptions) -> int:
    from rl_lnlstm.lstm.kernel.build import library

    print(library(options.force))
    return 0


class _Stop:
    """Whether the process was asked to end, by Ctrl-C (SIGINT) or SIGTERM.

    The first signal is noted, for the run to end in order, and the second one raises KeyboardInterrupt; while nothing
    could be lost, the first one does.

    Attributes:
        signal: the first one's number, None as long as there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = True

    def note(self, number: int, _: Any) -> None:
        again, self.signal = self.signal is not None, self.signal or number
        if again or not self._deferred:
            raise KeyboardInterrupt
        messages.print("stopping after this iteration; Ctrl-C again stops at once")

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        if self.signal is not None:
            raise KeyboardInterrupt
        self._deferred = False
        try:
            yield
        finally:
            self._deferred = True


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # which alone receives signals
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    with _deadline():
        try:
            yield stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Ends the process `GRACE` seconds after SIGTERM, if it is still in the block.

    A thread of its own sees to it, woken by the signal itself: as long as the main thread is in a compiled update, it
    calls no handler. What is on the disk is whole at any moment.
    """
    ended = threading.Event()
    woken, waker = socket.socketpair()
    waker.setblocking(False)
    before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        while received := woken.recv(1):
            if received[0] == signal.SIGTERM and not ended.wait(GRACE):
                os.write(2, b"the iteration did not end in time: stopped in the middle, after the newest checkpoint\n")
                os._exit(128 + signal.SIGTERM)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        waker.close()
        watcher.join()
        woken.close()


@contextlib.contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """What a run lives with is told on standard error, each cause once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", RunWarning)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, RunWarning):
                messages.print(f"warning: {message}", markup=False, soft_wrap=True)
            else:
                show(message, category, *rest, **named)

        warnings.showwarning = tell
        yield


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
        import rl_lnlstm.lstm.layer  # noqa: F401
    except ImportError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        raise UserError(f"Keras on TensorFlow is needed, got KERAS_BACKEND={backend}: {error}") from error
    finally:
        gc.enable()
        gc.freeze()
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(silence)
