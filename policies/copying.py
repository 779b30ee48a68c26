"""How a policy is copied and pickled: its class is called again as it was, then it gets the weights and the noise."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import keras

from rl_lnlstm.errors import UserError


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
        raise UserError(f"{parts.kind.__name__}: a second one has other weights, so it cannot be copied") from error
    policy.exploration.set_state(parts.exploration)
    return policy


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
        return value.kind.from_config(value.config)
    except Exception as error:
        raise UserError(
            f"encoder: {value.kind.__name__} cannot be built again from its get_config(), {type(error).__name__}: "
            f"{error}"
        ) from error
