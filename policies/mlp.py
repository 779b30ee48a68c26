"""`MlpLnLstmPolicy`: for observations that are vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import keras
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.recurrent import RecurrentPolicy, dense


class MlpLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy whose encoder is a multilayer perceptron on the flattened observation.

    Args:
        observation_space: of a single environment; `Box`.
        action_space: of a single environment.
        encoder_layers: widths of the layers before the recurrent core; empty feeds it the observation itself.
        activation: of all hidden layers, a name that Keras knows.
        seed: as for `RecurrentPolicy`.
        **arguments: as for `RecurrentPolicy`.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space,
        encoder_layers: Sequence[int] = (64,),
        activation: str = "tanh",
        seed: int | None = None,
        **arguments: Any,
    ) -> None:
        encoder_seed, policy_seed = np.random.SeedSequence(seed).generate_state(2).tolist()
        encoder = arguments.pop("encoder", None)
        if encoder is None and encoder_layers and isinstance(observation_space, gym.spaces.Box):
            seeds = np.random.default_rng(encoder_seed).integers(2**31, size=len(encoder_layers)).tolist()
            encoder = keras.Sequential(
                [
                    keras.Input(observation_space.shape),
                    keras.layers.Flatten(),
                    *(
                        dense(width, activation, seed, f"encoder_{i}")
                        for i, (width, seed) in enumerate(zip(encoder_layers, seeds))
                    ),
                ],
                name="encoder",
            )
        super().__init__(
            observation_space, action_space, encoder=encoder, activation=activation, seed=policy_seed, **arguments
        )
        self.arguments["encoder_layers"] = list(encoder_layers)
