"""The training of a trial: `PPO.learn` with reports and checkpoints."""

from __future__ import annotations

import contextlib
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from rl_lnlstm.errors import RunFailure, RunWarning, UserError
from rl_lnlstm.ppo.callbacks import Metrics
from rl_lnlstm.ppo.checkpoint_files import TrainingState
from rl_lnlstm.ppo.checkpoint_files import read as read_checkpoint
from rl_lnlstm.ppo.train import PPO
from rl_lnlstm.tuning.records import CHECKPOINT, POLICY, Report, Scores, read_scores, write_scores

REPORTS_PER_TRIAL = 20


def use_one_thread() -> None:
    """Limits TensorFlow to one thread, because each trial has one CPU."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def train(
    folder: Path, options: dict[str, Any], n_eval_episodes: int, report: Callable[[Report, bool], None]
) -> Scores:
    """Trains a trial to its end, from its newest checkpoint if there is one.

    A report is written first, then the checkpoint, and then `report` is called. So a trial that is killed at any moment
    repeats at most the frames since its last report.

    Args:
        folder: the folder of the trial.
        options: the arguments of `PPOConfig`.
        n_eval_episodes: number of episodes to evaluate the policy with at the end, after saving it; 0 for neither.
        report: a function of a report, and whether it is the last one.

    Raises:
        UserError, RunFailure: as `PPO` and `PPO.learn`, or no episode ended.
    """
    given = dict(options)
    folder.mkdir(parents=True, exist_ok=True)
    state = _newest(folder)
    ppo = PPO(given.pop("policy"), given.pop("env_id"), **given)
    with contextlib.closing(ppo), warnings.catch_warnings():
        warnings.simplefilter("ignore", RunWarning)
        reports: list[Report] = []
        if state is not None:
            ppo.load_checkpoint(state)
            reports = [entry for entry in read_scores(folder).reports if entry.frames <= ppo.num_timesteps]
            if reports:  # the sweep may not have received it
                report(reports[-1], ppo.finished and not n_eval_episodes)
        ppo.learn(callback=_Reporter(ppo, folder, reports, report, last=not n_eval_episodes))
        if not reports:
            raise RunFailure(f"no episode ended in {ppo.num_timesteps:,} frames")
        scores = Scores(reports)
        if n_eval_episodes:
            ppo.save(folder / POLICY)
            scores = Scores(reports, ppo.evaluation(n_eval_episodes).returns)
            write_scores(folder, scores)
            report(reports[-1], True)
    return scores


def _newest(folder: Path) -> TrainingState | None:
    """Reads the checkpoint of a trial, or removes it if it is damaged; the trial then starts again."""
    path = folder / CHECKPOINT
    if not path.is_dir():
        return None
    try:
        return read_checkpoint(path)
    except UserError:
        shutil.rmtree(path)
        return None


class _Reporter:
    """Reports at equal distances in frames, and at the end; a callback of `PPO.learn`."""

    def __init__(
        self, ppo: PPO, folder: Path, reports: list[Report], report: Callable[[Report, bool], None], last: bool
    ) -> None:
        self._ppo, self._folder, self._reports, self._report, self._last = ppo, folder, reports, report, last
        self._distance = ppo.config.total_timesteps / REPORTS_PER_TRIAL
        self._reported = ppo.num_timesteps // self._distance

    def __call__(self, metrics: Metrics) -> None:
        frames, score = self._ppo.num_timesteps, metrics["rollout/ep_rew_mean"]
        if frames // self._distance == self._reported and not self._ppo.finished:
            return
        self._reported = frames // self._distance
        ended = not math.isnan(score)
        if ended:
            self._reports.append(Report(frames, float(score)))
            write_scores(self._folder, Scores(self._reports))
        self._ppo.save_checkpoint(self._folder / CHECKPOINT)
        if ended:
            self._report(self._reports[-1], self._last and self._ppo.finished)
