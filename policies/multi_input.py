"""`MultiInputLnLstmPolicy`: for observations with entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from rl_lnlstm.policies.encoders import multi_input, seed_sequence
from rl_lnlstm.policies.policy import RecurrentPolicy, refuse_encoder
from rl_lnlstm.spaces import check_observation_space


class MultiInputLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy with an encoder for each entry of the observation, whose features are concatenated.

    Entries that are images get the network of `CnnLnLstmPolicy`, all others that of `MlpLnLstmPolicy`.

    Args:
        observation_space: of a single environment, `Dict` and `Tuple` in any nesting.
        action_space: of a single environment.
        encoder_layers: widths of each encoder's dense layers; if None (512,) for images and (64,) for others.
        activation: of all hidden layers but those for images, a name that Keras knows.
        normalize_observations, seed: as for `RecurrentPolicy`.
        **arguments: as for `RecurrentPolicy`, but for `encoder`.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        encoder_layers: Sequence[int] | None = None,
        activation: str = "tanh",
        normalize_observations: bool = False,
        seed: int | None = None,
        **arguments: Any,
    ) -> None:
        refuse_encoder(self, arguments)
        check_observation_space(observation_space)
        seeds = seed_sequence(seed)
        encoder = multi_input(observation_space, encoder_layers, activation, seeds, normalize_observations)
        super().__init__(
            observation_space,
            action_space,
            encoder=encoder,
            activation=activation,
            normalize_observations=normalize_observations,
            seed=next(seeds),
            **arguments,
        )
        self.custom_encoder = False
        self.arguments["encoder_layers"] = None if encoder_layers is None else list(encoder_layers)
