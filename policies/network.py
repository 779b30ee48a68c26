"""The network of a policy: an encoder, LSTM layers, and heads for actor and critic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import keras
import tensorflow as tf

from rl_lnlstm.config import PolicyOptions
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import State
from rl_lnlstm.lstm.layer import MaskedLNLSTM
from rl_lnlstm.lstm.recurrence import Gates
from rl_lnlstm.policies.critic_entries import ObservationSpaces
from rl_lnlstm.policies.distributions import Distribution
from rl_lnlstm.policies.encoders import as_floats, dense, flattened, multi_input
from rl_lnlstm.policies.heads import action_head
from rl_lnlstm.spaces import map_leaves

# With a gain of 1, normalised sums saturate the gates and gradients vanish. See Cooijmans et al. (2017), "Recurrent
# batch normalization", section 4.
LSTM_GAIN = 0.3


class Seen(NamedTuple):
    """The inputs of the heads: LSTM outputs and encoded observations, concatenated, `[..., features]`."""

    actor: Any
    critic: Any  # None if only the actor was run


class Outputs(NamedTuple):
    """The outputs of the heads."""

    distribution: Distribution
    values: Any  # [...]; None if only the actor was run


class _Unrolled(NamedTuple):
    """What an LSTM layer saw and computed: time-major sequences, and the state after them."""

    inputs: Any
    outputs: Any  # with the residual connection
    state: State


class Network(keras.layers.Layer):
    """Encoder, LSTM layers and heads.

    The state is a tuple with a `State` for each LSTM layer: the actor's layers from the lowest to the highest, then the
    critic's, if it has layers of its own.

    With `critic_keys`, the critic sees everything that the actor sees, and the encoded critic entries. They are inputs
    of its heads and, if it has LSTM layers of its own, of its lowest layer. So its values depend on the history and on
    these entries. Policy gradients with such values are unbiased; with values of the state alone they are not, see
    Baisero and Amato (2022), "Unbiased asymmetric reinforcement learning under partial observability". No entry of
    `critic_keys` reaches the actor's heads or LSTM layers, which the critic may share.

    Args:
        encoder: as for `RecurrentPolicy`.
        observation_spaces: of a single environment, what the actor and what only the critic sees.
        action_space: of a single environment.
        options: the policy's options.
        seeds: seeds for the initial weights.
    """

    def __init__(
        self,
        encoder: keras.Model | None,
        observation_spaces: ObservationSpaces,
        action_space: gym.Space,
        options: PolicyOptions,
        seeds: Iterator[int],
    ) -> None:
        super().__init__()
        self.observation_spaces = observation_spaces
        self.num_layers, self.residual = options.num_layers, options.residual
        self.encoder = encoder
        self.lstm_layers = [
            MaskedLNLSTM(
                options.units,
                return_sequences=True,
                return_state=True,
                time_major=True,
                kernel_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
                recurrent_initializer=keras.initializers.Orthogonal(seed=next(seeds)),
                gamma_initializer=keras.initializers.Constant(LSTM_GAIN),
                name=f"{name}_{layer}" if layer else name,
            )
            for name in (("lstm",) if options.shared_lstm else ("actor_lstm", "critic_lstm"))
            for layer in range(options.num_layers)
        ]
        self.actor_layers, self.critic_layers = (
            [
                dense(width, options.activation, next(seeds), f"{role}_{i}")
                for i, width in enumerate(options.head_layers)
            ]
            for role in ("actor", "critic")
        )
        self.action_head = action_head(action_space, options, next(seeds))
        self.value_head = keras.layers.Dense(
            1, kernel_initializer=keras.initializers.Orthogonal(1.0, next(seeds)), name="value_head"
        )
        self.critic_encoder = None
        if observation_spaces.critic is not None and encoder is not None:
            widths, normalized = options.encoder_layers, options.normalize_observations
            self.critic_encoder = multi_input(observation_spaces.critic, widths, options.activation, seeds, normalized)
        self.built = True

    @property
    def is_convolutional(self) -> bool:
        """Whether an encoder contains a convolution, at any depth."""
        encoders = [encoder for encoder in (self.encoder, self.critic_encoder) if encoder is not None]
        layers = [layer for encoder in encoders for layer in encoder._flatten_layers()]
        return any("Conv" in type(layer).__name__ for layer in layers)

    def encode(self, frames: Any) -> Any:
        """Encodes observations `[n, *shape]`, already normalised, to features `[n, features]`, float32.

        Raises:
            UserError: the encoder's output has another shape.
        """
        return self.encode_floats(map_leaves(as_floats, self.observation_spaces.actor, frames))

    def encode_for_critic(self, frames: Any) -> Any:
        """Encodes the critic's entries of observations `[n, *shape]`, already normalised; None without critic keys."""
        space = self.observation_spaces.critic
        if space is None:
            return None
        inputs = map_leaves(as_floats, space, frames)
        return flattened(space, inputs) if self.critic_encoder is None else self.critic_encoder(inputs)

    def encode_floats(self, inputs: Any) -> Any:
        """The second half of `encode`: from the results of `as_floats`, in which categories are one-hot."""
        if self.encoder is None:
            return flattened(self.observation_spaces.actor, inputs)
        features = self.encoder(inputs)
        shape = getattr(features, "shape", None)
        if shape is None or len(shape) != 2 or shape[-1] is None:
            got = type(features).__name__ if shape is None else list(shape)
            raise UserError(f"encoder: its output must have shape [batch, features], got {got}")
        return tf.cast(features, tf.float32)

    def unroll(
        self, features: Any, state: Sequence[State], masks: Any, last_action_reward: Any, critic_features: Any = None
    ) -> tuple[Seen, tuple[State, ...]]:
        """Runs the LSTM layers over sequences.

        Args:
            features: `[time, batch, features]`.
            state: the state before the first step. If it is only that of the actor's layers, only these run.
            masks: `[time, batch]`, 0 where the state is reset before that step, otherwise 1.
            last_action_reward: `[time, batch, size]`, or None.
            critic_features: the encoded critic entries, `[time, batch, features]`. None without `critic_keys`, or to
                run only the actor.

        Returns:
            The inputs of the heads for each step, and the state after the last step.
        """
        unrolled = self._unroll_layers(features, state, masks, last_action_reward, critic_features)
        tops = [layer.outputs for layer in unrolled[self.num_layers - 1 :: self.num_layers]]
        # The heads also see the observation directly, so that the LSTM only has to remember the past.
        seen = [tf.concat([output, features], -1) for output in tops]
        actor, critic = seen[0], seen[-1]
        if self.observation_spaces.critic is not None:
            critic = None if critic_features is None else tf.concat([critic, critic_features], -1)
        return Seen(actor, critic), tuple(layer.state for layer in unrolled)

    def gates(self, features: Any, state: Sequence[State], masks: Any, last_action_reward: Any) -> list[Gates]:
        """The gates of each LSTM layer at every step, `[time, batch, units]`; takes the arguments of `unroll`."""
        unrolled = self._unroll_layers(features, state, masks, last_action_reward, None)
        return [
            layer.gates(found.inputs, masks, list(before))
            for layer, found, before in zip(self.lstm_layers, unrolled, state, strict=False)
        ]

    def _unroll_layers(
        self, features: Any, state: Sequence[State], masks: Any, last_action_reward: Any, critic_features: Any
    ) -> list[_Unrolled]:
        # Layer normalisation would discard the magnitude of the inputs. A constant beside them prevents this.
        constant = tf.ones_like(features[..., :1])
        last = [] if last_action_reward is None else [last_action_reward * tf.expand_dims(masks, -1)]
        inputs = tf.concat([features, *last, constant], -1)
        unrolled: list[_Unrolled] = []
        for number, (layer, before) in enumerate(zip(self.lstm_layers, state, strict=False)):
            lowest = number % self.num_layers == 0
            below = inputs if lowest else tf.concat([unrolled[-1].outputs, constant], -1)
            if lowest and number and critic_features is not None:  # the lowest layer of the critic's own
                below = tf.concat([critic_features, inputs], -1)
            outputs, h, c = layer(below, masks=masks, initial_state=list(before))
            if self.residual and not lowest:
                outputs += unrolled[-1].outputs
            unrolled.append(_Unrolled(below, outputs, State(h, c)))
        return unrolled

    def split(self, h: Any, c: Any, actor_only: bool = False) -> list[State]:
        """Splits the state of a policy, h and c `[batch, state_size]`, into one `State` for each LSTM layer.

        With `actor_only`, returns the states of the actor's layers, and the critic's may be missing in h and c.
        """
        count = self.num_layers if actor_only else len(self.lstm_layers)
        units = self.lstm_layers[0].units
        h, c = (part[..., : count * units] for part in (h, c)) if actor_only else (h, c)
        return [State(*parts) for parts in zip(*(tf.split(part, count, -1) for part in (h, c)), strict=True)]

    def join(self, states: Sequence[State]) -> State:
        """The inverse of `split`."""
        hs, cs = zip(*states, strict=True)
        return State(tf.concat(hs, -1), tf.concat(cs, -1))

    def heads(self, seen: Seen, action_masks: Any = None) -> Outputs:
        """Computes distributions of actions, and values. Action masks are as for `RecurrentPolicy.step`."""
        actor, critic = seen
        for layer in self.actor_layers:
            actor = layer(actor)
        distribution = self.action_head(actor) if action_masks is None else self.action_head(actor, action_masks)
        if critic is None:
            return Outputs(distribution, None)
        for layer in self.critic_layers:
            critic = layer(critic)
        return Outputs(distribution, self.value_head(critic)[..., 0])
