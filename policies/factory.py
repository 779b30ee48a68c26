"""The policy classes that make their own encoder, and the choice between them."""

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

    Images of at least 48 x 48 pixels get the network of Mnih et al. (2015): 32 filters of 8 x 8 with stride 4, 64 of 4
    x 4 with stride 2, 64 of 3 x 3. Smaller images get smaller kernels and strides. In byte images of fewer than 16 x 16
    pixels, every value is treated as a symbol and embedded. Bytes of larger images are divided by 255 if their
    `high` is 255 and they are not normalised.

    Args:
        observation_space: of a single environment: a `Box` `[height, width]`, `[height, width, channels]`,
            `[channels, height, width]` (the channels are fewer than rows or columns), or a stack of such frames.
        action_space, seed: as for `RecurrentPolicy`.
        **options: as below; `encoder_layers` are the ReLU layers between the convolutions and the LSTM.

    Raises:
        UserError: the observation is not an image, or the image is too small.
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
    """A recurrent policy with an encoder for each entry of the observation.

    Images get the network of `CnnLnLstmPolicy`, all other entries that of `MlpLnLstmPolicy`. The features are
    concatenated.

    Args:
        observation_space: of a single environment, `Dict` and `Tuple` in any nesting.
        action_space, seed: as for `RecurrentPolicy`.
        **options: as below; `encoder_layers` are the dense layers of each encoder.
    """

    @classmethod
    def make_encoder(cls, observation_space: gym.Space, options: PolicyOptions, seeds: Iterator[int]) -> keras.Model:
        """Makes an encoder for each entry and concatenates their features."""
        widths, normalized = options.encoder_layers, options.normalize_observations
        return multi_input(observation_space, widths, options.activation, seeds, normalized)


POLICIES: dict[str, type[RecurrentPolicy]] = {
    policy.__name__: policy for policy in (MlpLnLstmPolicy, CnnLnLstmPolicy, MultiInputLnLstmPolicy)
}


def policy_for(observation_space: gym.Space) -> type[RecurrentPolicy]:
    """The policy class that suits an observation space."""
    if isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple):
        return MultiInputLnLstmPolicy
    return CnnLnLstmPolicy if is_image(observation_space) else MlpLnLstmPolicy
