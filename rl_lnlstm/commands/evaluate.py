"""The command `evaluate`: runs a saved policy for whole episodes and reports their returns."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from rl_lnlstm.commands.console import output, prints_on_stderr, tell
from rl_lnlstm.commands.options import EvaluateOptions
from rl_lnlstm.commands.policy_environment import environment_maker, environment_options
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.episodes import EvaluatedEpisode
from rl_lnlstm.evaluation.evaluate import gathered, run_episodes, seeds_of_episodes
from rl_lnlstm.evaluation.record import save_episode
from rl_lnlstm.evaluation.video import VideoRecorder
from rl_lnlstm.files import check_free_and_writable, check_writable
from rl_lnlstm.policies.loading import load_policy


def evaluate(options: EvaluateOptions) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as `rl_lnlstm.evaluate`; the policy or a folder cannot be used.
    """
    if options.episode_seeds == ():
        raise UserError("--episode-seeds needs at least one seed")
    policy = load_policy(options.run_dir)
    policy.seed(options.seed)
    environment = environment_options(options, policy.env_id)
    for flag, folder in (("--record", options.record), ("--video", options.video)):
        if folder is not None:
            check_free_and_writable(folder, "folder", flag)
    if options.csv is not None:
        check_writable(options.csv, "the episodes", "--csv")
    if options.episode_seeds is None:
        seed, seeds = options.seed, seeds_of_episodes(options.seed, options.episodes)
    else:
        seed, seeds = None, list(options.episode_seeds)
    make_envs = environment_maker(options, environment, policy.observation_space)
    # An environment may change the current folder, and may print.
    videos, record, csv = (path and path.absolute() for path in (options.video, options.record, options.csv))
    with prints_on_stderr(), contextlib.ExitStack() as resources:
        envs = resources.enter_context(contextlib.closing(make_envs(min(options.num_envs, len(seeds)), bool(videos))))
        video = None
        if videos is not None:
            video = resources.enter_context(contextlib.closing(VideoRecorder.for_envs(envs, videos)))
        how = options.deterministic, options.max_steps, record is not None, video
        result = gathered(_saved(run_episodes(policy, envs, seeds, seed, *how), record), options.deterministic, seed)
    output(json.dumps({"env_id": environment["env_id"], **result.to_dict()}) if options.json else str(result))
    if csv is not None:
        result.save_csv(csv)
    for what, path in (("videos", options.video), ("recorded episodes", options.record), ("episodes", options.csv)):
        if path is not None:
            tell(f"{what} are in {path}")
    return 0


def _saved(episodes: Iterable[EvaluatedEpisode], folder: Path | None) -> Iterator[EvaluatedEpisode]:
    """Passes the episodes on. If there is a folder, saves each episode in it."""
    for episode in episodes:
        if folder is not None:
            save_episode(episode.arrays, folder / f"episode-{episode.number:05d}.npz")
        yield episode
