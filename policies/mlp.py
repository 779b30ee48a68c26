"""`MlpLnLstmPolicy`: for observations that are vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.encoders import VECTOR_LAYERS, perceptron, seed_sequence, stack
from rl_lnlstm.policies.policy import RecurrentPolicy, refuse_encoder
from rl_lnlstm.spaces import check_observation_space


class MlpLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy whose encoder is a multilayer perceptron on the flattened observation.

    Args:
        observation_space: of a single environment; any that `RecurrentPolicy` takes but `Dict` and `Tuple`.
        action_space: of a single environment.
        encoder_layers: widths of the layers before the recurrent core, (64,) if None; empty feeds it the observation
            itself.
        activation: of all hidden layers, a name that Keras knows.
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
        if isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple):
            raise UserError(
                f"MlpLnLstmPolicy takes a single array, got {observation_space}: MultiInputLnLstmPolicy takes entries"
            )
        widths, seeds = VECTOR_LAYERS if encoder_layers is None else encoder_layers, seed_sequence(seed)
        check_observation_space(observation_space)
        encoder = stack(
            observation_space, perceptron(observation_space, widths, activation, seeds, normalize_observations)
        )
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
        self.arguments["encoder_layers"] = list(widths)
