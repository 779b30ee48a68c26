"""`RecurrentPolicy`: an actor-critic on the masked LN-LSTM, for any encoder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.config import PolicyOptions, make_policy_options, with_options
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import State
from rl_lnlstm.policies import copying
from rl_lnlstm.policies.acting import Actor
from rl_lnlstm.policies.action_distribution import ActionDistribution
from rl_lnlstm.policies.encoder_check import chosen_encoder, keras_defaults
from rl_lnlstm.policies.encoders import check_activation, running_statistics
from rl_lnlstm.policies.exploration import Exploration, Generators
from rl_lnlstm.policies.heads import ActionHead
from rl_lnlstm.policies.last_action_reward import LastActionReward, LastActionRewardState
from rl_lnlstm.policies.network import Network, Outputs, Seen
from rl_lnlstm.policies.normalization import RunningStatistics, normalize_each, update_each
from rl_lnlstm.policies.saving import save_policy
from rl_lnlstm.policies.sequences import evaluate_sequences
from rl_lnlstm.spaces import batch_of, check_observation_space, flatten, map_leaves


@with_options
# Its length is that of the documentation of its public methods; their bodies are in files of their own.
class RecurrentPolicy(keras.layers.Layer):
    """An actor and a critic on a masked layer-normalised LSTM.

    Observations are normalised (if wanted), encoded, and run through the LSTM layers. Actor and critic each have a
    small network of their own on top, which sees the LSTM's output and the encoded observation. Weights are initialised
    orthogonally: hidden layers with gain sqrt(2), the action head with 0.01, the value head with 1. The gains of the
    LSTM's layer normalisation start at 0.3.

    Args:
        observation_space: of a single environment; `Box`, `Discrete`, `MultiDiscrete`, `MultiBinary`, and `Dict` and
            `Tuple` of these.
        action_space: of a single environment; `Discrete`, `MultiDiscrete`, `MultiBinary`, `Box` of floats, and
            `Dict` and `Tuple` of these.
        encoder: a Keras model to `[batch, features]` from observations, in the structure of their space, float32: a
            `Box` or `MultiBinary` as it is, `[batch, *shape]`; `Discrete` and `MultiDiscrete` one-hot, all components
            side by side. None flattens them. The encoder must compute the same in training as in acting.
        seed: decides the initial weights and the actions that are sampled. None draws one.
        **options: as below.

    The state is `(h, c)`, each `[batch, state_size]`: the units of all LSTM layers side by side, the lowest first; when
    actor and critic have layers of their own, the actor's columns first. With `previous_action` or `previous_reward` it
    is `(h, c, last_action_reward)`: the features of the last action, and its reward.

    Attributes:
        options: the options, as `PolicyOptions`.

    Raises:
        UserError: a space that is not supported, or an option that is unknown, of another type or out of its range.
    """

    env_id: str | None = None  # of the environment that it was trained in, if PPO trained it

    def __new__(cls, *args: Any, **kwargs: Any) -> RecurrentPolicy:
        """Keeps the arguments, with which `copying` makes another policy; Keras must not track the encoder in them."""
        policy = super().__new__(cls, *args, **kwargs)
        object.__setattr__(policy, "constructor_arguments", (args, kwargs))
        return policy

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        encoder: keras.Model | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(dtype="float32")
        check_observation_space(observation_space)
        self.observation_space, self.action_space = observation_space, action_space
        self.options = make_policy_options(options)
        check_activation(self.options.activation)
        given, kwargs = self.constructor_arguments
        self.custom_encoder = encoder is not None and any(value is encoder for value in (*given, *kwargs.values()))
        with keras_defaults():
            self._build(encoder, seed)

    @classmethod
    def make_encoder(
        cls, observation_space: gym.Space, options: PolicyOptions, seeds: Iterator[int]
    ) -> keras.Model | None:
        """The encoder of a policy that is given none. Policy classes override it; here there is none."""
        if options.encoder_layers is not None:
            raise UserError(f"encoder_layers are of policies that make their own encoder, and {cls.__name__} does not")
        return None

    def _build(self, encoder: keras.Model | None, seed: int | None) -> None:
        space, options = self.observation_space, self.options
        encoder, seeds = chosen_encoder(self, RecurrentPolicy, encoder, seed)
        generator = np.random.default_rng(next(seeds))
        # In the structure of the space, None for a leaf that is not normalised. The order of these three attributes is
        # the order of the weights in saved policies.
        self.observation_statistics = map_leaves(
            lambda leaf: running_statistics(leaf) if options.normalize_observations else None, space
        )
        self.return_statistics = RunningStatistics() if options.normalize_rewards else None
        self.network = Network(encoder, space, self.action_space, options, seeds)
        self.last_action_reward = LastActionReward(self.action_head, options)

        zeros = map_leaves(lambda leaf: tf.zeros([1, *(leaf.shape or ())], leaf.dtype), space)
        h, c, *kept = self.initial_state(1)
        self._forward(zeros, h, c, tf.ones(1, tf.bool), *kept)  # builds all weights
        self._clear_losses()
        self.built = True
        self.exploration = Exploration(self.action_head, generator)
        self._actor = Actor(self, RecurrentPolicy)

    def __reduce__(self) -> tuple[Any, ...]:
        return copying.rebuilt, (copying.parts_of(self),)

    def initial_state(self, batch_size: int) -> Any:
        """The state before an episode: zeros, h and c each `[batch_size, state_size]` float32."""
        h, c = np.zeros((2, batch_size, self.state_size), np.float32)
        if not self.last_action_reward.size:
            return State(h, c)
        return LastActionRewardState(h, c, np.zeros((batch_size, self.last_action_reward.size), np.float32))

    def step(
        self, observations: Any, state: Any, episode_starts: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """Acts: samples an action for each environment.

        Args:
            observations: `[batch, *observation_space.shape]`; of `Dict` and `Tuple` spaces a structure of such arrays.
            state: what the last step returned; None for `initial_state`.
            episode_starts: `[batch]` bool, the observation is an episode's first: its state is reset before.
            action_masks: false where an action is illegal, which then is never taken. `Discrete`: `[batch, n]`;
                `MultiDiscrete`: `[batch, sum(nvec)]`, component after component; `MultiBinary`: `[batch, 2 * n]`, for
                each bit whether 0 and whether 1 is legal, or `[batch, n, 2]`. None: all are legal.

        Returns:
            Actions as sampled, in the action space's structure, each array `[batch, *shape]`: environments take
            `clip_actions` of them. Values `[batch]`, log-probabilities `[batch]`, and the state after the step.

        Raises:
            UserError: an argument of another shape, or masks that allow nothing.
        """
        noise = self.exploration.for_step(len(episode_starts))
        return self._actor.act(observations, state, episode_starts, noise, action_masks)

    def value(self, observations: Any, state: Any, episode_starts: np.ndarray) -> np.ndarray:
        """The values `[batch]` of observations; arguments as for `step`. The state is not advanced."""
        return self._actor.act(observations, state, episode_starts, self.action_head.no_noise(len(episode_starts)))[1]

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
        rng: Generators | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """The actions to take, as `predict` of Stable-Baselines3.

        Args:
            observation: a single observation, or a batch of them; of `Dict` and `Tuple` spaces a structure of such.
            state: what the last call returned, None at the start. With `previous_reward` see `rewarded`.
            episode_start: `[batch]` bool, the observation is an episode's first. None: no.
            deterministic: take the most probable action rather than sample.
            action_masks: as for `step`, without the batch axis for a single observation.
            rng: what samples: a generator, or a list with one for each observation. None: the policy's own.

        Returns:
            Elements of the action space, without the batch axis for a single observation, and the new state.

        Raises:
            UserError: an argument of another shape, or masks that allow nothing.
        """
        batch, batch_size = batch_of(self.observation_space, observation)
        single, size = batch_size is None, 1 if batch_size is None else batch_size
        starts = np.zeros(size, bool) if episode_start is None else np.asarray(episode_start, bool)
        if starts.shape != (size,) and not (single and starts.shape == ()):
            raise UserError(f"episode_start must have shape {[size]}, got {list(starts.shape)}")
        starts = starts.reshape(size)
        noise = self.action_head.no_noise(size) if deterministic else self.exploration.for_predict(size, rng, starts)
        if action_masks is not None and single:
            action_masks = np.concatenate([np.ravel(part) for part in action_masks])[np.newaxis]
        actions, _, _, new_state = self._actor.act(batch, state, starts, noise, action_masks)
        actions = self.clip_actions(actions)
        if single:
            # A `Box` without axes takes an array of none, and no scalar.
            actions = map_leaves(
                lambda leaf, part: part[0, ...] if isinstance(leaf, gym.spaces.Box) else part[0],
                self.action_space,
                actions,
            )
        return actions, tuple(new_state)

    def distribution(
        self, observations: Any, state: Any, episode_starts: Any, action_masks: Any = None
    ) -> ActionDistribution:
        """The distribution of the actions that `step` samples from; arguments as for `step`. The state stays."""
        size = len(episode_starts)
        h, c, *kept = self._actor.checked_state(state, size)
        starts, masks = self._actor.checked_starts(episode_starts, size), self._actor.checked_masks(action_masks, size)
        observations = map_leaves(
            lambda leaf, part: tf.convert_to_tensor(part, leaf.dtype), self.observation_space, observations
        )
        outputs, _ = self._forward(observations, h, c, starts, kept[0] if kept else None, masks)
        self._clear_losses()
        return ActionDistribution(outputs.distribution, self.action_head)

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """The state that `step` or `predict` returned, after the environments answered with `rewards`, `[batch]`.

        Only a policy with `previous_reward` takes note of it. One that is not told acts as if the reward had been 0.
        """
        return self.last_action_reward.rewarded(state, rewards)

    def clip_actions(self, actions: Any) -> Any:
        """What to send to the environments for sampled `actions`: elements of the action space.

        Components with finite bounds are scaled from [-1, 1] to these bounds, with `rescale_actions`, and clipped.
        """
        return self.action_head.clip(actions)

    def seed(self, seed: int) -> None:
        """Decides the actions that will be sampled from now on."""
        self.exploration.generator = np.random.default_rng(seed)

    def reset_noise(self, batch_size: int) -> None:
        """With `std="gsde"`, draws the noise again that `step` holds for each of `batch_size` environments."""
        self.exploration.reset(batch_size)

    def evaluate_actions(
        self,
        observations: Any,
        actions: Any,
        state: Any,
        episode_starts: Any,
        action_masks: Any = None,
        rewards: Any = None,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Computes again, differentiably, what acting recorded for sequences.

        Afterwards `losses` holds the penalties of the encoder for these sequences, such as its regularizers.

        Args:
            observations: `[batch, time, *observation_space.shape]`, or a structure of such arrays.
            actions: as `step` returned them, each array `[batch, time, *shape]`.
            state: the state each sequence started from; None for `initial_state`.
            episode_starts: `[batch, time]`, true or 1 where the observation was an episode's first.
            action_masks: those that `step` was given, `[batch, time, size]`; None if there were none.
            rewards: `[batch, time]`, what each action earned; only a policy with `previous_reward` needs them.

        Returns:
            Log-probabilities, entropies and values, each `[batch, time]`.

        Raises:
            UserError: an argument of another shape; outside of a graph, also an illegal action.
        """
        return evaluate_sequences(self, observations, actions, state, episode_starts, action_masks, rewards)

    def update_statistics(self, observations: Any, valid: np.ndarray) -> None:
        """Takes in the observations `[..., *observation_space.shape]` where `valid`, `[...]` bool, is true."""
        update_each(self.observation_space, self.observation_statistics, observations, valid)

    def save(self, path: str | os.PathLike) -> None:
        """Saves the policy in the folder `path`, as JSON and arrays; `rl_lnlstm.load_policy` loads it."""
        save_policy(self, path)

    @property
    def encoder(self) -> keras.Model | None:
        """The encoder, whoever made it."""
        return self.network.encoder

    @property
    def action_head(self) -> ActionHead:
        """The head that gives distributions of actions."""
        return self.network.action_head

    @property
    def generator(self) -> np.random.Generator:
        """What draws the noise that actions are sampled with."""
        return self.exploration.generator

    @property
    def units(self) -> int:
        """Units of each LSTM layer."""
        return self.options.units

    @property
    def previous_reward(self) -> bool:
        """Whether the policy wants to be told rewards; see `rewarded`."""
        return self.options.previous_reward

    @property
    def state_size(self) -> int:
        """The width of h, and of c."""
        return self.options.units * len(self.network.lstm_layers)

    @property
    def is_convolutional(self) -> bool:
        """Any layer of the encoder, however deep, convolves."""
        return self.network.is_convolutional

    def _encode(self, frames: Any) -> Any:
        """Observations `[n, *shape]` to features `[n, features]`."""
        return self.network.encode(normalize_each(self.observation_space, self.observation_statistics, frames))

    def _forward(
        self, observations: Any, h: Any, c: Any, episode_starts: Any, kept: Any = None, action_masks: Any = None
    ) -> tuple[Outputs, State]:
        """A step: arguments as for `step`, `kept` is the third part of the state; what the heads give, and h and c."""
        sequences = map_leaves(lambda _, part: part[tf.newaxis], self.observation_space, observations)
        starts = tf.cast(episode_starts, tf.float32)[tf.newaxis]
        kept = None if kept is None else tf.convert_to_tensor(kept)[tf.newaxis]
        return self._forward_sequences(sequences, h, c, starts, kept, action_masks, one_step=True)

    def _forward_sequences(
        self,
        observations: Any,
        h: Any,
        c: Any,
        episode_starts: Any,
        kept: Any = None,
        action_masks: Any = None,
        one_step: bool = False,
    ) -> tuple[Outputs, State]:
        """Time-major sequences: what the heads give for each step, and h and c after the last one.

        With `one_step` the only step's outputs and action masks have no axis for time."""
        self._clear_losses()  # the penalties of an earlier call
        first = flatten(self.observation_space, observations)[0]
        time, batch = tf.unstack(tf.shape(first)[:2])
        features = self._encode(map_leaves(_merge_time_and_batch, self.observation_space, observations))
        static = first.shape[0]
        features = tf.reshape(features, [time if static is None else static, batch, features.shape[-1]])
        last = None if kept is None else self.last_action_reward.inputs(kept)
        seen, state = self.network.unroll(features, self.network.split(h, c), 1.0 - episode_starts, last)
        if one_step:
            seen = Seen(*(part[0] for part in seen))
        return self.network.heads(seen, action_masks), self.network.joined(state)


def _merge_time_and_batch(space: gym.Space, sequences: Any) -> Any:
    return tf.reshape(sequences, [-1, *(space.shape or ())])
