"""The command `train`: trains, records the run in its directory, and evaluates the policy at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Any

from rl_lnlstm.commands.console import messages, output, tell
from rl_lnlstm.commands.options import EvaluateOptions
from rl_lnlstm.commands.policy_environment import naming_words
from rl_lnlstm.commands.signals import Stop
from rl_lnlstm.commands.training_options import TrainOptions, saved_options
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.envs.check_env import check_env
from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.evaluation.result import decimals
from rl_lnlstm.files import check_is_free, replacing_file
from rl_lnlstm.ppo.checkpoint_files import TrainingState
from rl_lnlstm.ppo.cloning import Epoch
from rl_lnlstm.ppo.pretrain import pretrain
from rl_lnlstm.ppo.progress import ProgressBar
from rl_lnlstm.ppo.train import PPO
from rl_lnlstm.runs.checkpoints import Checkpoints, read_newest
from rl_lnlstm.runs.layout import CHECKPOINTS, RESULTS, default_run_dir
from rl_lnlstm.runs.lock import locked
from rl_lnlstm.runs.run_record import RunRecord
from rl_lnlstm.runs.trackers import TRACKERS, Tracker
from rl_lnlstm.seeding import derived_seed

NOT_SAVED = "preset", "run_dir", "resume", "seeds", "parallel"  # options that do not belong to a single run
EPOCHS_TOLD = 10  # epochs of pretraining between two messages
OTHER_RUN = "--run-dir, or resume a run with --resume"  # how to name another run directory


def train(options: TrainOptions, stop: Stop) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as for `PPO` and `PPO.learn`, or because the options or the run directory cannot be used.
    """
    if options.resume is not None and options.run_dir is not None:
        raise UserError("--resume continues in its own run directory: leave out --run-dir")
    if options.parallel != TrainOptions.parallel:
        raise UserError("--parallel is the number of runs at the same time, and needs --seeds")
    run_dir = options.resume or options.run_dir or default_run_dir(options.env_id, str(options.seed))
    names = [field.name for field in dataclasses.fields(PPOConfig)]
    PPOConfig(**{name: getattr(options, name) for name in names})  # checks the sizes, from which `to_json` computes
    config = {name: value for name, value in options.to_json().items() if name not in NOT_SAVED}
    # An environment may change the current folder.
    shown_path, run_dir = run_dir, run_dir.absolute()
    episodes = None if options.pretrain is None else os.path.abspath(options.pretrain)
    tracker = None if options.track is None else TRACKERS[options.track](_name(run_dir), run_dir)
    with contextlib.ExitStack() as resources:
        state = None
        if options.resume is None:
            check_is_free(shown_path, "run directory", OTHER_RUN)
            if options.check_env:
                check_env(
                    options.env_id,
                    vectorization=options.vectorization,
                    wrappers=options.wrappers,
                    env_kwargs=options.env_kwargs,
                    mask_key=options.mask_key,
                )
        else:
            resources.enter_context(locked(run_dir))
            _list_changes(saved_options(run_dir), options)
            state = read_newest(run_dir / CHECKPOINTS)
        hyperparameters = {name: config[name] for name in names}
        ppo = PPO(hyperparameters.pop("policy"), hyperparameters.pop("env_id"), **hyperparameters)
        resources.callback(ppo.close)
        if state is None:
            if episodes is not None:
                with stop.at_once():
                    _pretrain(ppo, episodes)
            resources.enter_context(locked(run_dir))
            check_is_free(run_dir, "run directory", OTHER_RUN)
            run = RunRecord(run_dir, config, ppo.policy)
            tell(f"training {type(ppo.policy).__name__} in {options.env_id}, recorded in {shown_path}")
        else:
            run = _resume(ppo, state, run_dir, config, options)
        whole = _learn(ppo, run, shown_path, options, stop, tracker)
        if not whole:
            return 1
        if not stop.requested and options.eval_episodes:
            with stop.at_once():
                _evaluate(ppo, run_dir, options)
        tell(f"next: {evaluate_command(shown_path, options)}")
    return 0


def _pretrain(ppo: PPO, folder: str) -> None:
    """Clones the behaviour in the episodes of a folder, and prints how well that worked."""

    def tell_epoch(epoch: Epoch) -> None:
        if epoch.number % EPOCHS_TOLD == 0:
            validation = "" if epoch.validation_loss is None else f", validation {epoch.validation_loss:.4f}"
            tell(f"pretraining, epoch {epoch.number}: loss {epoch.loss:.4f}{validation}")

    seed, compiled = derived_seed(ppo.config.seed, "pretraining"), ppo.config.jit_compile
    result = pretrain(ppo, folder, seed=seed, jit_compile=compiled, callback=tell_epoch)
    count = result.n_episodes + result.n_validation_episodes
    accuracy = "" if result.accuracy is None else f", {result.accuracy:.1%} of the actions are the most probable ones"
    tell(f"pretrained on {count} episodes of {folder}: loss {result.loss:.4f}{accuracy}")


def _learn(
    ppo: PPO, run: RunRecord, shown_path: Path, options: TrainOptions, stop: Stop, tracker: Tracker | None
) -> bool:
    """Trains to the end, or until a signal. Returns whether all files could be written."""
    checkpoints = Checkpoints(
        run.path / CHECKPOINTS,
        ppo,
        run.flush,
        options.checkpoint_interval,
        options.checkpoint_minutes,
        options.keep_checkpoints,
        options.env_snapshot,
        stopping=lambda: stop.requested,
    )
    try:
        checkpoints.save()  # from now on there is always a checkpoint
        if not stop.requested:
            trackers = [] if tracker is None else [tracker]
            ppo.learn(callback=[run, *trackers, ProgressBar(messages), checkpoints])
    except BaseException:
        # Training cannot continue from the middle of an iteration. Then the checkpoint before it stays the newest.
        if ppo.between_iterations:
            checkpoints.save()
        raise
    finally:
        with ppo.best_weights():
            whole = run.finish()
        tell(f"{ppo.num_timesteps:,} frames trained; policy, metrics and learning curve are in {shown_path}")
    if not whole:
        tell(f"error: some files in {shown_path} could not be written")
    return whole


def _resume(ppo: PPO, state: TrainingState, run_dir: Path, config: dict[str, Any], options: TrainOptions) -> RunRecord:
    if options.env_snapshot and state.environments is not None:
        tell("unpickling the environments of the checkpoint; --no-env-snapshot avoids it")
    ppo.load_checkpoint(state, options.total_timesteps, options.env_snapshot)
    run = RunRecord(run_dir, config, ppo.policy, ppo.iteration, ppo.num_timesteps)
    left = "nothing is left to train" if ppo.finished else f"training on to {options.total_timesteps:,}"
    tell(f"resumed after {ppo.num_timesteps:,} frames in {options.resume}: {left}")
    return run


def _list_changes(saved: TrainOptions, options: TrainOptions) -> None:
    """Prints the options that differ from those of the run. Raises `UserError` for options that must not change."""
    changes = {
        field.name: f"{field.name} {getattr(saved, field.name)} -> {getattr(options, field.name)}"
        for field in dataclasses.fields(options)
        if field.name not in NOT_SAVED and getattr(saved, field.name) != getattr(options, field.name)
    }
    refused = changes.keys() & PPOConfig.fixed()
    if refused:
        listed = ", ".join(changes[name] for name in sorted(refused))
        raise UserError(f"a resumed run cannot change these options: {listed}")
    if "pretrain" in changes:
        raise UserError(f"pretraining is done before the first frame, and cannot be changed: {changes['pretrain']}")
    if changes:
        tell(f"changed: {', '.join(changes.values())}")


def _name(run_dir: Path) -> str:
    """The name of a run for a tracker. The folder of one of several seeds is named after its seed only."""
    run_dir = run_dir.absolute()
    return f"{run_dir.parent.name}/{run_dir.name}" if run_dir.name.startswith("seed-") else run_dir.name


def _evaluate(ppo: PPO, run_dir: Path, options: TrainOptions) -> None:
    """Evaluates the policy, as `rl-lnlstm evaluate` does with the seed of the run, and writes `results.json`."""
    result = ppo.evaluation(options.eval_episodes)
    results = {"env_id": options.env_id, "total_timesteps": ppo.num_timesteps, **result.to_dict()}
    try:
        with replacing_file(run_dir / RESULTS) as path:
            path.write_text(json.dumps(results, indent=2) + "\n")
    except OSError as error:
        warn(f"{run_dir / RESULTS} cannot be written: {error}")
    digits = decimals(result.returns)
    output(f"{result.mean:.{digits}f} +/- {result.std:.{digits}f} over {options.eval_episodes} episodes")


def evaluate_command(run_dir: Path, options: TrainOptions) -> str:
    """The command line that runs the same evaluation again."""
    words = ["rl-lnlstm", "evaluate", str(run_dir), *naming_words(options.env_id, options.wrappers)]
    if options.eval_episodes not in (0, EvaluateOptions.episodes):
        words += ["--episodes", str(options.eval_episodes)]
    if options.seed != EvaluateOptions.seed:
        words += ["--seed", str(options.seed)]
    return shlex.join(words)
