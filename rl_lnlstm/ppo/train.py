"""Proximal policy optimisation of a recurrent policy, Schulman et al. (2017)."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf
from gymnasium.vector import VectorEnv

from rl_lnlstm.config import AUTO, make_config
from rl_lnlstm.envs import make_vec, restore_snapshot, take_snapshot
from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.errors import EnvironmentFailure, TrainingFailure, UserError, warn
from rl_lnlstm.evaluation.best_policy import BestPolicy
from rl_lnlstm.evaluation.evaluate import check_spaces
from rl_lnlstm.policies import POLICIES, RecurrentPolicy, policy_for
from rl_lnlstm.ppo import state as training_state
from rl_lnlstm.ppo.advantages import discounted_sums, explained_variance, generalized_advantages
from rl_lnlstm.ppo.collect import Rollout, RolloutRunner
from rl_lnlstm.spaces import space_to_json

log = logging.getLogger(__name__)

Metrics = dict[str, float]
Callback = Callable[[Metrics], bool | None]

ADAM_EPSILON = 1e-5  # OpenAI baselines' PPO2, where TensorFlow's default is 1e-7
EPISODES_IN_MEAN = 100
TERMS = ("policy_gradient_loss", "value_loss", "entropy_loss")  # of the loss
EVALUATED_TOGETHER = 100  # environments: acting costs about the same for few as for many


class Sequences(NamedTuple):
    """A rollout cut into sequences, `[sequences, sequence_length, ...]`, and the states they started from."""

    observations: Any
    actions: Any
    log_probs: Any
    values: Any
    advantages: Any
    returns: Any
    rewards: Any
    masks: Any
    valid: Any
    state: Any  # the policy's, each [sequences, width]
    action_masks: tuple[Any, ...]  # a single array, or none where environments have no masks


class Schedule(NamedTuple):
    """What a call of `PPO.learn` trains over, in frames, and the seconds that it has taken."""

    start: int
    target: int
    elapsed: float = 0.0


class PPO:
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

    def __init__(
        self, policy: str | RecurrentPolicy, env: str | Callable[..., gym.Env] | VectorEnv, **config: Any
    ) -> None:
        if isinstance(env, VectorEnv):
            config.setdefault("num_envs", env.num_envs)
        # Not every spec is Gymnasium's: envpool's has no id.
        known = getattr(getattr(env, "spec", None), "id", None) or getattr(env, "__name__", str(env))
        config["env_id"] = env if isinstance(env, str) else known
        if isinstance(policy, str):
            config["policy"] = policy
        self.config = make_config(**config)
        self.envs = self._make_envs(env, self.config.num_envs, self.config.vectorization)
        if self.envs.num_envs != self.config.num_envs:
            raise UserError(f"num_envs is {self.config.num_envs}, but the VectorEnv has {self.envs.num_envs}")
        self.policy = policy if isinstance(policy, RecurrentPolicy) else self._make_policy()
        check_spaces(self.policy, self.envs)

        self._selection = self._make_selection(env) if self.config.eval_interval else None

        self.num_timesteps = 0
        self.iteration = 0
        self.between_iterations = True
        self._schedule = Schedule(0, self.config.total_timesteps)
        self._resumed = False
        self._runner = RolloutRunner(
            self.policy,
            self.envs,
            self.config.num_steps,
            self.config.bptt_steps,
            self.config.seed,
            self.config.sde_sample_freq if self.policy.arguments["std"] == "gsde" else None,
        )
        self._discounted_sums = np.zeros(self.config.num_envs)
        self._episodes: deque[Episode] = deque(maxlen=EPISODES_IN_MEAN)
        self._shuffler = np.random.default_rng(self.config.seed)
        self._optimizer = keras.optimizers.Adam(self.config.learning_rate, epsilon=ADAM_EPSILON)
        self._optimizer.build(self.policy.trainable_variables)
        # XLA's convolutions on a CPU take some 50 times as long as TensorFlow's.
        slower = self.policy.is_convolutional and not tf.config.list_logical_devices("GPU")
        jit_compile = self.config.jit_compile and not slower
        self._aborted_rollouts = self._fruitless_updates = 0  # in a row
        self._update_function = tf.function(self._update, autograph=False, jit_compile=jit_compile)

    def _make_envs(self, env: str | Callable[..., gym.Env] | VectorEnv, num_envs: int, vectorization: str) -> VectorEnv:
        config = self.config
        if isinstance(env, VectorEnv) and (config.wrappers or config.env_kwargs):
            raise UserError("wrappers and env_kwargs are for environments that are made here, got a VectorEnv")
        return make_vec(
            env,
            num_envs,
            vectorization=vectorization,
            wrappers=config.wrappers,
            env_kwargs=config.env_kwargs,
            **config.fault_tolerance,
        )

    def _make_policy(self) -> RecurrentPolicy:
        name, observation_space = self.config.policy, self.envs.single_observation_space
        if name != AUTO and name not in POLICIES:
            raise UserError(f"policy must be {AUTO} or one of {', '.join(POLICIES)}, got {name!r}")
        policy_class = policy_for(observation_space) if name == AUTO else POLICIES[name]
        return policy_class(
            observation_space,
            self.envs.single_action_space,
            seed=self.config.seed,
            **self.config.policy_options,
        )

    def _make_selection(self, env: str | Callable[..., gym.Env] | VectorEnv) -> BestPolicy:
        config = self.config
        if isinstance(env, VectorEnv):
            raise UserError(
                f"eval_interval is {config.eval_interval}, but evaluation needs environments of its own: expected env "
                "to be an id or a function that makes an environment, got a VectorEnv"
            )
        # Environments that have processes of their own may need them, of which there should not be so many.
        together = config.num_envs if config.vectorization == "async" else EVALUATED_TOGETHER
        envs = self._make_envs(env, min(config.n_eval_episodes, together), config.vectorization)
        return BestPolicy(self.policy, envs, config.n_eval_episodes, config.seed + config.num_envs)

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
            self.between_iterations = False
            remaining = 1 - (self.num_timesteps - start) / (target - start)
            rollout = self._runner.run()
            self._check_that_something_is_valid(rollout)
            self.num_timesteps += int(rollout.valid.sum())
            self.iteration += 1
            self._episodes += rollout.episodes
            losses = self._learn_from(rollout, remaining)
            if self.iteration == 1:
                gc.collect()  # what tracing left: 0.2 s that would fall into some later iteration
            evaluated = {}
            if self._selection is not None:
                if self.iteration % self.config.eval_interval == 0 or self.finished:
                    self._selection.evaluate()
                evaluated["eval/mean_reward"] = self._selection.mean_reward
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
            # All are called, also when one of them stops the run.
            answers = [called(metrics) for called in callbacks]
            proceed = not any(answer is False for answer in answers)
            if self._fruitless_updates > self.config.max_skipped_updates:
                raise TrainingFailure(
                    f"no update of the last {self._fruitless_updates} changed anything, of which max_skipped_updates="
                    f"{self.config.max_skipped_updates} are allowed: {self._not_finite} was not finite"
                )
        if self._selection is not None:
            self._selection.restore()
        return self

    @property
    def finished(self) -> bool:
        """Whether the last call of `learn`, or the one that a loaded checkpoint interrupted, has all its frames."""
        return self.num_timesteps >= self._schedule.target

    def _check_that_something_is_valid(self, rollout: Rollout) -> None:
        self._aborted_rollouts = 0 if rollout.valid.any() else self._aborted_rollouts + 1
        if self._aborted_rollouts > self.config.max_env_failures:
            raise EnvironmentFailure(
                f"{self.config.env_id} broke off every episode of {self._aborted_rollouts} rollouts in a row, of which "
                f"max_env_failures={self.config.max_env_failures} are allowed"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Saves the policy; see `RecurrentPolicy.save`."""
        self.policy.save(path)

    def save_checkpoint(self, path: str | os.PathLike, env_snapshot: bool = True) -> None:
        """Writes all that training depends on in the folder `path`, for `load_checkpoint`.

        To be called between iterations: by a callback of `learn`, or after it. The folder is whole, or as before, at
        any instant. Environments that cannot be pickled are named in a `RunWarning`, and left out.

        Args:
            path: the folder, which is replaced if it is there.
            env_snapshot: include the environments, pickled.

        Raises:
            UserError: an iteration was begun and not ended.
            OSError: the disk does not take it.
        """
        if not self.between_iterations:
            raise UserError(f"a checkpoint is written between iterations, but iteration {self.iteration + 1} has begun")
        tree = {
            "spaces": self._spaces(),
            "iteration": self.iteration,
            "num_timesteps": self.num_timesteps,
            "schedule": self._schedule,
            "weights": self.policy.get_weights(),
            "optimizer": [variable.numpy() for variable in self._optimizer.variables],
            "generators": [generator.bit_generator.state for generator in self._generators()],
            "runner": self._runner.get_state(),
            "selection": None if self._selection is None else self._selection.get_state(),
            "environments": {
                purpose: envs.get_state()  # type: ignore[attr-defined]
                for purpose, envs in self._environments().items()
            },
            "in_a_row": (self._aborted_rollouts, self._fruitless_updates),
            "discounted_sums": self._discounted_sums,
            "episodes": list(self._episodes),
        }
        training_state.write(Path(path), tree, self._take_snapshots() if env_snapshot else {})

    def load_checkpoint(
        self,
        checkpoint: str | os.PathLike | training_state.TrainingState,
        total_timesteps: int | None = None,
        env_snapshot: bool = True,
    ) -> None:
        """Goes on from a checkpoint of a trainer that was built alike; call `learn()` next.

        With the environments in it, training goes on exactly as if it had never been interrupted. Otherwise the
        environments begin new episodes, and a `RunWarning` says so.

        Args:
            checkpoint: the folder that `save_checkpoint` wrote, or what was read from it.
            total_timesteps: frames that the interrupted call of `learn` is to train for, if not those that it was asked
                for; what is annealed then goes on as if it had been asked for these from the beginning.
            env_snapshot: restore the environments, by unpickling them: for checkpoints that one wrote oneself.

        Raises:
            UserError: there is no checkpoint, it is damaged, or of a trainer that differs from this one.
        """
        state = checkpoint
        if not isinstance(state, training_state.TrainingState):
            state = training_state.read(Path(state))
        tree = state.tree
        if tree["spaces"] != self._spaces():
            raise UserError(
                f"the checkpoint was written for spaces {tree['spaces']}, this trainer has {self._spaces()}"
            )
        if (tree["selection"] is None) != (self._selection is None):
            raise UserError("eval_interval must be 0 in both the checkpoint's trainer and this one, or in neither")
        optimizer = [variable.numpy() for variable in self._optimizer.variables]
        for what, saved, own in (
            ("weights", tree["weights"], self.policy.get_weights()),
            ("optimizer variables", tree["optimizer"], optimizer),
            ("state", [*tree["runner"]["state"]], [*self._runner.get_state()["state"]]),
        ):
            got, expected = ([(part.shape, str(part.dtype)) for part in parts] for parts in (saved, own))
            if got != expected:
                raise UserError(f"the checkpoint is of another trainer: its {what} are {got}, this one's {expected}")

        self.policy.set_weights(tree["weights"])
        for variable, value in zip(self._optimizer.variables, tree["optimizer"], strict=True):
            variable.assign(value)
        for generator, value in zip(self._generators(), tree["generators"], strict=True):
            generator.bit_generator.state = value
        self.iteration, self.num_timesteps = tree["iteration"], tree["num_timesteps"]
        self._discounted_sums = tree["discounted_sums"]
        self._episodes = deque((Episode(*episode) for episode in tree["episodes"]), maxlen=EPISODES_IN_MEAN)
        self._runner.set_state(tree["runner"])
        if self._selection is not None:
            self._selection.set_state(tree["selection"])
        self._aborted_rollouts, self._fruitless_updates = tree["in_a_row"]
        for purpose, envs in self._environments().items():
            envs.set_state(tree["environments"][purpose])  # type: ignore[attr-defined]
        self._restore_snapshots(state.unpickled_environments() if env_snapshot else {})
        start, target, elapsed = tree["schedule"]
        self._schedule = Schedule(start, target if total_timesteps is None else start + total_timesteps, elapsed)
        self._resumed = total_timesteps is not None or not self.finished
        self.between_iterations = True

    def _spaces(self) -> list[Any]:
        return [space_to_json(space) for space in (self.policy.observation_space, self.policy.action_space)]

    def _generators(self) -> tuple[np.random.Generator, ...]:
        return self._shuffler, self.policy.generator

    def _environments(self) -> dict[str, VectorEnv]:
        evaluation = {} if self._selection is None else {"evaluation": self._selection.envs}
        return {"training": self.envs, **evaluation}

    def _take_snapshots(self) -> training_state.Environments:
        snapshots = {}
        for purpose, envs in self._environments().items():
            try:
                snapshots[purpose] = take_snapshot(envs)
            except ValueError as error:
                warn(
                    f"checkpoints are without the environments for {purpose}, and who resumes from one begins new "
                    f"episodes: {error}",
                )
        return snapshots

    def _restore_snapshots(self, snapshots: training_state.Environments) -> None:
        for purpose, envs in self._environments().items():
            reason = "the checkpoint is without their snapshot"
            if purpose in snapshots:
                try:
                    restore_snapshot(envs, snapshots[purpose])
                    continue
                except ValueError as error:
                    reason = f"their snapshot cannot be restored, {error}"
            warn(f"the environments for {purpose} begin new episodes: {reason}")
            # Not the seed of the run, which would show again what was seen at its beginning.
            seed = int(np.random.SeedSequence((self.config.seed, self.num_timesteps)).generate_state(1)[0])
            if envs is self.envs:
                self._runner.restart(seed)
            elif self._selection is not None:
                self._selection.restart(seed)

    def _learn_from(self, rollout: Rollout, remaining: float) -> Metrics:
        """Advantages, update and statistics; `remaining` falls from 1 to 0 over the training."""
        config = self.config
        rewards = self._scaled_rewards(rollout)
        advantages = generalized_advantages(
            rewards,
            rollout.values,
            rollout.next_values,
            rollout.terminations,
            rollout.episode_ends,
            config.gamma,
            config.gae_lambda,
        )
        returns = advantages + rollout.values
        sequences = cut_sequences(rollout, advantages, returns, config.bptt_steps)
        count = len(sequences.masks)
        minibatches = np.stack([self._shuffler.permutation(count) for _ in range(config.update_epochs)])
        learning_rate = config.learning_rate * (remaining if config.anneal_lr else 1.0)
        clip_coef = config.clip_coef * (remaining if config.anneal_clip else 1.0)
        self._optimizer.learning_rate.assign(learning_rate)
        losses, not_finite = self._update_function(
            tf.nest.map_structure(tf.convert_to_tensor, sequences),
            tf.constant(minibatches.reshape(-1, count // config.num_minibatches), tf.int32),
            tf.constant(clip_coef, tf.float32),
        )
        self._report(int(losses["skipped_steps"]), not_finite.numpy(), len(minibatches) * config.num_minibatches)
        # After the update: acting and the update have to see observations normalised alike.
        self.policy.update_statistics(rollout.observations, rollout.valid)
        return {
            **{f"train/{name}": float(value) for name, value in losses.items()},
            "train/explained_variance": explained_variance(rollout.values[rollout.valid], returns[rollout.valid]),
            "train/learning_rate": learning_rate,
        }

    def _scaled_rewards(self, rollout: Rollout) -> np.ndarray:
        if self.policy.return_statistics is None:
            return rollout.rewards
        sums, self._discounted_sums = discounted_sums(
            rollout.rewards, rollout.episode_ends, self._discounted_sums, self.config.gamma
        )
        self.policy.return_statistics.update(sums[rollout.valid])
        return self.policy.return_statistics.scale(rollout.rewards)

    def _report(self, skipped: int, not_finite: np.ndarray, steps: int) -> None:
        """Says which losses and gradients were not finite, in the order of `_update`."""
        self._fruitless_updates = self._fruitless_updates + 1 if skipped == steps else 0
        if not skipped:
            return
        gradients = [f"the gradient of {variable.path}" for variable in self.policy.trainable_variables]
        named = [name for name, bad in zip([*TERMS, *gradients], not_finite, strict=True) if bad]
        # The gradients of a loss that is not finite tell no more.
        self._not_finite = " and ".join(
            [name for name in named if name in TERMS] or named[:1] or ["the gradients' norm"]
        )
        log.warning(
            "iteration %d: %d of %d gradient steps skipped, because %s was not finite",
            self.iteration,
            skipped,
            steps,
            self._not_finite,
        )

    def _update(self, sequences: Sequences, minibatches: Any, clip_coef: Any) -> tuple[dict[str, Any], Any]:
        """All epochs and minibatches, `[updates, sequences]` indices, in one graph.

        A step whose loss or gradient is not finite changes nothing and enters no mean. Returned are the means, and
        which of `TERMS` and of the variables' gradients were not finite in any step.
        """
        variables = [variable.value for variable in self.policy.trainable_variables]
        names = ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction", "loss")
        limit = np.inf if self.config.target_kl is None else 1.5 * self.config.target_kl

        def body(i: Any, _: Any, skipped: Any, not_finite: Any, *sums: Any) -> tuple[Any, ...]:
            minibatch = tf.nest.map_structure(lambda part: tf.gather(part, minibatches[i]), sequences)
            with tf.GradientTape() as tape:
                losses = self._losses(minibatch, clip_coef)
            gradients = tape.gradient(losses["loss"], variables)
            clipped, norm = tf.clip_by_global_norm(gradients, self.config.max_grad_norm)
            finite = tf.math.is_finite(losses["loss"]) & tf.math.is_finite(norm)
            proceed = ~finite | (losses["approx_kl"] <= limit)
            looked_at = [*(losses[name] for name in TERMS), *map(tf.nn.l2_loss, gradients)]  # as the norm is made of
            not_finite |= ~tf.math.is_finite(tf.stack(looked_at))

            def apply() -> Any:
                # Taking back what is not finite is part of the same loop over each variable under XLA; a branch is not.
                changed = [
                    variable.value for variable in (*self.policy.trainable_variables, *self._optimizer.variables)
                ]
                before = [tf.identity(variable) for variable in changed]
                self._optimizer.apply(clipped, self.policy.trainable_variables)
                for variable, old in zip(changed, before, strict=True):
                    variable.assign(tf.where(finite, variable, old))
                return tf.constant(0)

            if self.config.target_kl is None:
                apply()
            else:
                tf.cond(proceed, apply, lambda: tf.constant(0))
            terms = [tf.where(finite, losses[name], 0.0) for name in names]
            skipped += tf.cast(~finite, tf.int32)
            return i + 1, proceed, skipped, not_finite, *(total + term for total, term in zip(sums, terms, strict=True))

        count = len(minibatches) if minibatches.shape[0] is None else minibatches.shape[0]
        nothing = tf.zeros([len(TERMS) + len(variables)], tf.bool)
        done, _, skipped, not_finite, *sums = tf.while_loop(
            lambda i, proceed, *_: (i < count) & proceed, body, (0, True, 0, nothing, *([0.0] * len(names)))
        )
        means = {name: total / tf.cast(done - skipped, tf.float32) for name, total in zip(names, sums, strict=True)}
        return {**means, "skipped_steps": skipped}, not_finite

    def _losses(self, batch: Sequences, clip_coef: Any) -> dict[str, Any]:
        """Schulman et al. (2017), equation 9, over the transitions that happened."""
        config = self.config
        weights = tf.math.divide_no_nan(batch.valid, tf.reduce_sum(batch.valid))

        def mean(values: Any) -> Any:
            return tf.reduce_sum(values * weights)

        rewards = {"rewards": batch.rewards} if self.policy.previous_reward else {}
        log_probs, entropies, values = self.policy.evaluate_actions(
            batch.observations, batch.actions, batch.state, batch.masks, *batch.action_masks, **rewards
        )
        advantages = batch.advantages
        if config.norm_adv:
            centred = advantages - mean(advantages)
            advantages = centred / (tf.sqrt(mean(centred**2)) + 1e-8)
        log_ratios = tf.where(batch.valid > 0, log_probs - batch.log_probs, 0.0)
        ratios = tf.exp(log_ratios)
        policy_loss = -mean(
            tf.minimum(ratios * advantages, tf.clip_by_value(ratios, 1 - clip_coef, 1 + clip_coef) * advantages)
        )
        value_errors = (values - batch.returns) ** 2
        if config.clip_vloss:
            clipped = batch.values + tf.clip_by_value(values - batch.values, -clip_coef, clip_coef)
            value_errors = tf.maximum(value_errors, (clipped - batch.returns) ** 2)
        value_loss = 0.5 * mean(value_errors)
        entropy_loss = -mean(entropies)
        return {
            "loss": policy_loss + config.ent_coef * entropy_loss + config.vf_coef * value_loss,
            "policy_gradient_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            # The estimator with low variance of Schulman (2020), "Approximating KL divergence".
            "approx_kl": mean(ratios - 1 - log_ratios),
            "clip_fraction": mean(tf.cast(tf.abs(ratios - 1) > clip_coef, tf.float32)),
        }


def cut_sequences(rollout: Rollout, advantages: np.ndarray, returns: np.ndarray, length: int) -> Sequences:
    """Sequences of `length` steps, batch-major, from a rollout."""

    def cut(column: np.ndarray) -> np.ndarray:
        steps, envs, *rest = column.shape
        pieces = column.reshape(steps // length, length, envs, *rest).swapaxes(1, 2)
        return np.ascontiguousarray(pieces.reshape(-1, length, *rest))

    return Sequences(
        observations=tf.nest.map_structure(cut, rollout.observations),
        actions=tf.nest.map_structure(cut, rollout.actions),
        log_probs=cut(rollout.log_probs),
        values=cut(rollout.values),
        advantages=cut(advantages),
        returns=cut(returns.astype(np.float32)),
        rewards=cut(rollout.rewards.astype(np.float32)),
        masks=cut(1 - rollout.episode_starts.astype(np.float32)),
        valid=cut(rollout.valid.astype(np.float32)),
        state=tf.nest.map_structure(lambda part: part.reshape(-1, part.shape[-1]), rollout.sequence_states),
        action_masks=() if rollout.action_masks is None else (cut(rollout.action_masks),),
    )


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
