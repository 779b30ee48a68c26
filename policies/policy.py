"""`RecurrentPolicy`: an actor-critic on the masked LN-LSTM, for any encoder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.envs.action_masks import checked_masks
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import State
from rl_lnlstm.lstm.layer import MaskedLNLSTM
from rl_lnlstm.policies.compiled_step import CompiledStep, compiled_step
from rl_lnlstm.policies.distributions import Distribution
from rl_lnlstm.policies.encoders import as_floats, dense, flat_floats, running_statistics, seed_sequence
from rl_lnlstm.policies.heads import Deviation, action_head
from rl_lnlstm.policies.normalization import RunningStatistics
from rl_lnlstm.policies.saving import save_policy
from rl_lnlstm.spaces import (
    batch_of,
    categories,
    check_observation_space,
    flatten,
    is_categorical,
    leaves,
    map_leaves,
    unflatten,
    width,
)

# Normalised sums with a gain of 1 saturate gates, and gradients vanish: Cooijmans et al. (2017), "Recurrent batch
# normalization", section 4.
CORE_GAIN = 0.3


class FeedbackState(NamedTuple):
    """The state of a policy whose core sees what it did last: `State` and `[batch, features]`, zeros for nothing."""

    h: Any
    c: Any
    feedback: Any


class RecurrentPolicy(keras.layers.Layer):
    """An actor and a critic on a masked layer-normalised LSTM.

    Observations are normalised (if wanted), encoded, run through the recurrent core and, for each of actor and critic,
    through a small network of its own, which sees the core's output and the encoded observation. Weights are
    initialised orthogonally: hidden layers with gain sqrt(2), the action head with 0.01, the value head with 1; the
    gains of the core's layer normalisation with 0.3.

    Args:
        observation_space: of a single environment; `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary`, and `Dict` and
            `Tuple` of these.
        action_space: of a single environment; `Discrete`, `MultiDiscrete`, `MultiBinary`, `Box` of floats, and
            `Dict` and `Tuple` of these.
        encoder: a Keras model to `[batch, features]` from observations, in the structure of their space, float32: a
            `Box` or `MultiBinary` as it is, `[batch, *shape]`; `Discrete` and `MultiDiscrete` one-hot, all components
            side by side. None flattens them.
        units: of each recurrent layer.
        shared_lstm: actor and critic share one core; if false each has its own.
        num_layers: recurrent layers of a core, each on the outputs of the one below.
        residual: to the outputs of a layer but the first, its inputs are added (Wu et al., 2016, section 3.1).
        previous_action: the core sees the action before as well, one-hot or within bounds; zeros at an episode's first.
        previous_reward: and the reward r that it earned, as sign(r) log(1 + |r|); see `rewarded`.
        head_layers: widths of the layers between the core and each head.
        activation: of those layers, a name that Keras knows.
        normalize_observations: keep running statistics of what in the observations is floating-point, or bytes of 0
            to 255, each pixel of an image for itself, and normalise by them. Symbols, such as MiniGrid's, stay as they
            are.
        normalize_rewards: keep running statistics of the discounted returns, for training to scale rewards with.
        log_std_init: for `Box` actions, the logarithm of the first standard deviation.
        std: for `Box` actions, where the standard deviations come from. "free": weights of their own; "network": an
            output of the network; "gsde": generalised state-dependent exploration, noise that is a function of what the
            actor sees, and stays the same from step to step until `reset_noise`.
        seed: decides the initial weights and the actions that are sampled. None draws one.

    The state is `(h, c)`, each `[batch, state_size]`: the units of all layers side by side, the lowest first; when
    actor and critic have cores of their own, the actor's columns first. With `previous_action` or `previous_reward` it
    is `(h, c, feedback)`: what the core will see of them.

    Raises:
        UserError: a space that is not supported, or an argument out of its range.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        encoder: keras.Model | None = None,
        units: int = 128,
        shared_lstm: bool = True,
        num_layers: int = 1,
        residual: bool = False,
        previous_action: bool = False,
        previous_reward: bool = False,
        head_layers: Sequence[int] = (64,),
        activation: str = "tanh",
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        log_std_init: float = 0.0,
        std: str = "free",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_observation_space(observation_space)
        for name, value in (("units", units), ("num_layers", num_layers)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} must be an integer of at least 1, got {value!r}")
        self.observation_space, self.action_space = observation_space, action_space
        self.units, self.shared_lstm, self.num_layers, self.residual = units, shared_lstm, num_layers, residual
        self.previous_action, self.previous_reward = previous_action, previous_reward
        self.arguments: dict[str, Any] = {
            "units": units,
            "shared_lstm": shared_lstm,
            "num_layers": num_layers,
            "residual": residual,
            "previous_action": previous_action,
            "previous_reward": previous_reward,
            "head_layers": list(head_layers),
            "activation": activation,
            "normalize_observations": normalize_observations,
            "normalize_rewards": normalize_rewards,
            "log_std_init": log_std_init,
            "std": std,
        }
        seeds = seed_sequence(seed)
        self.generator = np.random.default_rng(next(seeds))

        # In the structure of the space, None for a leaf that is not normalised
        self.observation_statistics = map_leaves(
            lambda leaf: running_statistics(leaf) if normalize_observations else None,
            observation_space,
        )
        self.return_statistics = RunningStatistics() if normalize_rewards else None
        self.encoder, self.custom_encoder = encoder, encoder is not None
        self.cores = [
            MaskedLNLSTM(
                units,
                return_sequences=True,
                return_state=True,
                time_major=True,
                kernel_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
                recurrent_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
                gamma_initializer=keras.initializers.Constant(CORE_GAIN),
                name=f"{name}_{layer}" if layer else name,
            )
            for name in (("core",) if shared_lstm else ("actor_core", "critic_core"))
            for layer in range(num_layers)
        ]
        self.actor_layers, self.critic_layers = (
            [dense(width, activation, next(seeds), f"{role}_{i}") for i, width in enumerate(head_layers)]
            for role in ("actor", "critic")
        )
        self.action_head = action_head(action_space, next(seeds), Deviation(log_std_init, std))
        self.value_head = keras.layers.Dense(
            1, kernel_initializer=keras.initializers.Orthogonal(1.0, next(seeds)), name="value_head"
        )

        self._leaf_specs = [
            tf.TensorSpec([None, *(leaf.shape or ())], leaf.dtype) for leaf in leaves(observation_space)
        ]
        zeros = [tf.zeros([1, *spec.shape[1:]], spec.dtype) for spec in self._leaf_specs]
        h, c, *feedback = self.initial_state(1)
        self._run_step(unflatten(observation_space, zeros), h, c, tf.ones(1, tf.bool), *feedback)  # builds all weights
        self.built = True
        self._held_columns = self.action_head.held()
        self._held_noise = np.zeros((0, self.action_head.noise_size), np.float32)

    @functools.cached_property
    def _step_function(self) -> Callable[..., tuple[Any, ...]]:
        """Observations, h, c, episode starts, noise and any feedback to actions, values, log-probabilities, h and c."""
        graph = ("_run", "_heads", "_run_step", "_step_graph")
        as_written = all(
            getattr(getattr(self, name), "__func__", None) is getattr(RecurrentPolicy, name) for name in graph
        )
        return (compiled_step(self) if as_written else None) or self._graph_step()

    @functools.cached_property
    def _masked_step_function(self) -> Callable[..., tuple[Any, ...]]:
        """The same with action masks as last argument."""
        return self._step_function if isinstance(self._step_function, CompiledStep) else self._graph_step(masked=True)

    def _graph_step(self, masked: bool = False) -> Callable[..., tuple[Any, ...]]:
        state = tf.TensorSpec([None, self.state_size], tf.float32)
        specs = [
            *self._leaf_specs,
            *(state, state),
            tf.TensorSpec([None], tf.bool),
            tf.TensorSpec([None, self.action_head.noise_size], tf.float32),
            *([tf.TensorSpec([None, self.feedback_size], tf.float32)] if self.feedback_size else []),
            *([tf.TensorSpec([None, None], tf.bool)] if masked else []),
        ]
        optional = [name for name, there in (("feedback", self.feedback_size), ("action_masks", masked)) if there]
        dtypes, count, space = [spec.dtype for spec in specs], len(self._leaf_specs), self.observation_space

        def graph(*arguments: Any) -> tuple[Any, ...]:
            h, c, episode_starts, noise, *others = arguments[count:]
            observations, named = unflatten(space, arguments[:count]), dict(zip(optional, others, strict=True))
            return self._step_graph(observations, h, c, episode_starts, noise, **named)

        function = tf.function(graph, autograph=False).get_concrete_function(*specs)

        # Called in 60% of the time of a tf.function, which looks for a fitting trace at each call.
        def call(observations: Any, *others: Any) -> tuple[Any, ...]:
            results = function(*map(tf.convert_to_tensor, (*flatten(space, observations), *others), dtypes))
            return tf.nest.map_structure(lambda result: result.numpy(), results)

        return call

    def _act(
        self, observations: Any, state: Any, episode_starts: Any, noise: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, ...]:
        h, c, *feedback = state
        given = [observations, h, c, episode_starts, noise, *feedback]
        if action_masks is None:
            actions, values, log_probs, h, c = self._step_function(*given)
        else:
            masks = checked_masks(action_masks, self.action_space, len(h))
            actions, values, log_probs, h, c = self._masked_step_function(*given, masks)
        actions = self.action_head.to_space(actions)
        return actions, values, log_probs, self._state_after(h, c, actions)

    def _state_after(self, h: np.ndarray, c: np.ndarray, actions: Any) -> Any:
        if not self.feedback_size:
            return State(h, c)
        feedback = np.zeros((len(h), self.feedback_size), np.float32)
        if self.previous_action:
            feedback[:, : self.feedback_size - self.previous_reward] = _action_features(self.action_space, actions)
        return FeedbackState(h, c, feedback)

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """The state that `step` or `predict` returned, after the environments answered with `rewards`, `[batch]`.

        Only a policy with `previous_reward` takes note of it. One that is not told acts as if the reward had been 0.
        """
        if not self.previous_reward:
            return state
        h, c, feedback = state
        feedback = np.array(feedback)
        feedback[:, -1] = np.sign(rewards) * np.log1p(np.abs(rewards))
        return FeedbackState(h, c, feedback)

    @property
    def state_size(self) -> int:
        """The width of h, and of c."""
        return self.units * len(self.cores)

    @property
    def is_convolutional(self) -> bool:
        """Any layer of the encoder, however deep, convolves."""
        layers = [] if self.encoder is None else self.encoder._flatten_layers()
        return any("Conv" in type(layer).__name__ for layer in layers)

    @functools.cached_property
    def feedback_size(self) -> int:
        """The width of what the core sees of the last action and reward."""
        action = sum(width(leaf) for leaf in leaves(self.action_space)) if self.previous_action else 0
        return action + self.previous_reward

    def initial_state(self, batch_size: int) -> Any:
        """The state before an episode: zeros, h and c each `[batch_size, state_size]` float32."""
        h, c = np.zeros((2, batch_size, self.state_size), np.float32)
        if not self.feedback_size:
            return State(h, c)
        return FeedbackState(h, c, np.zeros((batch_size, self.feedback_size), np.float32))

    def step(
        self, observations: Any, state: Any, episode_starts: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """Acts: samples an action for each environment.

        Args:
            observations: `[batch, *observation_space.shape]`; of `Dict` and `Tuple` spaces a structure of such arrays.
            state: what the last step returned, or `initial_state`.
            episode_starts: `[batch]` bool, the observation is an episode's first: its state is reset before.
            action_masks: false where an action is illegal, which then is never taken. `Discrete`: `[batch, n]`;
                `MultiDiscrete`: `[batch, sum(nvec)]`, component after component. None: all are legal.

        Returns:
            Actions as sampled (see `clip_actions`), in the action space's structure, each array
            `[batch, *shape]`; values `[batch]`, log-probabilities `[batch]`, and the state after the step.

        Raises:
            UserError: masks of another shape, or one that allows nothing.
        """
        noise = self._noise(len(episode_starts))
        return self._act(observations, state, episode_starts, noise, action_masks)

    def _noise(self, batch_size: int) -> np.ndarray:
        """What the next step samples with; what exploration holds is what it was."""
        noise = self.action_head.noise(self.generator, batch_size)
        if self._held_columns.any():
            if len(self._held_noise) != batch_size:
                self.reset_noise(batch_size)
            noise[:, self._held_columns] = self._held_noise[:, self._held_columns]
        return noise

    def reset_noise(self, batch_size: int) -> None:
        """With `std="gsde"`, draws the noise anew that `step` holds for each of `batch_size` environments."""
        self._held_noise = self.action_head.noise(self.generator, batch_size)

    def value(self, observations: Any, state: Any, episode_starts: np.ndarray) -> np.ndarray:
        """The values `[batch]` of observations; arguments as for `step`. The state is not advanced."""
        return self._act(observations, state, episode_starts, self.action_head.no_noise(len(episode_starts)))[1]

    def evaluate_actions(
        self,
        observations: Any,
        actions: Any,
        state: Any,
        masks: Any,
        action_masks: Any = None,
        rewards: Any = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Re-computes, differentiably, what acting recorded for sequences.

        Args:
            observations: `[batch, time, *observation_space.shape]`, or a structure of such arrays.
            actions: as `step` returned them, each array `[batch, time, *shape]`.
            state: the state each sequence started from.
            masks: `[batch, time]`, 0 where the observation was an episode's first, otherwise 1.
            action_masks: those that `step` was given, `[batch, time, size]`; None if there were none.
            rewards: `[batch, time]`, what each action earned; only a policy with `previous_reward` needs them.

        Returns:
            Log-probabilities, entropies and values, each `[batch, time]`.
        """
        masks = tf.transpose(tf.cast(masks, tf.float32))
        observations = map_leaves(lambda _, part: _swap_batch_and_time(part), self.observation_space, observations)
        actions = map_leaves(lambda _, part: _swap_batch_and_time(part), self.action_space, actions)
        legal = () if action_masks is None else (_swap_batch_and_time(action_masks),)
        h, c, *before = state
        feedback = [self._feedback(part, actions, rewards) for part in before]
        (actor, critic), _ = self._run(observations, State(h, c), masks, *feedback)
        distribution, values = self._heads(actor, critic, *legal)
        actions = self.action_head.to_distribution(actions)
        results = distribution.log_prob(actions), distribution.entropy(), values
        return tuple(tf.transpose(result) for result in results)

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """The actions to take, as `predict` of Stable-Baselines3.

        Args:
            observation: a single observation, or a batch of them; of `Dict` and `Tuple` spaces a structure of such.
            state: what the last call returned, None at the start. With `previous_reward` see `rewarded`.
            episode_start: `[batch]` bool, the observation is an episode's first. None: no.
            deterministic: take the most probable action rather than sample.
            action_masks: as for `step`, without the batch axis for a single observation.

        Returns:
            Actions within the space's bounds, without the batch axis for a single observation, and the new state.
        """
        batch, size = batch_of(self.observation_space, observation)
        single, size = size is None, size or 1
        if state is None:
            state = self.initial_state(size)
        expected = [list(part.shape) for part in self.initial_state(size)]
        got = [list(np.shape(part)) for part in state]
        if got != expected:
            names = "(h, c, feedback)" if self.feedback_size else "(h, c)"
            raise UserError(f"state must be {names} of shapes {expected}, got {got}")
        starts = np.zeros(size, bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
        noise = self.action_head.no_noise(size) if deterministic else self.action_head.noise(self.generator, size)
        if action_masks is not None and single:
            action_masks = np.reshape(action_masks, (1, -1))
        actions, _, _, new_state = self._act(batch, state, starts, noise, action_masks)
        actions = self.clip_actions(actions)
        if single:
            actions = tf.nest.map_structure(lambda part: part[0], actions)
        return actions, tuple(new_state)

    def clip_actions(self, actions: Any) -> Any:
        """What to send to the environments for sampled `actions`: within bounds, of the space's dtype."""
        return self.action_head.legal(actions)

    def seed(self, seed: int) -> None:
        """Decides the actions that will be sampled from now on."""
        self.generator = np.random.default_rng(seed)

    def save(self, path: str | os.PathLike) -> None:
        """Saves the policy in the folder `path`, as JSON and arrays; `rl_lnlstm.load_policy` loads it."""
        save_policy(self, path)

    def update_statistics(self, observations: Any, valid: np.ndarray) -> None:
        """Takes in the observations `[..., *observation_space.shape]` where `valid`, `[...]` bool, is true."""

        def update(_: gym.Space, statistics: RunningStatistics | None, values: np.ndarray) -> None:
            if statistics is not None:
                statistics.update(values[valid])

        map_leaves(update, self.observation_space, self.observation_statistics, observations)

    def _feedback(self, before: Any, actions: Any, rewards: Any) -> Any:
        """Time-major: what the core saw at each step of the action and reward of the step before it."""
        parts = []
        if self.previous_action:
            time_and_batch = tf.shape(flatten(self.action_space, actions)[0])[:2]
            rows = map_leaves(_rows_within_bounds, self.action_space, actions)
            features = flat_floats(self.action_space, rows)
            parts.append(tf.reshape(features, tf.concat([time_and_batch, [features.shape[-1]]], 0)))
        if self.previous_reward:
            if rewards is None:
                raise UserError("rewards: a policy with previous_reward needs those of the sequences, got None")
            rewards = tf.transpose(tf.cast(rewards, tf.float32))
            parts.append((tf.sign(rewards) * tf.math.log1p(tf.abs(rewards)))[..., tf.newaxis])
        after = tf.concat(parts, -1)
        return tf.concat([tf.convert_to_tensor(before)[tf.newaxis], after[:-1]], 0)

    def _run(self, observations: Any, state: Any, masks: Any, feedback: Any = None) -> tuple[tuple[Any, Any], State]:
        """Time-major observations to what actor and critic see of them, `[time, batch, units]` each."""
        first = flatten(self.observation_space, observations)[0]
        time, batch = tf.unstack(tf.shape(first)[:2])
        features = self._encode(map_leaves(_rows, self.observation_space, observations))
        static = first.shape[0]
        features = tf.reshape(features, [time if static is None else static, batch, features.shape[-1]])
        # A core's layer normalisation discards its inputs' magnitude, unless something constant is beside them.
        constant = tf.ones_like(features[..., :1])
        fed = [] if feedback is None else [feedback * masks[..., tf.newaxis]]
        inputs = tf.concat([features, *fed, constant], -1)

        parts = iter(list(zip(*(tf.split(part, len(self.cores), -1) for part in state), strict=True)))
        outputs: list[Any] = []
        states: list[tuple[Any, Any]] = []
        for number, core in enumerate(self.cores):
            lowest = number % self.num_layers == 0
            below = inputs if lowest else tf.concat([outputs[-1], constant], -1)
            output, h, c = core(below, masks=masks, initial_state=list(next(parts)))
            outputs.append(output + outputs[-1] if self.residual and not lowest else output)
            states.append((h, c))
        hs, cs = zip(*states, strict=True)
        # What the moment shows reaches the heads directly: the core is for what was before.
        seen = [tf.concat([output, features], -1) for output in outputs[self.num_layers - 1 :: self.num_layers]]
        return (seen[0], seen[-1]), State(tf.concat(hs, -1), tf.concat(cs, -1))

    def _encode(self, frames: Any) -> Any:
        """Observations `[n, *shape]` to features `[n, features]`."""

        def normalized(_: gym.Space, statistics: RunningStatistics | None, values: Any) -> Any:
            return values if statistics is None else statistics.normalize(values)

        frames = map_leaves(normalized, self.observation_space, self.observation_statistics, frames)
        if self.encoder is None:
            return flat_floats(self.observation_space, frames)
        return self.encoder(map_leaves(as_floats, self.observation_space, frames))

    def _heads(self, actor: Any, critic: Any, *action_masks: Any) -> tuple[Distribution, Any]:
        for layer in self.actor_layers:
            actor = layer(actor)
        for layer in self.critic_layers:
            critic = layer(critic)
        return self.action_head(actor, *action_masks), self.value_head(critic)[..., 0]

    def _run_step(
        self,
        observations: Any,
        h: Any,
        c: Any,
        episode_starts: Any,
        feedback: Any = None,
        action_masks: Any = None,
    ) -> tuple[Distribution, Any, State]:
        masks = 1.0 - tf.cast(episode_starts, tf.float32)
        sequences = map_leaves(lambda _, part: part[tf.newaxis], self.observation_space, observations)
        fed = () if feedback is None else (tf.convert_to_tensor(feedback)[tf.newaxis],)
        legal = () if action_masks is None else (action_masks,)
        (actor, critic), state = self._run(sequences, State(h, c), masks[tf.newaxis], *fed)
        return *self._heads(actor[0], critic[0], *legal), state

    def _step_graph(
        self, observations: Any, h: Any, c: Any, episode_starts: Any, noise: Any, **optional: Any
    ) -> tuple[Any, Any, Any, Any, Any]:
        distribution, values, state = self._run_step(observations, h, c, episode_starts, **optional)
        actions = distribution.sample(noise)
        return actions, values, distribution.log_prob(actions), *state


def refuse_encoder(policy: RecurrentPolicy, arguments: dict[str, Any]) -> None:
    """Raises `UserError` if the arguments of a policy that makes its own encoder hold one."""
    if "encoder" in arguments:
        raise UserError(f"encoder: {type(policy).__name__} has its own, hand one to RecurrentPolicy instead")


def _action_features(space: gym.Space, actions: Any) -> np.ndarray:
    """Actions `[batch, ...]` as `flat_floats` of `_rows_within_bounds` gives them, but in NumPy."""

    def features(leaf: gym.Space, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
        if is_categorical(leaf):
            component, value = categories(leaf)
            return flat[:, component] == value
        if isinstance(leaf, gym.spaces.Box):
            return np.clip(flat.astype(np.float32), *_bounds(leaf))
        return flat

    parts = flatten(space, map_leaves(features, space, actions))
    return np.concatenate(parts, -1, dtype=np.float32)


def _rows(space: gym.Space, sequences: Any) -> Any:
    return tf.reshape(sequences, [-1, *(space.shape or ())])


def _rows_within_bounds(space: gym.Space, actions: Any) -> Any:
    rows = _rows(space, actions)
    if not isinstance(space, gym.spaces.Box):
        return rows
    low, high = (bound.reshape(space.shape) for bound in _bounds(space))
    return tf.clip_by_value(tf.cast(rows, tf.float32), low, high)


def _bounds(space: gym.spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    return space.low.astype(np.float32).ravel(), space.high.astype(np.float32).ravel()


def _swap_batch_and_time(sequence: Any) -> Any:
    sequence = tf.convert_to_tensor(sequence)
    return tf.transpose(sequence, [1, 0, *range(2, sequence.shape.rank)])
