"""Proximal policy optimisation of a recurrent policy, Schulman et al. (2017)."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError
from rl_lnlstm.interrupts import interrupts_deferred
from rl_lnlstm.option_types import Count, checked
from rl_lnlstm.other_names import ARGUMENTS_OF_LEARN
from rl_lnlstm.ppo.advantages import discounted_sums, explained_variance, generalized_advantages
from rl_lnlstm.ppo.callbacks import Listeners, Metrics
from rl_lnlstm.ppo.metrics import rollout_metrics
from rl_lnlstm.ppo.progress import ProgressBar
from rl_lnlstm.ppo.rollout import Rollout, cut_sequences
from rl_lnlstm.ppo.trainer import Schedule, Trainer
from rl_lnlstm.ppo.vtrace import Steps


class PPO(Trainer):
    """Trains a policy in an environment.

    Args:
        policy: a policy, a policy class, or the name of one. "auto" chooses the class that suits the observations.
        env: a Gymnasium id, a function that makes an environment, an environment, or a `VectorEnv`.
        **config: fields of `PPOConfig`.

    Example:

    >>> ppo = PPO("MlpLnLstmPolicy", "CartPole-v1", num_envs=8, seed=0)
    >>> ppo.learn(50_000).save("cartpole")

    Raises:
        UserError: an option is unknown, out of range or differs from the given policy's; a space is not supported; or
            the given policy was made for other spaces.
    """

    def learn(
        self, total_timesteps: int | None = None, callback: Any = None, progress_bar: bool = False, **unknown: Any
    ) -> PPO:
        """Trains for `total_timesteps` more frames, and finishes the last rollout.

        Ctrl-C raises KeyboardInterrupt. You can call `learn` again afterwards. Then new episodes begin, and a rollout
        that was interrupted is dropped. An iteration whose evaluation was interrupted counts, but has no metrics.

        Args:
            total_timesteps: frames, counted over all environments. None: as configured or, after `load_checkpoint`, the
                rest of the call of `learn` in which the checkpoint was written.
            callback: one function or several, called with the metrics after each iteration. Training stops when one
                returns False. A `Callback` can do more.
            progress_bar: show frames, frames/s, return and time left on standard error; see `ProgressBar`.
            **unknown: arguments of other libraries; the error says what to use here.

        Returns:
            The trainer itself. Its `policy` has the weights of the last iteration; see also `best_policy`.

        Raises:
            UserError: an argument is unknown or has the wrong type.
            EnvironmentFailure: an environment failed more than `max_env_failures` times in a row. Weights, statistics
                and counters are those of the last update. After a failed evaluation, this update has no metrics.
            TrainingFailure: losses or gradients were not finite in more than `max_skipped_updates` updates in a row.
        """
        _refuse_arguments_of_learn(unknown)
        progress_bar = checked("progress_bar", progress_bar, bool)
        self._listeners = Listeners(callback, ProgressBar() if progress_bar else None)
        earlier = self._schedule, self._resumed
        if total_timesteps is None and self._resumed:
            start, target, before = self._schedule
        else:
            given = self.config.total_timesteps if total_timesteps is None else total_timesteps
            frames = checked("total_timesteps", given, Count)
            start, target, before = self.num_timesteps, self.num_timesteps + frames, 0.0
        self._schedule, self._resumed = Schedule(start, target, before), False
        started = time.perf_counter() - before
        with contextlib.ExitStack() as training:
            try:
                training.enter_context(self._listeners.training(self))
            except BaseException:  # nothing was trained: another call can still finish the resumed one
                self._schedule, self._resumed = earlier
                raise
            proceed = True
            while proceed and not self.finished:
                try:
                    metrics = self._iterate(started)
                except KeyboardInterrupt:
                    self._interrupted = True
                    raise
                proceed = self._listeners.iteration(metrics)
                self._check_skipped_updates()
        return self

    def _iterate(self, started: float) -> Metrics:
        """One iteration: collects a rollout, learns from it, evaluates, and returns the metrics."""
        if not self.between_iterations:  # the last iteration was interrupted in the middle of episodes
            self._begin_new_episodes()
        self.between_iterations = False
        start, target, _ = self._schedule
        remaining = 1 - (self.num_timesteps - start) / (target - start)
        self._listeners.phase("collecting")
        failures = self._collector.failures
        rollout = self._collector.collect()
        self._check_aborted_rollouts(rollout, failed=self._collector.failures > failures)
        self._listeners.phase("updating" if self._compiled else "compiling the update")
        with interrupts_deferred():
            losses = self._learn_from(rollout, remaining)
            self.num_timesteps += int(rollout.valid.sum())
            self.iteration += 1
            self._episodes += rollout.episodes
        self._compiled = True
        if self.iteration == 1:
            gc.collect()  # frees what tracing left now, because it takes 0.2 s at some point
        evaluated = self._evaluated()
        self._warn_if_no_episode_ends()
        elapsed = time.perf_counter() - started
        metrics = {
            **rollout_metrics(self._episodes, self.config.info_keys),
            "rollout/env_failures": self._collector.failures,
            "time/iterations": self.iteration,
            "time/total_timesteps": self.num_timesteps,
            "time/time_elapsed": elapsed,
            "time/fps": (self.num_timesteps - start) / elapsed,
            **evaluated,
            **losses,
        }
        self._schedule = Schedule(start, target, elapsed)
        self.between_iterations = True
        return metrics

    def _learn_from(self, rollout: Rollout, remaining: float) -> Metrics:
        """Computes advantages, updates weights and then statistics. `remaining` falls from 1 to 0 during training."""
        config, rewards, ends = self.config, self._scaled_rewards(rollout), (rollout.terminations, rollout.episode_ends)
        advantages = generalized_advantages(
            rewards, rollout.values, rollout.next_values, *ends, config.gamma, config.gae_lambda
        )
        returns = advantages + rollout.values
        sequences = cut_sequences(rollout, advantages, returns, config.bptt_steps)
        learning_rate = annealed(config.learning_rate, remaining, config.anneal_lr)
        clip_coef = annealed(config.clip_coef, remaining, config.anneal_clip)
        steps = Steps.of(rollout, rewards) if config.vtrace and config.update_epochs > 1 else None
        losses = self._updater(sequences, steps, learning_rate, clip_coef, self.iteration + 1)
        # Only after the update, so that it normalises observations as acting did.
        self.policy.update_statistics(rollout.observations, rollout.valid)
        return {
            **{f"train/{name}": value for name, value in losses.items()},
            "train/explained_variance": explained_variance(rollout.values[rollout.valid], returns[rollout.valid]),
            "train/learning_rate": learning_rate,
        }

    def _scaled_rewards(self, rollout: Rollout) -> np.ndarray:
        """The rewards to learn from: clipped and normalised, if these options are on."""
        rewards = np.sign(rollout.rewards) if self.config.clip_rewards else rollout.rewards
        statistics = self.policy.return_statistics
        if statistics is None:
            return rewards
        # Episodes may begin although none has ended: a worker was replaced whose environments cannot be pickled.
        start = self._discounted_sums * ~rollout.episode_starts[0]
        sums, self._discounted_sums = discounted_sums(rewards, rollout.episode_ends, start, self.config.gamma)
        statistics.update(sums[rollout.valid])
        return statistics.scale(rewards)


def annealed(value: float, remaining: float, anneal: bool) -> float:
    """With `anneal`, decreases `value` linearly to 0 as `remaining` falls from 1 to 0."""
    return value * (remaining if anneal else 1.0)


def _refuse_arguments_of_learn(given: Mapping[str, Any]) -> None:
    """Raises `UserError` if there are any; the message says what to use here."""
    for name in given:
        if name in ARGUMENTS_OF_LEARN:
            raise UserError(f"learn has no argument {name!r}: use {ARGUMENTS_OF_LEARN[name]}")
        if name in {field.name for field in dataclasses.fields(PPOConfig)}:
            raise UserError(f"learn has no argument {name!r}: it is an option of PPO")
        raise UserError(f"learn has no argument {name!r}: expected total_timesteps, callback or progress_bar")
