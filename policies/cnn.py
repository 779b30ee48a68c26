"""`CnnLnLstmPolicy`: for observations that are images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.encoders import IMAGE_LAYERS, convolutions, seed_sequence, stack
from rl_lnlstm.policies.policy import RecurrentPolicy, refuse_encoder


class CnnLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy whose encoder is a convolutional network.

    From 48 x 48 pixels on it is that of Mnih et al. (2015): 32 filters of 8 x 8 with stride 4, 64 of 4 x 4 with stride
    2, 64 of 3 x 3. Smaller images get smaller kernels and strides; of fewer than 16 x 16 bytes each value is taken for
    a symbol, and embedded. Larger images of bytes are scaled by 1 / 255.

    Args:
        observation_space: of a single environment: a `Box` `[height, width]`, `[height, width, channels]`,
            `[channels, height, width]` (the channels are fewer than rows or columns), or a stack of such frames.
        action_space: of a single environment.
        encoder_layers: widths of the ReLU layers between the convolutions and the recurrent core, (512,) if None.
        normalize_observations, seed: as for `RecurrentPolicy`.
        **arguments: as for `RecurrentPolicy`, but for `encoder`.

    Raises:
        UserError: the observation is no image, or too small a one.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        encoder_layers: Sequence[int] | None = None,
        normalize_observations: bool = False,
        seed: int | None = None,
        **arguments: Any,
    ) -> None:
        refuse_encoder(self, arguments)
        if not isinstance(observation_space, gym.spaces.Box) or not 2 <= len(observation_space.shape) <= 4:
            nested = isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple)
            right = "MultiInputLnLstmPolicy takes entries" if nested else "MlpLnLstmPolicy takes vectors"
            raise UserError(f"CnnLnLstmPolicy takes an image, a Box of 2 to 4 axes, got {observation_space}: {right}")
        widths, seeds = IMAGE_LAYERS if encoder_layers is None else encoder_layers, seed_sequence(seed)
        encoder = stack(observation_space, convolutions(observation_space, widths, seeds, normalize_observations))
        super().__init__(
            observation_space,
            action_space,
            encoder=encoder,
            normalize_observations=normalize_observations,
            seed=next(seeds),
            **arguments,
        )
        self.custom_encoder = False
        self.arguments["encoder_layers"] = list(widths)
