"""Recomputing what a policy saw and thought in a recorded episode: action distributions and gates at every step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.evaluation.record import STATE, structured
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.policies.distributions import (
    Bernoulli,
    Categorical,
    Composite,
    DiagonalGaussian,
    MultiCategorical,
    StateDependentGaussian,
)
from rl_lnlstm.policies.heads import ActionHead, CompositeHead
from rl_lnlstm.policies.network import Seen
from rl_lnlstm.spaces import map_leaves

PIECE = 256  # steps that are computed at once


class LayerMemory(NamedTuple):
    """An LSTM layer in an episode of T steps; each array is `[T, units]`.

    Attributes:
        name: the layer's name.
        h, c: the state that enters each step, after a reset.
        i, f, o: the gates of each step.
    """

    name: str
    h: np.ndarray
    c: np.ndarray
    i: np.ndarray
    f: np.ndarray
    o: np.ndarray


class ActionPart(NamedTuple):
    """The distribution of an entry of the action space in an episode of T steps.

    Attributes:
        name: the entry's name, such as "arm/0"; "" if the space is a single entry.
        probabilities: `[T, n]`; None for continuous actions.
        mean, std: `[T, n]`, in the units of the environment, before clipping; None for discrete actions.
        labels: what each of the n columns is.
    """

    name: str
    labels: list[str]
    probabilities: np.ndarray | None = None
    mean: np.ndarray | None = None
    std: np.ndarray | None = None


class Replay(NamedTuple):
    """What `replay` returns."""

    layers: list[LayerMemory]
    actions: list[ActionPart]


def replay(policy: RecurrentPolicy, episode: Mapping[str, np.ndarray]) -> Replay:
    """Computes distributions and gates at each step of a recorded episode.

    Args:
        policy: the policy that acted. Of one with `critic_keys`, only the actor's layers are shown.
        episode: the episode, as from `record_episodes`.
    """
    length = len(episode["rewards"])
    pieces = [_piece(policy, episode, slice(first, first + PIECE)) for first in range(0, length, PIECE)]
    gates = [np.concatenate(parts) for parts in zip(*(gates for gates, _ in pieces), strict=True)]
    layers = []
    for number, layer in enumerate(policy.network.lstm_layers[: len(gates) // 3]):
        own = slice(number * policy.units, (number + 1) * policy.units)
        i, f, o = gates[3 * number : 3 * number + 3]
        layers.append(LayerMemory(layer.name, episode["h"][:, own], episode["c"][:, own], i, f, o))
    parts = [list(_parts(distribution, policy.action_head)) for _, distribution in pieces]
    return Replay(layers, [_concatenate_steps(same) for same in zip(*parts, strict=True)])


def _piece(policy: RecurrentPolicy, episode: Mapping[str, np.ndarray], rows: slice) -> tuple[list[np.ndarray], Any]:
    """The gates i, f, o of each layer, `[steps, units]`, and the distribution."""
    # The state before each step is recorded. So the steps are independent: one step of a batch.
    # If the critic sees more than the actor, these entries may be missing: only the actor is shown.
    space, network = policy.actor_observation_space, policy.network
    observations = map_leaves(
        lambda leaf, part: tf.constant(part[rows], leaf.dtype), space, structured("observations", space, episode)
    )
    features = policy._encode(observations)[tf.newaxis]
    h, c, *kept = (episode[name][rows] for name in STATE if name in episode)
    last = policy.last_action_reward.inputs(tf.constant(kept[0])[tf.newaxis]) if kept else None
    legal = episode["action_masks"][rows] if "action_masks" in episode else None
    given = features, network.split(h, c, policy.is_asymmetric), tf.ones([1, len(h)]), last
    seen, _ = network.unroll(*given)
    gates = [np.asarray(part[0]) for found in network.gates(*given) for part in found[:3]]
    outputs = network.heads(Seen(*(None if part is None else part[0] for part in seen)), legal)
    policy._clear_losses()  # penalties of the encoder
    return gates, outputs.distribution


def _parts(distribution: Any, head: ActionHead, name: str = "") -> Iterator[ActionPart]:
    if isinstance(distribution, Composite):
        assert isinstance(head, CompositeHead)
        for key, inner, part in zip(head.keys, distribution.parts, head.parts, strict=True):
            yield from _parts(inner, part, f"{name}/{key}" if name else str(key))
        return
    space: Any = head.space
    if isinstance(distribution, Categorical):
        labels = [str(int(space.start) + value) for value in range(int(space.n))]
        yield ActionPart(name, labels, np.asarray(tf.nn.softmax(distribution.logits)))
    elif isinstance(distribution, MultiCategorical):
        probabilities = np.asarray(tf.nn.softmax(distribution.logits))
        components = zip(_components(space), space.nvec.ravel().tolist(), space.start.ravel().tolist(), strict=True)
        for number, (component, size, start) in enumerate(components):
            labels = [str(start + value) for value in range(size)]
            own = f"{name}/{component}" if name else component
            yield ActionPart(own, labels, probabilities[:, number, :size])
    elif isinstance(distribution, Bernoulli):
        yield ActionPart(name, _components(space), np.asarray(tf.sigmoid(distribution.logits)))
    else:
        normal = distribution.marginal if isinstance(distribution, StateDependentGaussian) else distribution
        yield _continuous(normal, head, name)


def _continuous(normal: DiagonalGaussian, head: Any, name: str) -> ActionPart:
    """The mean and the standard deviation in the units of the environment; see `GaussianHead.clip`."""
    mean = np.asarray(normal.mean, np.float64)
    std = np.broadcast_to(np.exp(np.asarray(normal.log_std, np.float64)), mean.shape)
    centre, half = head.centre.ravel(), head.half_range.ravel()
    return ActionPart(name, _components(head.space), None, centre + half * mean, std * half)


def _components(space: gym.Space) -> list[str]:
    """The indices of the components of a space, such as "0" or "1, 2"."""
    return [", ".join(map(str, index)) for index in np.ndindex(*(space.shape or (1,)))]


def _concatenate_steps(parts: tuple[ActionPart, ...]) -> ActionPart:
    """Joins the parts of a distribution over consecutive steps."""
    columns = zip(*(part[2:] for part in parts), strict=True)
    return ActionPart(*parts[0][:2], *(None if own[0] is None else np.concatenate(own) for own in columns))
