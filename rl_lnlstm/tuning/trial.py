"""The function that Ray Tune runs for each trial, in a process of its own.

It imports TensorFlow only in that process. The process of the sweep does not need it.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any, TypedDict

from rl_lnlstm.errors import RunFailure, UserError
from rl_lnlstm.tuning.records import Report


class Task(TypedDict):
    """What a trial needs to know; Tune's `config`.

    Attributes:
        number: the number of the trial.
        folder: the folder of the trial, which all nodes of the cluster must see.
        options: the arguments of `PPOConfig`.
        n_eval_episodes: number of episodes to evaluate the policy with at the end; 0 for none.
        current_folder: the folder of the sweep's process, for `--env-id module:id`.
    """

    number: int
    folder: str
    options: dict[str, Any]
    n_eval_episodes: int
    current_folder: str


def run_trial(task: Task) -> None:
    """Trains a trial from its newest checkpoint, if there is one, and reports scores to Ray Tune."""
    from ray import tune  # an optional package

    def report(report: Report, finished: bool) -> None:
        tune.report({**report._asdict(), "finished": finished})

    def report_failure(kind: str, message: str) -> None:
        tune.report({"frames": 0, "score": math.nan, "finished": False, kind: message})

    # Ray Tune changes the current folder, and relative paths in options would no longer work.
    if os.path.isdir(task["current_folder"]):
        os.chdir(task["current_folder"])
    if task["current_folder"] not in sys.path:
        sys.path.insert(0, task["current_folder"])
    try:
        from rl_lnlstm.tuning.training import train, use_one_thread  # imports TensorFlow

        use_one_thread()
        train(Path(task["folder"]), task["options"], task["n_eval_episodes"], report)
    except UserError as error:  # all other trials would fail for the same reason
        report_failure("user_error", str(error))
    except RunFailure as error:
        report_failure("failure", str(error))
    except Exception as error:  # an error of the environment or of this package: other trials may do better
        report_failure("failure", f"{type(error).__name__}: {error}")
