"""The command `evaluate`: runs a saved policy for whole episodes and reports their returns."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import RecordVideo

from rl_lnlstm.commands.console import messages, output
from rl_lnlstm.commands.options import EvaluateOptions, TrainOptions, read_config, tuple_if_list
from rl_lnlstm.config import check_types
from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.evaluate import run_episodes
from rl_lnlstm.evaluation.record import save_episode
from rl_lnlstm.evaluation.statistics import bootstrap_interval, interquartile_mean
from rl_lnlstm.files import check_is_free
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.runs.layout import CONFIG

# The options that say which environments to make, and their values where a configuration has none
ENVIRONMENT: dict[str, Any] = {"env_id": None, "env_kwargs": {}, "wrappers": (), "vectorization": "auto"}
MAX_NAME = 200  # characters of a name from a file
MOST_ENVS = 8  # environments that are stepped together, unless an option says otherwise


def evaluate(options: EvaluateOptions) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as `evaluate_policy`; the policy or a folder cannot be used.
    """
    policy = load_policy(options.path)
    policy.seed(options.seed)
    environment = _trained_in(options)
    record = options.record
    if record is not None:
        check_is_free(record, "folder", "--record")
    returns, lengths = [], []
    envs = make_evaluation_envs(environment, options.episodes, options.num_envs, options.video)
    with contextlib.closing(envs):
        runs = run_episodes(policy, envs, options.episodes, options.deterministic, options.seed, record is not None)
        for number, (episode, arrays) in enumerate(runs):
            returns.append(episode.episode_return)
            lengths.append(episode.length)
            if record is not None:
                save_episode(arrays, record / f"episode-{number:05d}.npz")
    for what, folder in (("videos", options.video), ("recorded episodes", record)):
        if folder is not None:
            messages.print(f"{what} are in {folder}", markup=False)
    result = {"env_id": environment["env_id"], **_summary(options, returns, lengths)}
    if options.json:
        output(json.dumps(result))
    else:
        low, high = result["iqm_confidence_interval"]
        output(
            f"{result['mean_reward']:.1f} +/- {result['std_reward']:.1f} over {options.episodes} episodes\n"
            f"interquartile mean {result['iqm_reward']:.1f}, {low:.1f} to {high:.1f} with 95% confidence; "
            f"{result['mean_ep_length']:.0f} frames each"
        )
    return 0


def _summary(options: EvaluateOptions, returns: list[float], lengths: list[int]) -> dict[str, Any]:
    episode_returns = np.array(returns)
    return {
        "mean_reward": float(np.mean(episode_returns)),
        "std_reward": float(np.std(episode_returns)),
        "median_reward": float(np.median(episode_returns)),
        "iqm_reward": float(interquartile_mean(episode_returns)),
        "iqm_confidence_interval": list(bootstrap_interval(episode_returns)),
        "n_episodes": len(returns),
        "mean_ep_length": float(np.mean(lengths)),
        "deterministic": options.deterministic,
        "seed": options.seed,
        "episode_rewards": returns,
        "episode_lengths": lengths,
    }


def make_evaluation_envs(
    environment: Mapping[str, Any],
    n_eval_episodes: int,
    most: int = MOST_ENVS,
    video: Path | None = None,
    **fault_tolerance: Any,
) -> VectorEnv:
    """The environments that the options of `ENVIRONMENT` describe; a single one for videos.

    With "async", they get processes of their own only if they may fail (`fault_tolerance`).
    """
    env_id, env_kwargs, wrappers, vectorization = (environment[name] for name in ENVIRONMENT)
    if video is None:
        return make_vec(
            env_id,
            min(n_eval_episodes, most),
            vectorization="sync" if vectorization == "async" and not fault_tolerance else vectorization,
            wrappers=wrappers,
            env_kwargs=env_kwargs,
            **fault_tolerance,
        )

    # Videos need no screen. When SDL looks for one it loads graphics drivers, whose LLVM crashes TensorFlow's.
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")

    def record(env: Any) -> Any:
        return RecordVideo(env, str(video), episode_trigger=lambda episode: episode < n_eval_episodes)

    return make_vec(env_id, 1, render_mode="rgb_array", wrappers=[record, *wrappers], env_kwargs=env_kwargs)


def _trained_in(options: EvaluateOptions) -> dict[str, Any]:
    """The options of `ENVIRONMENT`: those of the command line, and for the rest those of the run's configuration.

    A configuration is not trusted to import a module or to write files.
    """
    path = options.path / CONFIG
    try:
        config = read_config(path)
    except (OSError, ValueError):
        config = {}
    known = {name: config.get(name, default) for name, default in ENVIRONMENT.items()}
    given = {name: getattr(options, name) for name in ENVIRONMENT if getattr(options, name) is not None}
    if "env_id" not in given and known["env_id"] is None:
        raise UserError(f"{options.path} does not say which environment its policy was trained in: give --env-id")
    taken = {name: tuple_if_list(value) for name, value in known.items() if name not in given}
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
                    f"{path} names {value[:MAX_NAME]!r}, which would import a module or write files; a file is not "
                    f"trusted with that: give --{flag} to allow it"
                )
    return {**taken, **given}
