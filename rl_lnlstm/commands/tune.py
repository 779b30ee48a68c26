"""The command `tune`: searches for good options, and writes them to a preset file."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rl_lnlstm.commands.console import output, tell
from rl_lnlstm.commands.tuning_options import TuneOptions, read_sweep
from rl_lnlstm.commands.words import given_options
from rl_lnlstm.config import PPOConfig, WorkerOptions
from rl_lnlstm.envs.check_env import check_env
from rl_lnlstm.errors import UserError
from rl_lnlstm.files import check_is_free, replacing_file
from rl_lnlstm.ppo.collectors.ray_cluster import LOCAL
from rl_lnlstm.presets import write_preset
from rl_lnlstm.runs.layout import default_run_dir
from rl_lnlstm.runs.lock import locked
from rl_lnlstm.tuning.cluster import check_packages, connected
from rl_lnlstm.tuning.records import write_sweep
from rl_lnlstm.tuning.results import finalists_table, importance_table, table, write_csv
from rl_lnlstm.tuning.space import SEARCHED, search_space

PRESET, PICTURE, TABLE = "preset.json", "tune.png", "trials.csv"
NOT_SAVED = "resume", "run_dir", "preset"
WORKERS = tuple(field.name for field in dataclasses.fields(WorkerOptions))
OPTIONS = tuple(field.name for field in dataclasses.fields(PPOConfig) if field.name not in WORKERS)


def tune(options: TuneOptions, arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code.

    Args:
        options: the options of the command.
        arguments: the command line of these options, without the command.

    Raises:
        UserError, RunFailure: as `run_sweep`; a package is missing; options or the folder cannot be used; or no Ray
            cluster answers.
    """
    folder = options.resume or options.run_dir or default_run_dir(options.env_id, "tune")
    base = PPOConfig(**{name: getattr(options, name) for name in OPTIONS})
    address = options.ray or LOCAL
    PPOConfig(ray=address)  # checks it
    fixed = given_options(arguments, OPTIONS)
    if options.resume is None:
        check_is_free(folder, "folder", "--run-dir, or resume a sweep with --resume")
    else:
        fixed = _fixed_before(options, fixed)
    if not search_space(base, fixed):
        raise UserError("all options that tune varies are fixed, so there is nothing to search")
    with contextlib.chdir("."):  # goes back to the current folder, which an environment may change
        check_env(
            base.env_id,
            vectorization=base.vectorization,
            wrappers=base.wrappers,
            env_kwargs=base.env_kwargs,
            mask_key=base.mask_key,
        )
    check_packages()
    with contextlib.ExitStack() as resources:
        parallel = resources.enter_context(connected(address, options.parallel))
        resources.enter_context(locked(folder))
        if options.resume is None:  # again: another process may have begun a sweep there
            check_is_free(folder, "folder", "--run-dir, or resume a sweep with --resume")
        _save(folder, options, fixed)
        resources.enter_context(_telling_how_to_resume(folder))
        _run(folder, base, fixed, options, parallel)
    return 0


def _fixed_before(options: TuneOptions, given: frozenset[str]) -> frozenset[str]:
    """The fixed options of the sweep that is resumed. Raises `UserError` if it is another sweep."""
    assert options.resume is not None
    saved = read_sweep(options.resume)
    differing = [
        f"{name} {getattr(saved.options, name)} -> {getattr(options, name)}"
        for name in OPTIONS
        if getattr(saved.options, name) != getattr(options, name)
    ]
    if differing:
        raise UserError(f"{options.resume} is another sweep: {', '.join(differing)}")
    if new := given - saved.fixed:
        raise UserError(f"{options.resume} is another sweep: it searches {' and '.join(sorted(new))}")
    return saved.fixed


def _save(folder: Path, options: TuneOptions, fixed: frozenset[str]) -> None:
    content = {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_SAVED}
    try:
        write_sweep(folder, {"options": content, "fixed": sorted(fixed)})
    except OSError as error:
        raise UserError(f"folder {folder} cannot be written: {error}") from error


@contextlib.contextmanager
def _telling_how_to_resume(folder: Path) -> Iterator[None]:
    """A context manager: if Ctrl-C ends its block, prints how to resume the sweep."""
    try:
        yield
    except KeyboardInterrupt:
        tell(f"stopped; to continue: {shlex.join(['rl-lnlstm', 'tune', '--resume', str(folder)])}")
        raise


def _run(folder: Path, base: PPOConfig, fixed: frozenset[str], options: TuneOptions, parallel: int) -> None:
    """Runs the sweep, and writes its results."""
    from rl_lnlstm.tuning.picture import sweep_picture  # imports matplotlib
    from rl_lnlstm.tuning.sweep import Sweep, run_sweep  # imports Ray and Optuna

    sweep = Sweep(
        folder=folder,
        base=base,
        fixed=fixed,
        n_trials=options.trials,
        parallel=parallel,
        n_finalists=options.finalists,
        n_eval_episodes=options.eval_episodes,
    )
    names = [name for name in SEARCHED if name not in fixed]
    tell(
        f"{'resuming' if options.resume else 'tuning'} {base.env_id} in {folder}: {options.trials} trials of at most "
        f"{base.total_timesteps:,} frames, {parallel} at a time; searching {', '.join(names)}"
    )
    began = time.monotonic()
    outcome = run_sweep(sweep, tell)
    space = search_space(base, fixed)
    title = f"{base.env_id}: {len(outcome.trials)} trials"
    try:
        write_preset(folder / PRESET, outcome.options)
        write_csv(folder / TABLE, outcome.trials, outcome.finalists)
        with replacing_file(folder / PICTURE) as path:
            sweep_picture(outcome.trials, outcome.finalists, outcome.importances, space, title).savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"the results cannot be written to {folder}: {error}") from error
    parts = [table(outcome.trials)]
    if outcome.importances:
        parts.append("importance for being among the best quarter:\n" + importance_table(outcome.importances))
    parts.append(f"the best trials again, with seed {base.seed + 1}:\n" + finalists_table(outcome.finalists))
    output("\n\n".join(parts))
    tell(f"{time.monotonic() - began:,.0f} s; preset, picture and table are in {folder}")
    tell(f"next: {shlex.join(['rl-lnlstm', 'train', '--preset', str(folder / PRESET)])}")
