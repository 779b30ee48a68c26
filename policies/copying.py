"""Copying and pickling policies: the class is called with the same arguments, then weights and noise are set."""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.encoder_check import random_observations
from rl_lnlstm.policies.unrolling import forward_step
from rl_lnlstm.spaces import map_leaves


class Built(NamedTuple):
    """A description from which a user's encoder can be built again."""

    kind: Any  # its class
    config: dict[str, Any]


class Parts(NamedTuple):
    """Everything needed to build a copy of a policy."""

    kind: type
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    weights: list[Any]
    exploration: dict[str, Any]
    outputs: list[np.ndarray]  # for some test observations; a copy must compute the same
    trained: dict[str, Any]  # where it was trained, and whether with action masks


def parts_of(policy: Any) -> Parts:
    """Collects what `rebuilt` needs to build a copy.

    Raises:
        UserError: Keras cannot describe the encoder of the policy.
    """
    arguments, keywords = policy.constructor_arguments
    return Parts(
        type(policy),
        tuple(map(_layer_to_config, arguments)),
        {name: _layer_to_config(value) for name, value in keywords.items()},
        policy.get_weights(),
        copy.deepcopy(policy.exploration.get_state()),
        _outputs(policy),
        {name: getattr(policy, name) for name in ("env_id", "uses_action_masks")},
    )


def rebuilt(parts: Parts) -> Any:
    """Builds the copy.

    Raises:
        UserError: the encoder cannot be built again, or the class now makes weights of other shapes.
    """
    keywords = {name: _layer_from_config(value) for name, value in parts.keywords.items()}
    policy = parts.kind(*map(_layer_from_config, parts.arguments), **keywords)
    try:
        policy.set_weights(parts.weights)
    except ValueError as error:
        raise UserError(
            f"{parts.kind.__name__} cannot be copied: built again, it has weights of other shapes. A model class of "
            "your own needs a method get_config that returns the arguments of its constructor"
        ) from error
    if not _are_close(_outputs(policy), parts.outputs):
        raise UserError(
            f"{parts.kind.__name__} cannot be copied: the copy computes something else. Check that get_config() of the "
            "encoder returns all arguments of its constructor, and that the policy's constructor keeps its own"
        )
    policy.exploration.set_state(parts.exploration)
    for name, value in parts.trained.items():
        setattr(policy, name, value)
    return policy


def _outputs(policy: Any) -> list[np.ndarray]:
    """The values, and the parameters of the distribution of actions."""
    observations = random_observations(policy.observation_space, 3, np.random.default_rng(0))
    observations = map_leaves(lambda _, part: tf.convert_to_tensor(part), policy.observation_space, observations)
    h, c, *last = policy.initial_state(3)
    outputs, _ = forward_step(policy, observations, h, c, tf.ones(3, tf.bool), *last)
    policy._clear_losses()
    return [np.asarray(part) for part in tf.nest.flatten((outputs.values, outputs.distribution))]


def _are_close(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return [part.shape for part in one] == [part.shape for part in other] and all(
        np.allclose(*parts, rtol=1e-4, atol=1e-4, equal_nan=True) for parts in zip(one, other, strict=True)
    )


def _layer_to_config(value: Any) -> Any:
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


def _layer_from_config(value: Any) -> Any:
    if not isinstance(value, Built):
        return value
    try:
        if value.kind.from_config.__func__ is keras.Model.from_config.__func__:
            # A model without a get_config of its own: Keras then records the arguments of the constructor.
            taken = inspect.signature(value.kind).parameters
            return value.kind(**{name: part for name, part in value.config.items() if name in taken})
        return value.kind.from_config(value.config)
    except Exception as error:
        raise UserError(
            f"encoder: {value.kind.__name__} cannot be copied or pickled, because it cannot be built again from its "
            f"get_config() ({type(error).__name__}): build a second policy with a second encoder, and use "
            "set_weights(policy.get_weights())"
        ) from error
