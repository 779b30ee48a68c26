"""A folder that shares a policy: a model card with its scores, the policy, and a video of an episode.

The card's metadata are those of model hubs: https://huggingface.co/docs/hub/model-cards. The folder can be pushed to a
hub as it is, and `load_policy` takes it.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rl_lnlstm.errors import RunFailure, UserError, printable
from rl_lnlstm.evaluation.environments import MAX_ENVS, MakeEnvs
from rl_lnlstm.evaluation.evaluate import gathered, run_episodes, seeds_of_episodes
from rl_lnlstm.evaluation.result import Evaluation, decimals
from rl_lnlstm.evaluation.video import VideoRecorder
from rl_lnlstm.exporting.export import export
from rl_lnlstm.files import check_is_free, replacing_folder
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.runs.layout import CONFIG, POLICY, RESULTS

README, REPLAY, MODEL = "README.md", "replay.mp4", "policy.onnx"
LIBRARY = "rl-lnlstm"
TAGS = "reinforcement-learning", "deep-reinforcement-learning", "recurrent-policy", "lstm", LIBRARY


# The values of the metadata are in JSON, which is also YAML, so that no name can change the structure.
METADATA = string.Template("""---
library_name: $library
pipeline_tag: reinforcement-learning
tags: $tags
model-index:
- name: $policy
  results:
  - task:
      type: reinforcement-learning
      name: reinforcement-learning
    dataset:
      name: $env_id
      type: $env_id
    metrics:
    - type: mean_reward
      value: $score
      name: mean_reward
      verified: false
---
""")
BODY = string.Template("""
# $policy for $env_id

A recurrent policy for `$env_id`, on a masked layer-normalised LSTM of $units units. It was made with `rl-lnlstm`.

| evaluation | |
| --- | --- |
$rows

## Use it

```python
from huggingface_hub import snapshot_download
from rl_lnlstm import load_policy

policy = load_policy(snapshot_download("USER/NAME"))  # or the path of this folder
action, state = policy.predict(observation, state, episode_start, deterministic=True)
```

The evaluation can be repeated with

    $command

## Files

$files

Loading the policy executes nothing from these files.
""")
FILES = {
    f"{POLICY}/": "the policy, as JSON and arrays",
    CONFIG: "the environment and the options",
    RESULTS: "the returns of all episodes of the evaluation, and their seeds",
    REPLAY: "a video of the first of these episodes",
    MODEL: "the policy as one ONNX model, which runs without this package; its metadata describe inputs and outputs",
}


def write_card(
    policy: RecurrentPolicy,
    make_envs: MakeEnvs,
    environment: Mapping[str, Any],
    folder: Path,
    config: Mapping[str, Any],
    *,
    n_episodes: int = 20,
    deterministic: bool = True,
    seed: int = 0,
    max_steps: int | None = None,
    num_envs: int = MAX_ENVS,
    vectorization: str | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluates a policy and writes a folder that shares it, completely or not at all.

    Args:
        policy: the policy.
        make_envs: makes environments, given their number and whether pictures are needed.
        environment: the options that describe the environment: `env_id`, `env_kwargs`, `wrappers`, `mask_key`.
        folder: a new folder.
        config: the options of the run.
        n_episodes, deterministic, seed, max_steps, num_envs: as for `evaluate`.
        vectorization: how the user wants environments to be made, for the command that repeats the evaluation.
        progress: is told what is missing in the folder, and why.

    Returns:
        The evaluation.

    Raises:
        UserError: `folder` is not free or cannot be written, or the environment does not fit the policy.
        EnvironmentFailure: the environment failed.
    """
    check_is_free(folder, "folder", "FOLDER")
    seeds = seeds_of_episodes(seed, n_episodes)
    with contextlib.closing(make_envs(min(num_envs, n_episodes), False)) as envs:
        result = gathered(run_episodes(policy, envs, seeds, seed, deterministic, max_steps), deterministic, seed)
    check_is_free(folder, "folder", "FOLDER")  # again: the evaluation may have taken long
    try:
        with replacing_folder(folder) as new:
            policy.save(new / POLICY)
            _write_json(new / CONFIG, {**config, **environment})
            _write_json(new / RESULTS, {"env_id": environment["env_id"], **result.to_dict()})
            extras: dict[str, Callable[[Path], Any]] = {
                REPLAY: lambda path: _record(policy, make_envs, path, seeds[0], deterministic, max_steps),
                MODEL: lambda path: export(policy, path, format="onnx"),
            }
            for name, write in extras.items():
                try:
                    write(new / name)
                except (UserError, RunFailure) as error:
                    progress(f"without {name}: {error}")
            text = _card(policy, environment, result, new, max_steps, vectorization)
            (new / README).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be written: {error}") from error
    return result


def _record(
    policy: RecurrentPolicy, make_envs: MakeEnvs, path: Path, seed: int, deterministic: bool, max_steps: int | None
) -> None:
    """Records an episode as a video."""
    policy.seed(seed)
    with (
        contextlib.closing(make_envs(1, True)) as envs,
        _folder_beside(path) as folder,
        contextlib.closing(VideoRecorder.for_envs(envs, folder)) as video,
    ):
        for _ in run_episodes(policy, envs, [seed], seed, deterministic, max_steps, video=video):
            pass
        (recorded,) = folder.iterdir()
        recorded.rename(path)


@contextlib.contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    folder = path.with_suffix(".recording")
    try:
        yield folder
    finally:
        for left in folder.glob("*"):
            left.unlink()
        if folder.exists():
            folder.rmdir()


def _card(
    policy: RecurrentPolicy,
    environment: Mapping[str, Any],
    result: Evaluation,
    folder: Path,
    max_steps: int | None,
    vectorization: str | None,
) -> str:
    digits = decimals(result.returns)
    score = f"{result.mean:.{digits}f} +/- {result.std:.{digits}f}"
    env_id, name = _plain(environment["env_id"]), type(policy).__name__
    interval, iqm = result.mean_interval, result.iqm_interval
    rows = {
        "mean return": f"{score}, 95% confidence {interval.low:.{digits}f} to {interval.high:.{digits}f}",
        "interquartile mean": f"{result.iqm:.{digits}f}, 95% confidence {iqm.low:.{digits}f} to {iqm.high:.{digits}f}",
        "episodes": f"{len(result.returns)}, seed {result.seed}",
        "mean length": f"{result.mean_length:,.0f} frames",
        **({"cut at the limit of steps": f"{sum(result.cut)} episodes"} if any(result.cut) else {}),
        "actions": "the most probable" if result.deterministic else "sampled",
    }
    command = [LIBRARY, "evaluate", "FOLDER", "--env-id", env_id, "--episodes", str(len(result.returns))]
    command += ["--seed", str(result.seed)] + ([] if result.deterministic else ["--no-deterministic"])
    command += [] if max_steps is None else ["--max-steps", str(max_steps)]
    command += [] if vectorization is None else ["--vectorization", vectorization]
    if environment.get("wrappers"):
        command += ["--wrappers", *map(_plain, environment["wrappers"])]
    metadata = {"tags": [env_id, *TAGS], "library": LIBRARY, "policy": name, "env_id": env_id, "score": score}
    return METADATA.substitute({key: json.dumps(value) for key, value in metadata.items()}) + BODY.substitute(
        policy=name,
        env_id=env_id,
        units=policy.units,
        rows="\n".join(f"| {label} | {value} |" for label, value in rows.items()),
        command=shlex.join(command),
        files="\n".join(f"- `{file}`: {text}" for file, text in FILES.items() if (folder / file).exists()),
    )


def _plain(value: Any) -> str:
    """A name from a file as text of a single line, without Markdown's code marks."""
    return printable(value).replace("\n", " ").replace("`", "'")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
