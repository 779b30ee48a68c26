"""The loop of behaviour cloning: epochs of gradient steps on demonstrations; see `pretrain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import TrainingFailure, UserError
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.policies.heads import CompositeHead, GaussianHead
from rl_lnlstm.policies.sequences import ILLEGAL, evaluate_sequences
from rl_lnlstm.ppo import loss
from rl_lnlstm.ppo.advantages import discounted_sums, explained_variance
from rl_lnlstm.ppo.callbacks import says_stop
from rl_lnlstm.ppo.demonstrations import Batch, Demonstration, Piece, batch_of_pieces, pieces_of
from rl_lnlstm.ppo.update import gains_from_xla
from rl_lnlstm.spaces import map_arrays

MAX_GRAD_NORM = 0.5


class Epoch(NamedTuple):
    """What is known after an epoch; None where there is no validation, or nothing of this kind.

    Attributes:
        number: from 1.
        loss: mean negative log-likelihood of the actions in this epoch's minibatches, in nats per step.
        validation_loss: the same after the epoch, on the episodes that are kept for validation.
    """

    number: int
    loss: float
    validation_loss: float | None


class Pretraining(NamedTuple):
    """The result of `pretrain`, for the weights that the policy has in the end.

    Attributes:
        n_episodes: number of episodes learnt from.
        n_validation_episodes: number of episodes kept for validation.
        n_frames: number of steps learnt from.
        best_epoch: the number of the epoch whose weights were kept.
        epochs: all epochs.
        loss: mean negative log-likelihood of the actions, in nats per step.
        validation_loss: the same for the episodes kept for validation; None if there are none.
        accuracy: fraction of steps whose action is the most probable one; None if all actions are continuous.
        validation_accuracy: the same for the episodes kept for validation.
        explained_variance: of the discounted returns by the values; see `advantages.explained_variance`.
    """

    n_episodes: int
    n_validation_episodes: int
    n_frames: int
    best_epoch: int
    epochs: list[Epoch]
    loss: float
    validation_loss: float | None
    accuracy: float | None
    validation_accuracy: float | None
    explained_variance: float


class _Passed(NamedTuple):
    """What a policy computed for whole episodes, by their numbers."""

    log_probs: dict[int, np.ndarray]  # [T]
    correct: dict[int, np.ndarray]  # [T] bool; empty if all actions are continuous
    values: dict[int, np.ndarray]  # [T + 1]
    states: dict[Piece, tuple[np.ndarray, ...]]  # at the start of each piece

    def loss_of(self, chosen: Sequence[int]) -> float:
        return -float(np.mean(np.concatenate([self.log_probs[number] for number in chosen])))

    def accuracy_of(self, chosen: Sequence[int]) -> float | None:
        found = [self.correct[number] for number in chosen if number in self.correct]
        return float(np.mean(np.concatenate(found))) if found else None


class Cloning:
    """Behaviour cloning of a policy on demonstrations; see `pretrain`."""

    def __init__(self, policy: RecurrentPolicy, episodes: list[Demonstration], options: dict[str, Any]) -> None:
        self.policy, self.episodes, self.options = policy, episodes, options
        # The longest episode, its final observation included, so that short episodes are not padded.
        self.length = min(options["sequence_length"], max(episode.length for episode in episodes) + 1)
        self.generator = np.random.default_rng(options["seed"])
        order = self.generator.permutation(len(episodes)).tolist()
        count = round(options["validation_fraction"] * len(episodes))
        count = min(max(count, 1 if options["validation_fraction"] else 0), len(episodes) - 1)
        self.validation, self.training = sorted(order[:count]), sorted(order[count:])
        self.optimizer = keras.optimizers.Adam(options["learning_rate"])
        self.optimizer.build(policy.trainable_variables)
        compiled = options["jit_compile"] and gains_from_xla(policy)
        self._learn_function = tf.function(self._learn, autograph=False, jit_compile=compiled)
        self._pass_function = tf.function(self._pass, autograph=False, jit_compile=compiled)

    def run(self, callback: Callable[[Epoch], Any] | None) -> Pretraining:
        """Runs all epochs."""
        if self.episodes[0].action_masks is not None:
            self.policy.uses_action_masks = True
        self._update_statistics()
        options, epochs, best = self.options, list[Epoch](), 0
        sums = self._returns_without_bootstrap()
        passed = self._check_and_centre(sums)
        weights: list[np.ndarray] = []
        for number in range(1, options["n_epochs"] + 1):
            mean_loss = self._epoch(passed, sums)
            passed = self._passed(self._to_pass())
            validation_loss = passed.loss_of(self.validation) if self.validation else None
            if not np.isfinite([mean_loss, validation_loss or 0.0]).all():
                raise TrainingFailure(f"the loss of pretraining is not finite in epoch {number}: got {mean_loss}")
            epochs.append(Epoch(number, mean_loss, validation_loss))
            if not best or validation_loss is None or validation_loss < (epochs[best - 1].validation_loss or 0.0):
                best, weights = number, [variable.numpy() for variable in self.policy.trainable_variables]
            if (callback is not None and says_stop(callback(epochs[-1]))) or number - best >= options["patience"]:
                break
        for variable, value in zip(self.policy.trainable_variables, weights, strict=True):
            variable.assign(value)
        return self._result(epochs, best, sums)

    def _result(self, epochs: list[Epoch], best: int, sums: dict[int, np.ndarray]) -> Pretraining:
        everything = [*self.training, *self.validation]
        passed = self._passed(everything)
        returns = self._returns(passed, sums)
        values = np.concatenate([passed.values[number][:-1] for number in everything])
        return Pretraining(
            n_episodes=len(self.training),
            n_validation_episodes=len(self.validation),
            n_frames=sum(self.episodes[number].length for number in self.training),
            best_epoch=best,
            epochs=epochs,
            loss=passed.loss_of(self.training),
            validation_loss=passed.loss_of(self.validation) if self.validation else None,
            accuracy=passed.accuracy_of(self.training),
            validation_accuracy=passed.accuracy_of(self.validation),
            explained_variance=explained_variance(values, np.concatenate([returns[n] for n in everything])),
        )

    # ------------------------------------------------------------------------------------------- returns, statistics

    def _update_statistics(self) -> None:
        for episode in (self.episodes[number] for number in self.training):
            before_end = map_arrays(lambda part: part[:-1], episode.observations)
            self.policy.update_statistics(before_end, np.ones(episode.length, bool))

    def _returns_without_bootstrap(self) -> dict[int, np.ndarray]:
        """The discounted sum of the rewards from each step on, `[T]`, in the units of the values."""
        gamma, statistics = self.options["gamma"], self.policy.return_statistics
        if statistics is not None:
            for number in self.training:
                rewards = self._rewards(number)[:, np.newaxis]
                sums, _ = discounted_sums(rewards, np.zeros(rewards.shape, bool), np.zeros(1), gamma)
                statistics.update(sums[:, 0])
        returns = {}
        for number in range(len(self.episodes)):
            rewards = self._rewards(number) if statistics is None else statistics.scale(self._rewards(number))
            backwards = rewards[::-1, np.newaxis]
            sums, _ = discounted_sums(backwards, np.zeros(backwards.shape, bool), np.zeros(1), gamma)
            returns[number] = sums[::-1, 0]
        return returns

    def _rewards(self, number: int) -> np.ndarray:
        """The rewards of an episode, `[T]`, clipped as PPO does it."""
        rewards = self.episodes[number].rewards[:-1]
        return np.sign(rewards) if self.options["clip_rewards"] else rewards

    def _returns(self, passed: _Passed, sums: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
        """The discounted returns of the episodes that were passed, `[T]`, with the value of the final observation."""
        returns = {}
        for number, values in passed.values.items():
            episode = self.episodes[number]
            final = 0.0 if episode.terminated else values[-1]
            returns[number] = sums[number] + final * self.options["gamma"] ** np.arange(episode.length, 0, -1)
        return returns

    def _check_and_centre(self, sums: dict[int, np.ndarray]) -> _Passed:
        """Refuses illegal actions, and shifts the values to the mean of the returns, which takes Adam many steps."""
        passed = self._passed(range(len(self.episodes)))
        for number, log_probs in passed.log_probs.items():
            if self.episodes[number].action_masks is not None and np.any(log_probs < ILLEGAL):
                step = int(np.argmin(log_probs))
                raise UserError(f"episode {number}: the action of step {step} is illegal by its action mask")
        if not self.options["vf_coef"]:
            return passed
        returns = self._returns(passed, sums)
        errors = [returns[number] - passed.values[number][:-1] for number in self.training]
        bias = self.policy.network.value_head.bias
        bias.assign_add([np.mean(np.concatenate(errors))])
        return self._passed(self._to_pass())

    # ------------------------------------------------------------------------------------------------ passes, epochs

    def _to_pass(self) -> list[int]:
        """The episodes to run before an epoch: for their states and final values, and those for validation."""

        def is_needed(episode: Demonstration) -> bool:
            return episode.length > self.length or bool(self.options["vf_coef"] and not episode.terminated)

        return [*self.validation, *(number for number in self.training if is_needed(self.episodes[number]))]

    def _passed(self, chosen: Sequence[int]) -> _Passed:
        """Runs the policy through whole episodes, with the state carried from piece to piece."""
        passed = _Passed({}, {}, {}, {})
        ordered = sorted(chosen, key=lambda number: self.episodes[number].length)
        size = self.options["batch_size"]
        for first in range(0, len(ordered), size):
            group = ordered[first : first + size]
            found: dict[int, list[tuple[np.ndarray, ...]]] = {number: [] for number in group}
            state = tuple(self.policy.initial_state(size))
            for start in range(0, max(self.episodes[number].length for number in group) + 1, self.length):
                pieces = [Piece(number, start) if start <= self.episodes[number].length else None for number in group]
                batch = batch_of_pieces(self.episodes, [*pieces, *[None] * (size - len(pieces))], self.length)
                *results, after = self._pass_function(_tensors(batch), tuple(map(tf.convert_to_tensor, state)))
                columns = [part.numpy() for part in results]
                for row, piece in enumerate(pieces):
                    if piece is not None:
                        passed.states[piece] = tuple(part[row] for part in state)
                        found[piece.episode].append(tuple(column[row] for column in columns))
                state = tuple(part.numpy() for part in after)
            for number, parts in found.items():
                length = self.episodes[number].length
                log_probs, values, *correct = (np.concatenate(column) for column in zip(*parts, strict=True))
                passed.log_probs[number], passed.values[number] = log_probs[:length], values[: length + 1]
                if correct:
                    passed.correct[number] = correct[0][:length]
        return passed

    def _epoch(self, passed: _Passed, sums: dict[int, np.ndarray]) -> float:
        """Takes the gradient steps of an epoch, and returns the mean loss of the actions."""
        size, pieces = self.options["batch_size"], pieces_of(self.episodes, self.training, self.length)
        order: list[int | None] = [*self.generator.permutation(len(pieces)).tolist()]
        order += [None] * (-len(order) % size)
        returns = {**sums, **self._returns(passed, sums)}
        everything = np.concatenate([returns[number] for number in self.training])
        # Where all returns are nearly equal, errors of less than a tenth are not worth much.
        variance = max(float(np.var(everything)), 0.01 * float(np.mean(everything**2)), 1e-8)
        scale = tf.constant(1.0 / variance, tf.float32)
        start = [np.zeros(part.shape[1:], part.dtype) for part in self.policy.initial_state(1)]
        losses, weights = [], []
        for first in range(0, len(order), size):
            chosen = [None if index is None else pieces[index] for index in order[first : first + size]]
            batch = batch_of_pieces(self.episodes, chosen, self.length)
            states = [start if piece is None or not piece.start else passed.states[piece] for piece in chosen]
            state = tuple(tf.constant(np.stack(parts)) for parts in zip(*states, strict=True))
            targets = np.zeros(batch.valid.shape, np.float32)
            for row, piece in enumerate(chosen):
                if piece is not None:
                    own = returns[piece.episode][piece.start : piece.start + self.length]
                    targets[row, : len(own)] = own
            losses.append(float(self._learn_function(_tensors(batch), state, tf.constant(targets), scale)))
            weights.append(batch.valid.sum())
        return float(np.average(losses, weights=weights))

    # --------------------------------------------------------------------------------------------- TensorFlow graphs

    def _evaluated(self, batch: Batch, state: Any) -> Any:
        rewards = batch.rewards if self.policy.previous_reward else None
        return evaluate_sequences(
            self.policy, batch.observations, batch.actions, state, batch.episode_starts, batch.action_masks, rewards
        )

    def _pass(self, batch: Batch, state: Any) -> tuple[Any, ...]:
        """Log-probabilities, values and, unless all actions are continuous, which are the most probable; the state."""
        found = self._evaluated(batch, state)
        correct = _correct(self.policy.action_head, found.mode, found.actions)
        return (
            found.log_probs,
            found.values,
            *([tf.transpose(tf.reduce_all(tf.stack(correct), 0))] if correct else []),
            found.state,
        )

    def _learn(self, batch: Batch, state: Any, returns: Any, scale: Any) -> Any:
        """A gradient step. Returns the mean negative log-likelihood."""
        options, valid = self.options, batch.valid
        variables = [variable.value for variable in self.policy.trainable_variables]
        with tf.GradientTape() as tape:
            found = self._evaluated(batch, state)
            negative = -loss.mean_of_valid(tf.where(valid > 0, found.log_probs, 0.0), valid)
            total = negative + options["ent_coef"] * loss.entropy_loss(found.entropies, valid)
            total += options["vf_coef"] * scale * loss.value_loss(found.values, returns, valid)
            total = loss.regularized(total, self.policy.losses)
        gradients = tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        clipped, _ = tf.clip_by_global_norm(gradients, MAX_GRAD_NORM)
        self.optimizer.apply(clipped, self.policy.trainable_variables)
        return negative


def _tensors(batch: Batch) -> Batch:
    return map_arrays(tf.convert_to_tensor, batch)


def _correct(head: Any, mode: Any, actions: Any) -> list[Any]:
    """For each part with discrete actions, whether the most probable one was taken, `[time, batch]`."""
    if isinstance(head, CompositeHead):
        return [found for parts in zip(head.parts, mode, actions, strict=True) for found in _correct(*parts)]
    if isinstance(head, GaussianHead):
        return []
    equal = tf.equal(tf.cast(mode, tf.int64), tf.cast(actions, tf.int64))
    return [tf.reduce_all(tf.reshape(equal, [*tf.unstack(tf.shape(equal)[:2]), -1]), -1)]
