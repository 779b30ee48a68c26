"""`EvalCallback`: evaluates a policy during training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rl_lnlstm.evaluation.evaluate import evaluate
from rl_lnlstm.evaluation.result import Evaluation
from rl_lnlstm.option_types import Count, checked
from rl_lnlstm.policies.saving import check_can_be_saved
from rl_lnlstm.ppo.callbacks import Callback, Metrics, Training
from rl_lnlstm.runs.loggers import try_to_write
from rl_lnlstm.runs.metrics_file import EVALUATION


class EvalCallback(Callback):
    """Evaluates the policy while `PPO.learn` trains it, and saves the best one.

    It adds `eval/mean_reward` to the metrics, where later callbacks see it. Every evaluation runs the same episodes.
    Evaluations do not change the training, unless they sample actions in a `VectorEnv`. A new `EvalCallback` does not
    know the best mean of earlier ones, also not after `load_checkpoint`.

    Args:
        env: the environment, as for `evaluate`. Do not pass the training environments.
        interval: iterations between evaluations.
        n_eval_episodes: number of episodes of an evaluation.
        deterministic: take the most probable actions; otherwise sample.
        seed: determines the episodes.
        best_path: the folder to save the best policy in; None to not save it.
        num_envs, max_steps, mask_key: as for `evaluate`.

    Attributes:
        result: the last evaluation, None before the first.
        best_mean: the best mean return so far.
    """

    def __init__(
        self,
        env: Any,
        interval: int = 10,
        n_eval_episodes: int = 20,
        deterministic: bool = True,
        seed: int = 0,
        best_path: str | os.PathLike | None = None,
        num_envs: int = 1,
        max_steps: int | None = None,
        mask_key: str | None = None,
    ) -> None:
        self.env, self.interval, self.n_eval_episodes = env, checked("interval", interval, Count), n_eval_episodes
        self.deterministic, self.seed = deterministic, seed
        self.best_path = None if best_path is None else Path(best_path).absolute()
        self._options: dict[str, Any] = {"num_envs": num_envs, "max_steps": max_steps, "mask_key": mask_key}
        self.result: Evaluation | None = None
        self.best_mean = -float("inf")

    def on_training_start(self, ppo: Training) -> None:
        """Remembers the policy.

        Raises:
            UserError: the policy cannot be saved.
        """
        self._policy = ppo.policy
        if self.best_path is not None:
            check_can_be_saved(ppo.policy)

    def __call__(self, metrics: Metrics) -> None:
        """Evaluates the policy if an evaluation is due."""
        if int(metrics["time/iterations"]) % self.interval:
            return
        self.result = evaluate(
            self._policy, self.env, self.n_eval_episodes, self.deterministic, self.seed, **self._options
        )
        metrics[EVALUATION] = self.result.mean
        if self.result.mean > self.best_mean:
            path, mean = self.best_path, self.result.mean
            if path is None or try_to_write(path, lambda: self._policy.save(path)):  # otherwise it is tried again
                self.best_mean = mean
