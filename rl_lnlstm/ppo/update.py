"""The update: epochs of gradient steps on minibatches of whole sequences, in one TensorFlow graph."""

from __future__ import annotations

import logging
import operator
from typing import Any

import numpy as np
import tensorflow as tf

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.policies.watch import Watch
from rl_lnlstm.ppo import loss
from rl_lnlstm.ppo.adam import Adam
from rl_lnlstm.ppo.protocols import LearningPolicy
from rl_lnlstm.ppo.rollout import Sequences
from rl_lnlstm.ppo.vtrace import Steps, cut_column, join_column, vtrace
from rl_lnlstm.spaces import map_arrays

log = logging.getLogger(__name__)

ADAM_EPSILON = 1e-5  # as in OpenAI baselines' PPO2; the default of Keras is 1e-7
TERMS = ("policy_gradient_loss", "value_loss", "entropy_loss")  # the terms of the loss
REPORTED = (*TERMS, "approx_kl", "clip_fraction", "loss")
# Options that are constants in the graph of the update
constants_of = operator.attrgetter(
    "ent_coef", "vf_coef", "target_kl", "max_grad_norm", "norm_adv", "clip_vloss", "gamma", "gae_lambda", "minibatches"
)


def gains_from_xla(policy: LearningPolicy) -> bool:
    """Whether to compile whole gradient steps: on a CPU, XLA's convolutions take about 50 times as long."""
    return not policy.is_convolutional or bool(tf.config.list_logical_devices("GPU"))


class Updater:
    """Minimises PPO's loss with Adam.

    Args:
        policy: the policy to train.
        config: the options of the loss and of the optimizer.
        generator: the random generator that shuffles the sequences.

    Attributes:
        skipped_updates: number of updates in a row in which every gradient step was skipped.
        not_finite: names of the losses or gradients that were not finite in the last update with a skipped step.
    """

    def __init__(self, policy: LearningPolicy, config: PPOConfig, generator: np.random.Generator) -> None:
        self.policy, self.config, self.generator = policy, config, generator
        self._trained = list(policy.trainable_variables)
        self._trained_ids = {id(variable) for variable in self._trained}
        self.optimizer = Adam(self._trained, config.learning_rate, ADAM_EPSILON)
        self.skipped_updates, self.not_finite = 0, ""
        self._compile()

    def _compile(self) -> None:
        self._watch, self._constants = Watch(self.policy), constants_of(self.config)
        compiled = self.config.jit_compile and gains_from_xla(self.policy)
        self.function = tf.function(self._update, autograph=False, jit_compile=compiled)

    def __call__(
        self, sequences: Sequences, steps: Steps | None, learning_rate: float, clip_coef: float, iteration: int
    ) -> dict[str, float]:
        """Takes all gradient steps on the sequences of a rollout, and returns the means of their metrics.

        Args:
            sequences: the rollout, with advantages and returns of the policy that acted.
            steps: the same rollout before it was cut, for V-trace; None: without V-trace.
            learning_rate: of Adam.
            clip_coef: the clipping range.
            iteration: its number, for warnings.
        """
        config, count = self.config, len(sequences.valid)
        self._check_variables()
        layers_changed = self._watch.changed()
        if layers_changed and config.ray is not None:
            warn(
                "the policy was changed, but the workers act with the policy as it was when PPO was made: make a new "
                "PPO after you have changed layers or attributes of the policy"
            )
        if layers_changed or constants_of(config) != self._constants:
            self._compile()
        compiles = self.function.experimental_get_tracing_count() == 0
        minibatches = np.stack([self.generator.permutation(count) for _ in range(config.update_epochs)])
        minibatches = minibatches.reshape(-1, count // config.minibatches)
        self.optimizer.learning_rate.assign(learning_rate)
        arguments = tf.constant(minibatches, tf.int32), tf.constant(clip_coef, tf.float32)
        rollout = map_arrays(tf.convert_to_tensor, (sequences, steps))
        metrics, not_finite = self.function(*rollout, *arguments)
        if compiles:
            self._watch.settle()
        skipped = int(metrics["skipped_steps"])
        self._log_skipped_steps(iteration, skipped, len(minibatches), not_finite.numpy())
        stopped_after = int(metrics.pop("stopped_after"))  # 0 if all gradient steps were taken
        stopped_at_epoch = -(-stopped_after // config.minibatches)
        return {**{name: float(value) for name, value in metrics.items()}, "stopped_at_epoch": stopped_at_epoch}

    def _check_variables(self) -> None:
        trainable = self.policy.trainable_variables
        if {id(variable) for variable in trainable} != self._trained_ids:
            new = [variable.path for variable in trainable if id(variable) not in self._trained_ids]
            raise UserError(
                f"the policy's trainable weights are not those that PPO was made with: {len(trainable)} in place of "
                f"{len(self._trained_ids)}{f', new ones are {new[:3]}' if new else ''}; make a new PPO after you have "
                "changed, frozen or unfrozen layers of the policy"
            )

    def _log_skipped_steps(self, iteration: int, skipped: int, steps: int, not_finite: np.ndarray) -> None:
        """Logs which losses and gradients were not finite; for `not_finite` see `_update`."""
        self.skipped_updates = self.skipped_updates + 1 if skipped == steps else 0
        if not skipped:
            return
        gradients = [f"the gradient of {name}" for name in self.optimizer.names]
        named = [name for name, bad in zip([*TERMS, *gradients], not_finite, strict=True) if bad]
        # If a loss is not finite, its gradients are not either: name only the loss.
        terms = [name for name in named if name in TERMS]
        self.not_finite = " and ".join(terms or named[:1] or ["the gradients' norm"])
        message = "iteration %d: %d of %d gradient steps skipped, because these were not finite: %s"
        log.warning(message, iteration, skipped, steps, self.not_finite)

    def _update(
        self, sequences: Sequences, steps: Steps | None, minibatches: Any, clip_coef: Any
    ) -> tuple[dict[str, Any], Any]:
        """The loop over all gradient steps; `minibatches` holds indices of sequences, `[gradient steps, sequences]`.

        With `steps`, V-trace computes advantages and returns again before each epoch except the first.

        A step is skipped if its loss or gradient is not finite, or if its minibatch has no valid transition. It then
        changes no weight and is left out of the means. Returns the means, and for each of `TERMS` and each vector of
        the gradient whether it was not finite in some step.
        """
        variables = [variable.value for variable in self._trained]
        limit = np.inf if self.config.target_kl is None else 1.5 * self.config.target_kl
        take_step = tf.function(self._take_step, autograph=False, jit_compile=self.config.jit_compile)

        def body(i: Any, _: Any, targets: Any, taken: Any, skipped: Any, not_finite: Any, *sums: Any) -> Any:
            if steps is not None:
                another_epoch = (i > 0) & (i % self.config.minibatches == 0)
                targets = tf.cond(another_epoch, lambda: self._targets(sequences, steps), lambda: targets)
            current = sequences._replace(advantages=targets[0], returns=targets[1])
            minibatch = map_arrays(lambda part: tf.gather(part, minibatches[i]), current)
            with tf.GradientTape() as tape:
                losses = self._losses(minibatch, clip_coef)
            # Gradients are zeros for weights that the loss does not depend on, for example in an unused layer.
            gradients = tape.gradient(losses["loss"], variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            within_limit, has_valid = losses["approx_kl"] <= limit, tf.reduce_sum(minibatch.valid) > 0
            finite, squares = take_step(self.optimizer.vectors(gradients), losses["loss"], within_limit & has_valid)
            proceed, wanted = ~finite | within_limit, finite & has_valid
            not_finite |= ~tf.math.is_finite(tf.stack([*(losses[name] for name in TERMS), *squares]))
            reported = [tf.where(wanted, losses[name], 0.0) for name in REPORTED]
            sums = tuple(total + value for total, value in zip(sums, reported, strict=True))
            taken, skipped = taken + tf.cast(wanted, tf.int32), skipped + tf.cast(~finite, tf.int32)
            return i + 1, proceed, targets, taken, skipped, not_finite, *sums

        count = len(minibatches) if minibatches.shape[0] is None else minibatches.shape[0]
        nothing, sums = tf.zeros([len(TERMS) + len(self.optimizer.names)], tf.bool), [0.0] * len(REPORTED)
        targets = sequences.advantages, sequences.returns
        done, proceed, _, taken, skipped, not_finite, *sums = tf.while_loop(
            lambda i, proceed, *_: (i < count) & proceed, body, (0, True, targets, 0, 0, nothing, *sums)
        )
        means = {name: total / tf.cast(taken, tf.float32) for name, total in zip(REPORTED, sums, strict=True)}
        means |= {"skipped_steps": skipped, "stopped_after": tf.where(proceed, 0, done)}
        return means, not_finite

    def _take_step(self, vectors: list[Any], loss: Any, allowed: Any) -> tuple[Any, list[Any]]:
        """Clips the gradients' norm and lets Adam take a step, if loss and norm are finite and the step is `allowed`.

        Takes the result of `Adam.vectors` and not gradients, so that XLA never gets an embedding's sparse gradients.
        Returns whether loss and norm are finite, and the sum of squares of each vector.
        """
        squares = [tf.reduce_sum(tf.square(vector)) for vector in vectors]
        norm = tf.sqrt(tf.add_n(squares))
        scale = self.config.max_grad_norm / tf.maximum(norm, self.config.max_grad_norm)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        self.optimizer.apply([vector * scale for vector in vectors], finite & allowed)
        return finite, squares

    def _targets(self, sequences: Sequences, steps: Steps) -> tuple[Any, Any]:
        """Advantages and returns of the current policy."""
        num_envs, length = steps.values.shape[1], sequences.valid.shape[1]
        log_probs, _, values = (join_column(column, num_envs) for column in self._evaluated(sequences))
        advantages, returns = vtrace(steps, log_probs, values, self.config.gamma, self.config.gae_lambda)
        return cut_column(advantages, length), cut_column(returns, length)

    def _evaluated(self, batch: Sequences) -> tuple[Any, Any, Any]:
        """Log-probabilities, entropies and values with the current weights, `[sequences, sequence_length]`."""
        given = {} if batch.action_masks is None else {"action_masks": batch.action_masks}
        if self.policy.previous_reward:
            given["rewards"] = batch.rewards
        return self.policy.evaluate_actions(
            batch.observations, batch.actions, batch.state, batch.episode_starts, **given
        )

    def _losses(self, batch: Sequences, clip_coef: Any) -> dict[str, Any]:
        """The loss of Schulman et al. (2017), equation 9, over the valid transitions, and what to report about it."""
        config, valid = self.config, batch.valid
        log_probs, entropies, values = self._evaluated(batch)
        log_ratios = tf.where(valid > 0, log_probs - batch.log_probs, 0.0)
        advantages = (
            loss.normalized_advantages(batch.advantages, batch.returns, valid) if config.norm_adv else batch.advantages
        )
        policy_loss = loss.clipped_policy_loss(log_ratios, advantages, valid, clip_coef)
        if config.clip_vloss:
            value_loss = loss.clipped_value_loss(values, batch.values, batch.returns, valid, clip_coef)
        else:
            value_loss = loss.value_loss(values, batch.returns, valid)
        entropy_loss = loss.entropy_loss(entropies, valid)
        total = policy_loss + config.ent_coef * entropy_loss + config.vf_coef * value_loss
        return {
            "loss": loss.regularized(total, self.policy.losses),
            "policy_gradient_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            "approx_kl": loss.approximate_kl(log_ratios, valid),
            "clip_fraction": loss.clip_fraction(log_ratios, valid, clip_coef),
        }
