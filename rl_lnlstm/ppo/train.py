"""Proximal policy optimisation of a recurrent policy, Schulman et al. (2017)."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable

import numpy as np

from rl_lnlstm.errors import EnvironmentFailure, TrainingFailure
from rl_lnlstm.ppo.advantages import discounted_sums, explained_variance, generalized_advantages
from rl_lnlstm.ppo.collect import Rollout
from rl_lnlstm.ppo.trainer import Schedule, Trainer
from rl_lnlstm.ppo.update import cut_sequences

Metrics = dict[str, float]
Callback = Callable[[Metrics], bool | None]


class PPO(Trainer):
    """Trains a policy in an environment.

    Args:
        policy: a policy, or the name of a policy class, which is then built for the environment; "auto" is the class
            that suits its observations.
        env: a Gymnasium id, a function that makes an environment, or a `VectorEnv`.
        **config: fields of `PPOConfig`.

    Example:

    >>> ppo = PPO("MlpLnLstmPolicy", "CartPole-v1", num_envs=8, seed=0)
    >>> ppo.learn(50_000).save("cartpole")

    Raises:
        UserError: an option that is unknown or out of range, spaces that are not supported, or a policy that was made
            for other spaces.
    """

    def learn(self, total_timesteps: int | None = None, callback: Callback | Iterable[Callback] = ()) -> PPO:
        """Trains for `total_timesteps` more frames (as configured, if None), to the end of a rollout.

        Args:
            total_timesteps: frames, over all environments. None after `load_checkpoint` goes on with the call of
                `learn` that the checkpoint was written in.
            callback: called after each iteration with its metrics; training stops when one returns False.

        Returns:
            The trainer itself. With an `eval_interval`, its policy is the best that was evaluated.

        Raises:
            EnvironmentFailure: an environment failed more often than `max_env_failures`. Weights, statistics and
                counters are as the last iteration left them.
            TrainingFailure: losses or gradients were not finite in more than `max_skipped_updates` updates in a row.
        """
        callbacks = [callback] if callable(callback) else list(callback)
        if total_timesteps is None and self._resumed:
            start, target, before = self._schedule
        else:
            frames = self.config.total_timesteps if total_timesteps is None else total_timesteps
            start, target, before = self.num_timesteps, self.num_timesteps + frames, 0.0
        self._schedule, self._resumed = Schedule(start, target, before), False
        started = time.perf_counter() - before
        proceed = True
        while proceed and not self.finished:
            metrics = self._iterate(started)
            # All callbacks are called, also when one of them stops the run.
            answers = [called(metrics) for called in callbacks]
            proceed = not any(answer is False for answer in answers)
            self._check_that_updates_bear_fruit()
        if self._selection is not None:
            self._selection.restore()
        return self

    def _iterate(self, started: float) -> Metrics:
        """One iteration: collect, advantages, update, evaluation; and what to report of it."""
        self.between_iterations = False
        start, target, _ = self._schedule
        remaining = 1 - (self.num_timesteps - start) / (target - start)
        rollout = self._runner.run()
        self._check_that_something_is_valid(rollout)
        self.num_timesteps += int(rollout.valid.sum())
        self.iteration += 1
        self._episodes += rollout.episodes
        losses = self._learn_from(rollout, remaining)
        if self.iteration == 1:
            gc.collect()  # what tracing left: 0.2 s that would fall into some later iteration
        evaluated = self._evaluated()
        elapsed = time.perf_counter() - started
        metrics = {
            "rollout/ep_rew_mean": _mean([episode.episode_return for episode in self._episodes]),
            "rollout/ep_len_mean": _mean([episode.length for episode in self._episodes]),
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
        losses = self._updater(sequences, learning_rate, clip_coef, self.iteration)
        # After the update: acting and the update have to see observations normalised alike.
        self.policy.update_statistics(rollout.observations, rollout.valid)
        return {
            **{f"train/{name}": value for name, value in losses.items()},
            "train/explained_variance": explained_variance(rollout.values[rollout.valid], returns[rollout.valid]),
            "train/learning_rate": learning_rate,
        }

    def _scaled_rewards(self, rollout: Rollout) -> np.ndarray:
        """Rewards divided by the running standard deviation of the discounted returns, if that is wanted."""
        statistics = self.policy.return_statistics
        if statistics is None:
            return rollout.rewards
        sums, self._discounted_sums = discounted_sums(
            rollout.rewards, rollout.episode_ends, self._discounted_sums, self.config.gamma
        )
        statistics.update(sums[rollout.valid])
        return statistics.scale(rollout.rewards)

    def _evaluated(self) -> Metrics:
        if self._selection is None:
            return {}
        if self.iteration % self.config.eval_interval == 0 or self.finished:
            self._selection.evaluate()
        return {"eval/mean_reward": self._selection.mean_reward}

    def _check_that_something_is_valid(self, rollout: Rollout) -> None:
        self._aborted_rollouts = 0 if rollout.valid.any() else self._aborted_rollouts + 1
        if self._aborted_rollouts > self.config.max_env_failures:
            raise EnvironmentFailure(
                f"{self.config.env_id} failed in every episode of the last {self._aborted_rollouts} rollouts: "
                f"max_env_failures={self.config.max_env_failures} such rollouts in a row are allowed"
            )

    def _check_that_updates_bear_fruit(self) -> None:
        if self._updater.fruitless > self.config.max_skipped_updates:
            raise TrainingFailure(
                f"no update of the last {self._updater.fruitless} changed the weights, because "
                f"{self._updater.not_finite} was not finite: "
                f"max_skipped_updates={self.config.max_skipped_updates} in a row are allowed"
            )


def annealed(value: float, remaining: float, anneal: bool) -> float:
    """`value`, decreased linearly to 0 as `remaining` falls from 1 to 0, if `anneal`."""
    return value * (remaining if anneal else 1.0)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
