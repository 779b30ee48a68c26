"""The inputs of an exported policy: their names, dtypes and shapes, and how a policy's arguments are given by them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.envs.action_masks import KINDS, mask_sizes
from rl_lnlstm.errors import UserError

MEANINGS = {
    "observation": "the observation, as the environment returns it",
    "h": "the recurrent state h before the first step; zeros at the start",
    "c": "the recurrent state c before the first step; zeros at the start",
    "episode_start": "true where the observation is the first of an episode: the state is reset there",
    "action_mask": "true where an action is legal",
    "previous_action": "the action that was sent last; ignored where an episode starts",
    "previous_reward": "the reward of the last action; ignored where an episode starts",
    "noise": "random numbers for sampled_action, a column for each parameter, see noise_kinds; zeros give action",
    "action": "the most probable action, to be sent to the environment as it is",
    "sampled_action": "a sampled action, to be sent to the environment as it is",
    "logits": "unnormalised log-probabilities of discrete actions; of MultiBinary log p(1) / p(0)",
    "mean": "mean of the continuous action, before it is scaled and clipped to the bounds",
    "log_std": "log standard deviation of the continuous action, before it is scaled and clipped",
    "value": "the critic's value of the observation: the expected discounted return",
    "next_h": "the recurrent state h after the last step",
    "next_c": "the recurrent state c after the last step",
}


class Port(NamedTuple):
    """An input of an exported policy."""

    kind: str  # a key of `MEANINGS`
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]  # without the axes for batch and time

    def axes(self, sequence: bool) -> list[str]:
        """The names of the axes before `shape`."""
        return ["batch", "time"] if sequence and self.kind not in ("h", "c") else ["batch"]

    def spec(self, batch: int | None, sequence: bool) -> tf.TensorSpec:
        """The input of the graph."""
        leading = [batch, None][: len(self.axes(sequence))]
        return tf.TensorSpec([*leading, *self.shape], self.dtype, self.name)


def exported_state_size(policy: Any) -> int:
    """The width of h and c. A critic that sees more than the actor is not exported."""
    return int(policy.actor_state_size if policy.is_asymmetric else policy.state_size)


def input_ports(policy: Any, action_masks: bool) -> list[Port]:
    """The inputs of a policy, in their order.

    Args:
        policy: the policy.
        action_masks: whether action masks are an input.

    Raises:
        UserError: there are no masks for the policy's actions, or two entries of a space have the same name.
    """
    bools, floats, options = np.dtype(bool), np.dtype(np.float32), policy.options
    ports = _of_space("observation", policy.actor_observation_space)
    ports += [Port(name, name, floats, (exported_state_size(policy),)) for name in "hc"]
    ports.append(Port("episode_start", "episode_start", bools, ()))
    if action_masks:
        sizes = mask_sizes(policy.action_space)
        if sizes is None:
            raise UserError(f"action masks are for {KINDS}, but the policy's actions are {policy.action_space}")
        ports.append(Port("action_mask", "action_mask", bools, (int(sizes.sum()),)))
    if options.previous_action:
        ports += _of_space("previous_action", policy.action_space)
    if options.previous_reward:
        ports.append(Port("previous_reward", "previous_reward", floats, ()))
    ports.append(Port("noise", "noise", floats, (policy.action_head.noise_size,)))
    names = [port.name for port in ports]
    names += [name for name, _ in named_leaves("action", policy.action_space)]  # of the outputs
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(
            f"two entries of a space would both be exported as {min(twice)}: letters, digits and _ must tell them apart"
        )
    return ports


def _of_space(kind: str, space: gym.Space) -> list[Port]:
    return [Port(kind, name, np.dtype(leaf.dtype), tuple(leaf.shape or ())) for name, leaf in named_leaves(kind, space)]


def named_leaves(name: str, space: gym.Space) -> Iterator[tuple[str, gym.Space]]:
    """The leaves of a space with their names: `<name>_<key>` for an entry of a `Dict`, `<name>_0` for a `Tuple`'s."""
    if not isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        yield name, space
        return
    entries: Iterable = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
    for key, inner in entries:
        yield from named_leaves(entry_name(name, key), inner)


def entry_name(name: str, key: Any) -> str:
    """The name of the entry `key` of a space."""
    return f"{name}_{re.sub('[^A-Za-z0-9_]', '_', str(key))}"
