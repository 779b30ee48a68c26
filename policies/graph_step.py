"""A step of a policy as a TensorFlow graph. It works for every policy; see `compiled_step.py` for a faster one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.unrolling import forward_step
from rl_lnlstm.spaces import flatten, leaves, map_leaves, unflatten

StepFunction = Callable[..., tuple[Any, ...]]


def graph_step(policy: Any, masked: bool = False, actor_only: bool = False) -> StepFunction:
    """The step as a TensorFlow graph.

    It takes observations, h, c, episode starts and noise. Then follow the state's `last_action_reward`, if it has one,
    and action masks, if `masked`. It returns actions in the distribution's form, values, log-probabilities, h, c,
    and the new `last_action_reward`, if there is one. With `actor_only`, values are NaN, and h and c are those of the
    actor's layers.
    """
    space, last = policy.observation_space, policy.last_action_reward
    if actor_only:
        space = policy.actor_observation_space
    observed = [tf.TensorSpec([None, *(leaf.shape or ())], leaf.dtype) for leaf in leaves(space)]
    state = tf.TensorSpec([None, policy.state_size], tf.float32)
    specs = [
        *observed,
        *(state, state),
        tf.TensorSpec([None], tf.bool),
        tf.TensorSpec([None, policy.action_head.noise_size], tf.float32),
        *([tf.TensorSpec([None, last.size], tf.float32)] if last.size else []),
        *([tf.TensorSpec([None, None], tf.bool)] if masked else []),
    ]
    names = ["h", "c", "episode_starts", "noise"]
    names += [name for name, there in (("last_action_reward", last.size), ("action_masks", masked)) if there]
    dtypes = [spec.dtype.as_numpy_dtype for spec in specs]

    def graph(*arguments: Any) -> tuple[Any, ...]:
        named = dict(zip(names, arguments[len(observed) :], strict=True))
        return step_once(policy, unflatten(space, arguments[: len(observed)]), **named, actor_only=actor_only)

    function = tf.function(graph, autograph=False).get_concrete_function(*specs)
    policy._clear_losses()  # tensors of the graph are useless outside of it

    captured, types = function.captured_inputs, [result.dtype for result in function.outputs]
    structure = function.structured_outputs
    nested = any(map(tf.nest.is_nested, structure))

    # Calling `function` itself takes twice as long, because it checks and converts its arguments in Python.
    def call(observations: Any, *others: Any) -> tuple[Any, ...]:
        map_leaves(check_shape, space, observations)
        given = [
            np.asarray(part, dtype)
            for part, dtype in zip((*flatten(space, observations), *others), dtypes, strict=True)
        ]
        results = tf.raw_ops.StatefulPartitionedCall(args=[*given, *captured], Tout=types, f=function)
        arrays = tuple(result.numpy() for result in results)
        return tf.nest.pack_sequence_as(structure, arrays) if nested else arrays

    return call


def step_once(
    policy: Any,
    observations: Any,
    h: Any,
    c: Any,
    episode_starts: Any,
    noise: Any,
    last_action_reward: Any = None,
    action_masks: Any = None,
    actor_only: bool = False,
) -> tuple[Any, ...]:
    """Computes a step on tensors; see `graph_step`."""
    outputs, state = forward_step(
        policy, observations, h, c, episode_starts, last_action_reward, action_masks, actor_only
    )
    actions = outputs.distribution.sample(noise)
    log_probs = outputs.distribution.log_prob(actions)
    values = tf.fill(tf.shape(log_probs), np.float32(np.nan)) if outputs.values is None else outputs.values
    results = (actions, values, log_probs, *state)
    if last_action_reward is None:
        return results
    return *results, policy.last_action_reward.after(actions, tf.zeros_like(log_probs))


def check_shape(leaf: gym.Space, values: Any) -> None:
    """Raises `UserError` unless values have shape `[batch, *leaf.shape]`."""
    shape = np.shape(values)
    if shape[1:] != (leaf.shape or ()) or not shape:
        expected = ", ".join(map(str, ("batch", *(leaf.shape or ()))))
        raise UserError(f"observations must have shape [{expected}], got {list(shape)}")
