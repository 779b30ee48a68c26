"""The policy classes that make an encoder of their own, and which of them suits which observations."""

from __future__ import annotations

from collections.abc import Iterator

import gymnasium as gym
import keras

from rl_lnlstm.config import PolicyOptions, with_options
from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.encoders import convolutions, is_image, multi_input, perceptron, stack
from rl_lnlstm.policies.policy import RecurrentPolicy


@with_options
class MlpLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy whose encoder is a multilayer perceptron on the flattened observation.

    Args:
        observation_space: of a single environment; `Box`, `Discrete`, `MultiDiscrete` or `MultiBinary`.
        action_space, seed: as for `RecurrentPolicy`.
        **options: as below; `encoder_layers` may be empty, and the LSTM then sees the observation itself.
    """

    @classmethod
    def make_encoder(cls, observation_space: gym.Space, options: PolicyOptions, seeds: Iterator[int]) -> keras.Model:
        """A perceptron."""
        if isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple):
            raise UserError(
                f"MlpLnLstmPolicy takes a single array, got {observation_space}: MultiInputLnLstmPolicy takes entries"
            )
        widths, normalized = options.encoder_layers, options.normalize_observations
        return stack(observation_space, perceptron(observation_space, widths, options.activation, seeds, normalized))


@with_options
class CnnLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy whose encoder is a convolutional network.

    From 48 x 48 pixels on it is the network of Mnih et al. (2015): 32 filters of 8 x 8 with stride 4, 64 of 4 x 4 with
    stride 2, 64 of 3 x 3. Smaller images get smaller kernels and strides. In images of bytes with fewer than 16 x 16
    pixels every value is taken for a symbol, and embedded. The bytes of larger images are scaled by 1 / 255.

    Args:
        observation_space: of a single environment: a `Box` `[height, width]`, `[height, width, channels]`,
            `[channels, height, width]` (the channels are fewer than rows or columns), or a stack of such frames.
        action_space, seed: as for `RecurrentPolicy`.
        **options: as below; `encoder_layers` are the ReLU layers between the convolutions and the LSTM.

    Raises:
        UserError: the observation is no image, or too small a one.
    """

    @classmethod
    def make_encoder(cls, observation_space: gym.Space, options: PolicyOptions, seeds: Iterator[int]) -> keras.Model:
        """Convolutions."""
        if not isinstance(observation_space, gym.spaces.Box) or not 2 <= len(observation_space.shape) <= 4:
            nested = isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple)
            right = "MultiInputLnLstmPolicy takes entries" if nested else "MlpLnLstmPolicy takes vectors"
            raise UserError(f"CnnLnLstmPolicy takes an image, a Box of 2 to 4 axes, got {observation_space}: {right}")
        widths, normalized = options.encoder_layers, options.normalize_observations
        return stack(observation_space, convolutions(observation_space, widths, seeds, normalized))


@with_options
class MultiInputLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy with an encoder for each entry of the observation, whose features are concatenated.

    Entries that are images get the network of `CnnLnLstmPolicy`, all others that of `MlpLnLstmPolicy`.

    Args:
        observation_space: of a single environment, `Dict` and `Tuple` in any nesting.
        action_space, seed: as for `RecurrentPolicy`.
        **options: as below; `encoder_layers` are the dense layers of each encoder.
    """

    @classmethod
    def make_encoder(cls, observation_space: gym.Space, options: PolicyOptions, seeds: Iterator[int]) -> keras.Model:
        """An encoder for each entry, side by side."""
        widths, normalized = options.encoder_layers, options.normalize_observations
        return multi_input(observation_space, widths, options.activation, seeds, normalized)


POLICIES: dict[str, type[RecurrentPolicy]] = {
    policy.__name__: policy for policy in (MlpLnLstmPolicy, CnnLnLstmPolicy, MultiInputLnLstmPolicy)
}


def policy_for(observation_space: gym.Space) -> type[RecurrentPolicy]:
    """The policy class that suits observations."""
    if isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple):
        return MultiInputLnLstmPolicy
    return CnnLnLstmPolicy if is_image(observation_space) else MlpLnLstmPolicy
