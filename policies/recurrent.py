"""`RecurrentPolicy`: an actor-critic on the masked LN-LSTM, for any encoder."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.action_masks import checked_masks
from rl_lnlstm.distributions import Distribution
from rl_lnlstm.errors import UserError
from rl_lnlstm.kernel.acting import compiled_step
from rl_lnlstm.layer import MaskedLNLSTM
from rl_lnlstm.normalization import RunningStatistics
from rl_lnlstm.policies.heads import Deviation, action_head
from rl_lnlstm.recurrence import State

HIDDEN_GAIN = 2**0.5  # He et al. (2015): keeps the variance through a ReLU layer
# Normalised sums with a gain of 1 saturate gates, and gradients vanish: Cooijmans et al. (2017), "Recurrent batch
# normalization", section 4.
CORE_GAIN = 0.3


class RecurrentPolicy(keras.layers.Layer):
    """An actor and a critic on a masked layer-normalised LSTM.

    Observations are normalised (if wanted), encoded, run through the recurrent core and, for each of actor and critic,
    through a small network of its own, which sees the core's output and the encoded observation. Weights are
    initialised orthogonally: hidden layers with gain sqrt(2), the action head with 0.01, the value head with 1; the
    gains of the core's layer normalisation with 0.3.

    Args:
        observation_space: of a single environment; `Box`.
        action_space: of a single environment; `Discrete`, `MultiDiscrete`, `MultiBinary`, `Box` of floats, and
            `Dict` and `Tuple` of these.
        encoder: a Keras model from `[batch, *observation_space.shape]` float32 to `[batch, features]`. None flattens.
        units: of each recurrent core.
        shared_lstm: actor and critic share one core; if false each has its own.
        head_layers: widths of the layers between the core and each head.
        activation: of those layers, a name that Keras knows.
        normalize_observations: keep running statistics of the observations, and normalise by them.
        normalize_rewards: keep running statistics of the discounted returns, for training to scale rewards with.
        log_std_init: for `Box` actions, the logarithm of the first standard deviation.
        state_dependent_std: for `Box` actions, the network gives their deviations; otherwise they are weights.
        use_sde: for `Box` actions, generalised state-dependent exploration: noise that is a function of what the actor
            sees, and stays the same from step to step until `reset_noise`.
        seed: decides the initial weights and the actions that are sampled. None draws one.

    The state is `(h, c)`, each `[batch, units]`, or `[batch, 2 * units]` when actor and critic have cores of their
    own: the actor's columns first.

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
        head_layers: Sequence[int] = (64,),
        activation: str = "tanh",
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        log_std_init: float = 0.0,
        state_dependent_std: bool = False,
        use_sde: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(observation_space, gym.spaces.Box):
            raise UserError(f"observation space must be Box, got {observation_space}")
        if isinstance(units, bool) or not isinstance(units, int) or units < 1:
            raise UserError(f"units must be an integer of at least 1, got {units!r}")
        self.observation_space, self.action_space = observation_space, action_space
        self.units, self.shared_lstm = units, shared_lstm
        self.arguments: dict[str, Any] = {
            "units": units,
            "shared_lstm": shared_lstm,
            "head_layers": list(head_layers),
            "activation": activation,
            "normalize_observations": normalize_observations,
            "normalize_rewards": normalize_rewards,
            "log_std_init": log_std_init,
            "state_dependent_std": state_dependent_std,
            "use_sde": use_sde,
        }
        seeds = seed_sequence(seed)
        self.generator = np.random.default_rng(next(seeds))

        self.observation_statistics = RunningStatistics(observation_space.shape) if normalize_observations else None
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
                name=name,
            )
            for name in (("core",) if shared_lstm else ("actor_core", "critic_core"))
        ]
        self.actor_layers, self.critic_layers = (
            [dense(width, activation, next(seeds), f"{role}_{i}") for i, width in enumerate(head_layers)]
            for role in ("actor", "critic")
        )
        self.action_head = action_head(action_space, next(seeds), Deviation(log_std_init, state_dependent_std, use_sde))
        self.value_head = keras.layers.Dense(
            1, kernel_initializer=keras.initializers.Orthogonal(1.0, next(seeds)), name="value_head"
        )

        self._run_step(
            tf.zeros([1, *observation_space.shape], observation_space.dtype),
            *self.initial_state(1),
            tf.ones(1, tf.bool),
        )  # builds all weights
        self.built = True
        self._held_columns = self.action_head.held()
        self._held_noise = np.zeros((0, self.action_head.noise_size), np.float32)

    @functools.cached_property
    def _step_function(self) -> Callable[..., tuple[Any, ...]]:
        """Observations, h, c, episode starts and noise to actions, values, log-probabilities, h and c."""
        graph = ("_run", "_heads", "_run_step", "_step_graph")
        as_written = all(
            getattr(getattr(self, name), "__func__", None) is getattr(RecurrentPolicy, name) for name in graph
        )
        return (compiled_step(self) if as_written else None) or self._graph_step()

    @functools.cached_property
    def _masked_step_function(self) -> Callable[..., tuple[Any, ...]]:
        """The same with action masks as last argument."""
        return self._graph_step(masked=True)

    def _graph_step(self, masked: bool = False) -> Callable[..., tuple[Any, ...]]:
        state = tf.TensorSpec([None, self.state_size], tf.float32)
        specs = [
            tf.TensorSpec([None, *self.observation_space.shape], self.observation_space.dtype),
            *(state, state),
            tf.TensorSpec([None], tf.bool),
            tf.TensorSpec([None, self.action_head.noise_size], tf.float32),
            *([tf.TensorSpec([None, None], tf.bool)] if masked else []),
        ]
        dtypes = [spec.dtype for spec in specs]
        function = tf.function(self._step_graph, autograph=False).get_concrete_function(*specs)

        # Called in 60% of the time of a tf.function, which looks for a fitting trace at each call.
        def call(*arguments: Any) -> tuple[Any, ...]:
            results = function(*map(tf.convert_to_tensor, arguments, dtypes))
            return tf.nest.map_structure(lambda result: result.numpy(), results)

        return call

    def _act(
        self, observations: Any, state: State, episode_starts: Any, noise: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, ...]:
        given = [observations, *state, episode_starts, noise]
        if action_masks is None:
            actions, values, log_probs, h, c = self._step_function(*given)
        else:
            masks = checked_masks(action_masks, self.action_space, len(observations))
            actions, values, log_probs, h, c = self._masked_step_function(*given, masks)
        return self.action_head.to_space(actions), values, log_probs, State(h, c)

    @property
    def state_size(self) -> int:
        """The width of h, and of c."""
        return self.units * len(self.cores)

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode: zeros, h and c each `[batch_size, state_size]` float32."""
        return State(*np.zeros((2, batch_size, self.state_size), np.float32))

    def step(
        self, observations: np.ndarray, state: State, episode_starts: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, np.ndarray, np.ndarray, State]:
        """Acts: samples an action for each environment.

        Args:
            observations: `[batch, *observation_space.shape]`.
            state: what the last step returned, or `initial_state`.
            episode_starts: `[batch]` bool, the observation is an episode's first: its state is reset before.
            action_masks: false where an action is illegal, which then is never taken. `Discrete`: `[batch, n]`;
                `MultiDiscrete`: `[batch, sum(nvec)]`, component after component. None: all are legal.

        Returns:
            Actions as sampled (see `legal_actions`), in the action space's structure, each array
            `[batch, *shape]`; values `[batch]`, log-probabilities `[batch]`, and the state after the step.

        Raises:
            UserError: masks of another shape, or one that allows nothing.
        """
        noise = self._noise(len(observations))
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
        """With `use_sde`, draws the noise anew that `step` holds for each of `batch_size` environments."""
        self._held_noise = self.action_head.noise(self.generator, batch_size)

    def value(self, observations: np.ndarray, state: State, episode_starts: np.ndarray) -> np.ndarray:
        """The values `[batch]` of observations; arguments as for `step`. The state is not advanced."""
        return self._act(observations, state, episode_starts, self.action_head.no_noise(len(observations)))[1]

    def evaluate_actions(
        self, observations: Any, actions: Any, state: State, masks: Any, action_masks: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Re-computes, differentiably, what acting recorded for sequences.

        Args:
            observations: `[batch, time, *observation_space.shape]`.
            actions: as `step` returned them, each array `[batch, time, *shape]`.
            state: the state each sequence started from.
            masks: `[batch, time]`, 0 where the observation was an episode's first, otherwise 1.
            action_masks: those that `step` was given, `[batch, time, size]`; None if there were none.

        Returns:
            Log-probabilities, entropies and values, each `[batch, time]`.
        """
        masks = tf.transpose(tf.cast(masks, tf.float32))
        (actor, critic), _ = self._run(_swap_batch_and_time(tf.convert_to_tensor(observations)), State(*state), masks)
        legal = () if action_masks is None else (_swap_batch_and_time(tf.convert_to_tensor(action_masks)),)
        distribution, values = self._heads(actor, critic, *legal)
        actions = tf.nest.map_structure(lambda part: _swap_batch_and_time(tf.convert_to_tensor(part)), actions)
        actions = self.action_head.to_distribution(actions)
        results = distribution.log_prob(actions), distribution.entropy(), values
        return tuple(tf.transpose(result) for result in results)

    def predict(
        self,
        observation: np.ndarray,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """The actions to take, as `predict` of Stable-Baselines3.

        Args:
            observation: a single observation, or a batch of them.
            state: what the last call returned, None at the start.
            episode_start: `[batch]` bool, the observation is an episode's first. None: no.
            deterministic: take the most probable action rather than sample.
            action_masks: as for `step`, without the batch axis for a single observation.

        Returns:
            Actions within the space's bounds, without the batch axis for a single observation, and the new state.
        """
        observation = np.asarray(observation)
        shape = self.observation_space.shape
        single = observation.shape == shape
        if not single and observation.shape[1:] != shape:
            raise UserError(
                f"observation must have shape {list(shape)} or [batch, {', '.join(map(str, shape))}], "
                f"got {list(observation.shape)}"
            )
        batch = (observation[np.newaxis] if single else observation).astype(self.observation_space.dtype, copy=False)
        if state is None:
            state = self.initial_state(len(batch))
        if any(np.shape(part) != (len(batch), self.state_size) for part in state):
            expected, got = [len(batch), self.state_size], [list(np.shape(part)) for part in state]
            raise UserError(f"state must be (h, c), each {expected}, got {got}")
        starts = np.zeros(len(batch), bool) if episode_start is None else np.asarray(episode_start, bool).reshape(-1)
        noise = (
            self.action_head.no_noise(len(batch))
            if deterministic
            else self.action_head.noise(self.generator, len(batch))
        )
        if action_masks is not None and single:
            action_masks = np.reshape(action_masks, (1, -1))
        actions, _, _, new_state = self._act(batch, State(*state), starts, noise, action_masks)
        actions = self.legal_actions(actions)
        if single:
            actions = tf.nest.map_structure(lambda part: part[0], actions)
        return actions, tuple(new_state)

    def legal_actions(self, actions: Any) -> Any:
        """What to send to the environments for sampled `actions`: within bounds, of the space's dtype."""
        return self.action_head.legal(actions)

    def seed(self, seed: int) -> None:
        """Decides the actions that will be sampled from now on."""
        self.generator = np.random.default_rng(seed)

    def save(self, path: str | os.PathLike) -> None:
        """Saves the policy in the folder `path`, as JSON and arrays; `rl_lnlstm.load_policy` loads it."""
        from rl_lnlstm.checkpoint import save_policy

        save_policy(self, path)

    def _run(self, observations: Any, state: State, masks: Any) -> tuple[tuple[Any, Any], State]:
        """Time-major observations to what actor and critic see of them, `[time, batch, units]` each."""
        time, batch = tf.unstack(tf.shape(observations)[:2])
        frames = tf.reshape(observations, [-1, *self.observation_space.shape])
        if self.observation_statistics is not None:
            frames = self.observation_statistics.normalize(frames)
        frames = tf.cast(frames, tf.float32)
        size = int(np.prod(self.observation_space.shape))
        features = tf.reshape(frames, [-1, size]) if self.encoder is None else self.encoder(frames)
        static = observations.shape[0]
        features = tf.reshape(features, [time if static is None else static, batch, features.shape[-1]])
        # A core's layer normalisation discards its inputs' magnitude, unless something constant is beside them.
        inputs = tf.concat([features, tf.ones_like(features[..., :1])], -1)

        parts = zip(*(tf.split(part, len(self.cores), -1) for part in state), strict=True)
        runs = [
            core(inputs, masks=masks, initial_state=list(part)) for core, part in zip(self.cores, parts, strict=True)
        ]
        outputs, hs, cs = zip(*runs, strict=True)
        # What the moment shows reaches the heads directly: the core is for what was before.
        seen = [tf.concat([output, features], -1) for output in outputs]
        return (seen[0], seen[-1]), State(tf.concat(hs, -1), tf.concat(cs, -1))

    def _heads(self, actor: Any, critic: Any, *action_masks: Any) -> tuple[Distribution, Any]:
        for layer in self.actor_layers:
            actor = layer(actor)
        for layer in self.critic_layers:
            critic = layer(critic)
        return self.action_head(actor, *action_masks), self.value_head(critic)[..., 0]

    def _run_step(
        self, observations: Any, h: Any, c: Any, episode_starts: Any, *action_masks: Any
    ) -> tuple[Distribution, Any, State]:
        masks = 1.0 - tf.cast(episode_starts, tf.float32)
        (actor, critic), state = self._run(observations[tf.newaxis], State(h, c), masks[tf.newaxis])
        return *self._heads(actor[0], critic[0], *action_masks), state

    def _step_graph(
        self, observations: Any, h: Any, c: Any, episode_starts: Any, noise: Any, *action_masks: Any
    ) -> tuple[Any, Any, Any, Any, Any]:
        distribution, values, state = self._run_step(observations, h, c, episode_starts, *action_masks)
        actions = distribution.sample(noise)
        return actions, values, distribution.log_prob(actions), *state


def seed_sequence(seed: int | None) -> Iterator[int]:
    """Endlessly many seeds that follow from one."""
    generator = np.random.default_rng(seed)
    while True:
        yield int(generator.integers(2**31))


def dense(width: int, activation: str, seed: int, name: str) -> keras.layers.Dense:
    """A hidden layer with the usual initialisation.

    Raises:
        UserError: a width below 1, or an activation that Keras does not know.
    """
    if width < 1:
        raise UserError(f"a layer's width must be at least 1, got {width}")
    if not hasattr(keras.activations, activation):
        raise UserError(f"activation must be one that keras.activations has, such as tanh or relu, got {activation!r}")
    initializer = keras.initializers.Orthogonal(HIDDEN_GAIN, seed)
    return keras.layers.Dense(width, activation=activation, kernel_initializer=initializer, name=name)


def _swap_batch_and_time(sequence: Any) -> Any:
    return tf.transpose(sequence, [1, 0, *range(2, sequence.shape.rank)])
