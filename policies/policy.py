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
from rl_lnlstm.policies.acting import Actor, batch_size_of
from rl_lnlstm.policies.action_distribution import ActionDistribution
from rl_lnlstm.policies.critic_entries import check_complete, split_observation_space
from rl_lnlstm.policies.encoder_check import chosen_encoder, keras_defaults
from rl_lnlstm.policies.encoders import check_activation, running_statistics
from rl_lnlstm.policies.exploration import Exploration, Generators
from rl_lnlstm.policies.heads import ActionHead
from rl_lnlstm.policies.last_action_reward import LastActionReward, LastActionRewardState
from rl_lnlstm.policies.network import Network, Outputs
from rl_lnlstm.policies.normalization import RunningStatistics, update_each
from rl_lnlstm.policies.saving import save_policy
from rl_lnlstm.policies.sequences import evaluate_sequences
from rl_lnlstm.policies.unrolling import encode, forward_sequences, forward_step
from rl_lnlstm.spaces import check_observation_space, map_leaves


@with_options
# Long, because its public methods are documented in full. unrolling.py, acting.py and sequences.py do the work.
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
        encoder: a Keras model from observations to features `[batch, features]`. Observations come in the structure of
            their space, as float32: `Box` and `MultiBinary` as `[batch, *shape]`, `Discrete` and `MultiDiscrete`
            one-hot with all components side by side. The model must compute the same in training and acting. None
            flattens the observations.
        seed: determines the initial weights and the sampled actions. None draws a random seed.
        **options: see the options below.

    The state is `(h, c)`, each `[batch, state_size]`. It holds the units of all LSTM layers side by side, the lowest
    layer first. If actor and critic have separate layers, the actor's come first. With `previous_action` or
    `previous_reward`, the state is `(h, c, last_action_reward)`; the third part holds the features of the last action,
    and its reward.

    With `critic_keys`, the actor sees the observation without these entries, and so does an `encoder` of yours. They
    are encoded as `MultiInputLnLstmPolicy` does it, for the critic only. `predict` and `step` also take observations
    without them; the critic then knows nothing: its part of the state stays zero, and `step` returns NaN as values.

    Attributes:
        options: the options, as `PolicyOptions`.
        actor_observation_space: what the actor sees: `observation_space`, without the entries of `critic_keys`.
        critic_observation_space: the entries of `critic_keys`; None if there are none.

    Raises:
        UserError: a space is not supported, or an option is unknown, has the wrong type or is out of range.
    """

    env_id: str | None = None  # the environment that PPO trained it in
    uses_action_masks = False  # whether `step` has been called with action masks, as in training

    def __new__(cls, *args: Any, **kwargs: Any) -> RecurrentPolicy:
        """Keeps the arguments for copies of the policy, where Keras does not track the encoder among them."""
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
        spaces = split_observation_space(observation_space, self.options.critic_keys)
        self.actor_observation_space, self.critic_observation_space = spaces
        check_activation(self.options.activation)
        given, kwargs = self.constructor_arguments
        self.custom_encoder = encoder is not None and any(value is encoder for value in (*given, *kwargs.values()))
        with keras_defaults():
            self._build(encoder, seed)

    @classmethod
    def make_encoder(
        cls, observation_space: gym.Space, options: PolicyOptions, seeds: Iterator[int]
    ) -> keras.Model | None:
        """Makes the encoder if the user gave none. Policy classes override this method."""
        if options.encoder_layers is not None:
            raise UserError(f"encoder_layers needs a policy that makes its own encoder, and {cls.__name__} does not")
        return None

    def _build(self, encoder: keras.Model | None, seed: int | None) -> None:
        space, options = self.observation_space, self.options
        encoder, seeds = chosen_encoder(self, RecurrentPolicy, encoder, seed)
        generator = np.random.default_rng(next(seeds))
        # Statistics in the structure of the space, None for leaves that are not normalised. The order of these three
        # attributes is the order of the weights in saved policies: do not change it.
        self.observation_statistics = map_leaves(
            lambda leaf: running_statistics(leaf) if options.normalize_observations else None, space
        )
        self.return_statistics = RunningStatistics() if options.normalize_rewards else None
        spaces = split_observation_space(space, options.critic_keys)
        self.network = Network(encoder, spaces, self.action_space, options, seeds)
        self.last_action_reward = LastActionReward(self.action_head, options)

        zeros = map_leaves(lambda leaf: tf.zeros([1, *(leaf.shape or ())], leaf.dtype), space)
        h, c, *last = self.initial_state(1)
        forward_step(self, zeros, h, c, tf.ones(1, tf.bool), *last)  # builds all weights
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
        self,
        observations: Any,
        state: Any,
        episode_starts: np.ndarray,
        action_masks: Any = None,
        noise: np.ndarray | None = None,
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """Acts: samples an action for each environment.

        Args:
            observations: `[batch, *observation_space.shape]`; for `Dict` and `Tuple` spaces a structure of such arrays.
            state: the state that the last step returned; None for `initial_state`.
            episode_starts: `[batch]` bool, true where the observation is the first of an episode. There the state is
                reset before the step.
            action_masks: bool, true where an action is legal; illegal actions are never sampled. None: all are legal.
                Shapes: `Discrete` `[batch, n]`; `MultiDiscrete` `[batch, sum(nvec)]`, one component after the other;
                `MultiBinary` `[batch, 2 * n]` or `[batch, n, 2]`, for each bit whether 0 and whether 1 is legal.
            noise: `[batch, action_head.noise_size]` float32, from `action_head.noise`; with zeros, the actions are the
                most probable ones. None draws it from the policy's own generator.

        Returns:
            Actions, values `[batch]`, log-probabilities `[batch]`, and the state after the step. Actions have the
            structure of the action space, each array `[batch, *shape]`. They are not clipped: send
            `clip_actions(actions)` to the environments. Values are NaN if observations lack entries of `critic_keys`.

        Raises:
            UserError: an argument of another shape, or masks that allow nothing.
        """
        if action_masks is not None and not self.uses_action_masks:
            self.uses_action_masks = True
        noise = self._actor.checked_noise(noise, batch_size_of(episode_starts))
        return self._actor.act(observations, state, episode_starts, noise, action_masks)

    def value(self, observations: Any, state: Any, episode_starts: np.ndarray) -> np.ndarray:
        """The values `[batch]` of observations. Takes the arguments of `step`; the state does not change.

        Raises:
            UserError: an argument of another shape, or an entry of `critic_keys` that is missing.
        """
        check_complete(self.critic_observation_space, observations)
        noise = self.action_head.no_noise(batch_size_of(episode_starts))
        return self._actor.act(observations, state, episode_starts, noise)[1]

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
        rng: Generators | None = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """The actions to take, with the interface of Stable-Baselines3's `predict`.

        Args:
            observation: a single observation, or a batch of them; for `Dict` and `Tuple` spaces a structure of arrays.
                Entries of `critic_keys` change no action, and may be missing.
            state: the state that the last call returned; None at the start. With `previous_reward`, see `rewarded`.
            episode_start: `[batch]` bool, true where the observation is the first of an episode. None means false.
            deterministic: take the most probable action rather than sample.
            action_masks: as for `step`, without the batch axis for a single observation.
            rng: a NumPy generator for sampling, or a list with one for each observation. None uses the policy's own.

        Returns:
            Elements of the action space, without the batch axis for a single observation, and the new state.

        Raises:
            UserError: an argument of another shape, or masks that allow nothing.
        """
        return self._actor.predict(observation, state, episode_start, deterministic, action_masks, rng)

    def distribution(
        self, observations: Any, state: Any, episode_starts: Any, action_masks: Any = None
    ) -> ActionDistribution:
        """The distribution from which `step` samples. Takes the arguments of `step`; the state does not change."""
        distribution = self._actor.distribution(observations, state, episode_starts, action_masks)
        return ActionDistribution(distribution, self.action_head)

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """Adds the rewards `[batch]` to the state that `step` or `predict` returned, and returns the new state.

        Call it after each step if the policy has `previous_reward`; otherwise the policy sees rewards of 0. Without
        `previous_reward` it changes nothing.
        """
        return self.last_action_reward.rewarded(state, rewards)

    def clip_actions(self, actions: Any) -> Any:
        """Converts sampled `actions` to elements of the action space, which you can send to the environments.

        Components with bounds are clipped to them. With `rescale_actions`, components with two finite bounds are first
        scaled from [-1, 1] to these bounds.
        """
        return self.action_head.clip(actions)

    def scale_actions(self, actions: Any) -> Any:
        """Converts actions that were sent to environments to the policy's units: the inverse of `clip_actions`.

        `evaluate_actions` needs it for recorded episodes. Actions that were clipped stay at their bounds.
        """
        return self.action_head.scale(actions)

    def seed(self, seed: int) -> None:
        """Seeds the generator that samples actions."""
        self.exploration.generator = np.random.default_rng(seed)

    def reset_noise(self, batch_size: int) -> None:
        """With `std="gsde"`, draws new exploration noise for each of `batch_size` environments."""
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
        """Recomputes log-probabilities, entropies and values for recorded sequences, with gradients.

        After the call, `losses` holds the penalties of the encoder for these sequences, for example from regularizers.

        Args:
            observations: `[batch, time, *observation_space.shape]`, or a structure of such arrays.
            actions: in the policy's units, as `step` returns them, each `[batch, time, *shape]`; see `scale_actions`.
            state: the state at the start of each sequence; None for `initial_state`.
            episode_starts: `[batch, time]`, true or 1 where the observation is the first of an episode.
            action_masks: the masks that `step` was given, `[batch, time, size]`; None if there were none.
            rewards: `[batch, time]`, the reward of each action. Only a policy with `previous_reward` needs them.

        Returns:
            Log-probabilities, entropies and values, each `[batch, time]`.

        Raises:
            UserError: an argument has the wrong shape or, outside of a graph, an action is illegal.
        """
        return evaluate_sequences(self, observations, actions, state, episode_starts, action_masks, rewards)[:3]

    def update_statistics(self, observations: Any, valid: np.ndarray) -> None:
        """Updates the normalisation with observations `[..., *shape]` where `valid`, `[...]` bool, is true."""
        update_each(self.observation_space, self.observation_statistics, observations, valid)

    def save(self, path: str | os.PathLike) -> None:
        """Saves the policy in the folder `path` as JSON and arrays. `rl_lnlstm.load_policy` loads it.

        Changes of built layers are not saved. Raises `UserError` if an argument of your own class cannot be saved.
        """
        save_policy(self, path)

    @property
    def encoder(self) -> keras.Model | None:
        """The encoder, made by the user or by the policy class."""
        return self.network.encoder

    @property
    def action_head(self) -> ActionHead:
        """The head that computes distributions of actions."""
        return self.network.action_head

    @property
    def generator(self) -> np.random.Generator:
        """The random generator for sampling actions."""
        return self.exploration.generator

    @property
    def units(self) -> int:
        """Units of each LSTM layer."""
        return self.options.units

    @property
    def previous_reward(self) -> bool:
        """Whether the policy sees the previous reward; see `rewarded`."""
        return self.options.previous_reward

    @property
    def state_size(self) -> int:
        """The width of h, and of c."""
        return self.options.units * len(self.network.lstm_layers)

    @property
    def actor_state_size(self) -> int:
        """The width of the part of h, and of c, that the actor's layers need: the first columns."""
        return self.options.units * self.options.num_layers

    @property
    def is_asymmetric(self) -> bool:
        """Whether the critic sees more than the actor; see `critic_keys`."""
        return self.critic_observation_space is not None

    @property
    def acts_row_by_row(self) -> bool:
        """Whether acting in an environment gives the same bits with any other environments beside it."""
        return self._actor.is_compiled

    @property
    def is_convolutional(self) -> bool:
        """Whether an encoder contains a convolution, at any depth."""
        return self.network.is_convolutional

    # See `unrolling.py`. A subclass that overrides one of these two methods changes acting and learning alike.

    def _encode(self, frames: Any) -> Any:
        return encode(self, frames)

    def _forward_sequences(self, *arguments: Any, **options: Any) -> tuple[Outputs, State]:
        return forward_sequences(self, *arguments, **options)
