"""How a policy is copied and pickled: its class is called again as it was, then it gets the weights and the noise."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.encoder_check import random_observations
from rl_lnlstm.spaces import map_leaves


class Built(NamedTuple):
    """How an encoder of the user's can be built again."""

    kind: Any  # its class
    config: dict[str, Any]


class Parts(NamedTuple):
    """All that a copy of a policy is made of."""

    kind: type
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    weights: list[Any]
    exploration: dict[str, Any]
    values: Any  # of some observations: what a copy must give too


def parts_of(policy: Any) -> Parts:
    """What `rebuilt` makes a copy of.

    Raises:
        UserError: the policy has an encoder that Keras cannot describe.
    """
    arguments, keywords = policy.constructor_arguments
    return Parts(
        type(policy),
        tuple(map(_described, arguments)),
        {name: _described(value) for name, value in keywords.items()},
        policy.get_weights(),
        copy.deepcopy(policy.exploration.get_state()),
        _values(policy),
    )


def rebuilt(parts: Parts) -> Any:
    """The copy.

    Raises:
        UserError: its encoder cannot be built again, or its class gives other weights than before.
    """
    keywords = {name: _restored(value) for name, value in parts.keywords.items()}
    policy = parts.kind(*map(_restored, parts.arguments), **keywords)
    try:
        policy.set_weights(parts.weights)
    except ValueError as error:
        raise UserError(
            f"{parts.kind.__name__} cannot be copied: built again, it has weights of other shapes. A model of a class "
            "of yours needs a method get_config that returns the arguments of its constructor"
        ) from error
    if not np.allclose(_values(policy), parts.values, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise UserError(
            f"{parts.kind.__name__}: a copy computes something else, because it was built with other arguments than "
            "those that get_config() of the encoder, or the constructor of the policy, tell of"
        )
    policy.exploration.set_state(parts.exploration)
    return policy


def _values(policy: Any) -> np.ndarray:
    observations = random_observations(policy.observation_space, 3, np.random.default_rng(0))
    observations = map_leaves(lambda _, part: tf.convert_to_tensor(part), policy.observation_space, observations)
    h, c, *kept = policy.initial_state(3)
    outputs, _ = policy._forward(observations, h, c, tf.ones(3, tf.bool), *kept)
    policy._clear_losses()
    return outputs.values.numpy()


def _described(value: Any) -> Any:
    if not isinstance(value, keras.layers.Layer):
        return value
    try:
        return Built(type(value), value.get_config())
    except Exception as error:
        raise UserError(
            f"encoder: {type(value).__name__} cannot be copied or pickled, because Keras has no description of it "
            f"({type(error).__name__}): give it a method get_config, or build a second policy with a second encoder "
            "and use set_weights(policy.get_weights())"
        ) from error


def _restored(value: Any) -> Any:
    if not isinstance(value, Built):
        return value
    try:
        if value.kind.from_config.__func__ is keras.Model.from_config.__func__:
            # A model that says nothing of its configuration: Keras then knows the arguments of the constructor.
            taken = inspect.signature(value.kind).parameters
            return value.kind(**{name: part for name, part in value.config.items() if name in taken})
        return value.kind.from_config(value.config)
    except Exception as error:
        raise UserError(
            f"encoder: {value.kind.__name__} cannot be copied or pickled, because it cannot be built again from its "
            f"get_config() ({type(error).__name__}): build a second policy with a second encoder, and use "
            "set_weights(policy.get_weights())"
        ) from error
