"""Proximal policy optimisation of a recurrent policy, Schulman et al. (2017)."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np

from rl_lnlstm.config import Count, checked
from rl_lnlstm.ppo.advantages import discounted_sums, explained_variance, generalized_advantages
from rl_lnlstm.ppo.callbacks import Listeners, Metrics
from rl_lnlstm.ppo.interrupts import interrupts_deferred
from rl_lnlstm.ppo.metrics import rollout_metrics
from rl_lnlstm.ppo.progress import ProgressBar
from rl_lnlstm.ppo.rollout import Rollout, cut_sequences
from rl_lnlstm.ppo.trainer import Schedule, Trainer


class PPO(Trainer):
    """Trains a policy in an environment.

    Args:
        policy: a policy; or a policy class or the name of one, of which a policy is built for the environment; "auto"
            is the class that suits its observations.
        env: a Gymnasium id, a function that makes an environment, an environment, or a `VectorEnv`.
        **config: fields of `PPOConfig`.

    Example:

    >>> ppo = PPO("MlpLnLstmPolicy", "CartPole-v1", num_envs=8, seed=0)
    >>> ppo.learn(50_000).save("cartpole")

    Raises:
        UserError: an option that is unknown, out of range or not that of the given policy, spaces that are not
            supported, or a policy that was made for other spaces.
    """

    def learn(
        self,
        total_timesteps: int | None = None,
        callback: Any = None,
        progress_bar: bool = False,
    ) -> PPO:
        """Trains for `total_timesteps` more frames (as configured, if None), to the end of a rollout.

        Ctrl-C raises KeyboardInterrupt and leaves a trainer that can go on: the interrupted rollout is dropped, and new
        episodes begin.

        Args:
            total_timesteps: frames, over all environments. None after `load_checkpoint` goes on with the call of
                `learn` that the checkpoint was written in, which may have nothing left to do.
            callback: one or several, called after each iteration with its metrics; training stops when one returns
                False. A `Callback` is told more.
            progress_bar: show frames, frames/s, return and time left on standard error; see `ProgressBar`.

        Returns:
            The trainer itself, whose `policy` is as the last iteration left it; see `best_policy`.

        Raises:
            UserError: arguments of other types.
            EnvironmentFailure: an environment failed more often than `max_env_failures`. Weights, statistics and
                counters are as the last iteration left them.
            TrainingFailure: losses or gradients were not finite in more than `max_skipped_updates` updates in a row.
        """
        self._listeners = Listeners(callback, ProgressBar() if progress_bar else None)
        if total_timesteps is None and self._resumed:
            start, target, before = self._schedule
        else:
            given = self.config.total_timesteps if total_timesteps is None else total_timesteps
            frames = checked("total_timesteps", given, Count)
            start, target, before = self.num_timesteps, self.num_timesteps + frames, 0.0
        self._schedule, self._resumed = Schedule(start, target, before), False
        started = time.perf_counter() - before
        with self._listeners.training(self):
            proceed = True
            while proceed and not self.finished:
                try:
                    metrics = self._iterate(started)
                except KeyboardInterrupt:
                    self._interrupted = True
                    raise
                proceed = self._listeners.iteration(metrics)
                self._check_that_updates_bear_fruit()
        return self

    def _iterate(self, started: float) -> Metrics:
        """One iteration: collect, advantages, update, evaluation; and what to report of it."""
        if not self.between_iterations:  # the one before was interrupted, so the environments may be anywhere
            self._begin_new_episodes()
        self.between_iterations = False
        start, target, _ = self._schedule
        remaining = 1 - (self.num_timesteps - start) / (target - start)
        self._listeners.phase("collecting")
        rollout = self._runner.run()
        self._check_that_something_is_valid(rollout)
        self._listeners.phase("updating" if self._compiled else "compiling the update")
        with interrupts_deferred():
            losses = self._learn_from(rollout, remaining)
            self.num_timesteps += int(rollout.valid.sum())
            self.iteration += 1
            self._episodes += rollout.episodes
        self._compiled = True
        if self.iteration == 1:
            gc.collect()  # what tracing left: 0.2 s that would fall into some later iteration
        evaluated = self._evaluated()
        self._warn_if_nothing_ends()
        elapsed = time.perf_counter() - started
        metrics = {
            **rollout_metrics(self._episodes, self.config.info_keys),
            "rollout/env_failures": self.envs.failures,  # type: ignore[attr-defined]
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
        """Advantages, update and statistics; `remaining` falls from 1 to 0 over the training."""
        config = self.config
        advantages = generalized_advantages(
            self._scaled_rewards(rollout),
            rollout.values,
            rollout.next_values,
            rollout.terminations,
            rollout.episode_ends,
            config.gamma,
            config.gae_lambda,
        )
        returns = advantages + rollout.values
        sequences = cut_sequences(rollout, advantages, returns, config.bptt_steps)
        learning_rate = annealed(config.learning_rate, remaining, config.anneal_lr)
        clip_coef = annealed(config.clip_coef, remaining, config.anneal_clip)
        losses = self._updater(sequences, learning_rate, clip_coef, self.iteration + 1)
        # After the update: acting and the update have to see observations normalised alike.
        self.policy.update_statistics(rollout.observations, rollout.valid)
        return {
            **{f"train/{name}": value for name, value in losses.items()},
            "train/explained_variance": explained_variance(rollout.values[rollout.valid], returns[rollout.valid]),
            "train/learning_rate": learning_rate,
        }

    def _scaled_rewards(self, rollout: Rollout) -> np.ndarray:
        """Rewards as they are learnt from: clipped, and divided by the std of the discounted returns, if wanted."""
        rewards = np.sign(rollout.rewards) if self.config.clip_rewards else rollout.rewards
        statistics = self.policy.return_statistics
        if statistics is None:
            return rewards
        sums, self._discounted_sums = discounted_sums(
            rewards, rollout.episode_ends, self._discounted_sums, self.config.gamma
        )
        statistics.update(sums[rollout.valid])
        return statistics.scale(rewards)


def annealed(value: float, remaining: float, anneal: bool) -> float:
    """`value`, decreased linearly to 0 as `remaining` falls from 1 to 0, if `anneal`."""
    return value * (remaining if anneal else 1.0)
