"""Notices when a policy's layers are changed after code was compiled from them, for example an activation."""

from __future__ import annotations

import itertools
import operator
import types
from typing import Any

import keras

# Attributes that Keras and PPO need for their own bookkeeping change during ordinary calls.
_BOOKKEEPING = {*vars(keras.layers.Layer()), *vars(keras.Model()), "uses_action_masks", "env_id"}
_COMPARED = (bool, int, float, str, tuple, types.FunctionType, types.MethodType, keras.Variable, keras.layers.Layer)


class Watch:
    """Remembers the attributes of a policy and of all its layers.

    It remembers numbers, text, tuples, functions, variables and layers.

    The values of variables may change, because compiled code reads them at each call. Everything else is compared by
    identity, which takes some microseconds.

    Args:
        policy: the policy. Nothing is noticed in one that is not a Keras layer.
    """

    def __init__(self, policy: Any) -> None:
        layers = list(policy._flatten_layers()) if isinstance(policy, keras.layers.Layer) else []
        named = [(vars(layer), name) for layer in layers for name in _compared(vars(layer))]
        self._attributes, self._names = [one for one, _ in named], [name for _, name in named]
        self._values = [attributes.get(name) for attributes, name in named]
        self._lists = [value for layer in layers for value in vars(layer).values() if _holds_layers(value)]
        self._items = list(itertools.chain.from_iterable(self._lists))

    def settle(self) -> None:
        """Stops watching what has changed since. Call it after a first call of the layers, which may write to them."""
        named = zip(self._attributes, self._names, self._values, strict=True)
        kept = [(attributes, name, value) for attributes, name, value in named if attributes.get(name) is value]
        self._attributes, self._names, self._values = (list(column) for column in zip(*kept, strict=True))

    def changed(self) -> bool:
        """Whether an attribute is another one than when this object was made."""
        return not (
            all(map(operator.is_, map(dict.get, self._attributes, self._names), self._values))
            and sum(map(len, self._lists)) == len(self._items)
            and all(map(operator.is_, itertools.chain.from_iterable(self._lists), self._items))
        )


def _compared(attributes: dict[str, Any]) -> list[str]:
    found = [
        name
        for name, value in attributes.items()
        if isinstance(value, _COMPARED) and name not in _BOOKKEEPING and not name.startswith("_self_")
    ]
    # Activations may be any objects, and methods of the other names may be added to a single layer.
    return [*found, *(name for name in ("activation", "call", "convolution_op") if name not in found)]


def _holds_layers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, keras.layers.Layer) for item in value)
