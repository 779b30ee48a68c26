"""`MlpLnLstmPolicy`: for observations that are vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import keras

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.recurrent import RecurrentPolicy, dense, seed_sequence


class MlpLnLstmPolicy(RecurrentPolicy):
    """A recurrent policy whose encoder is a multilayer perceptron on the flattened observation.

    Args:
        observation_space: of a single environment; `Box`.
        action_space: of a single environment.
        encoder_layers: widths of the layers before the recurrent core; empty feeds it the observation itself.
        activation: of all hidden layers, a name that Keras knows.
        seed: as for `RecurrentPolicy`.
        **arguments: as for `RecurrentPolicy`, but for `encoder`.
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
        if "encoder" in arguments:
            raise UserError("encoder: MlpLnLstmPolicy has its own, hand one to RecurrentPolicy instead")
        seeds = seed_sequence(seed)
        if isinstance(observation_space, gym.spaces.Box):
            arguments["encoder"] = _perceptron(observation_space.shape, encoder_layers, activation, seeds)
        super().__init__(observation_space, action_space, activation=activation, seed=next(seeds), **arguments)
        self.custom_encoder = False
        self.arguments["encoder_layers"] = list(encoder_layers)


def _perceptron(shape: tuple[int, ...], widths: Sequence[int], activation: str, seeds: Iterator[int]) -> keras.Model:
    layers = [dense(width, activation, next(seeds), f"encoder_{i}") for i, width in enumerate(widths)]
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *layers], name="encoder")
