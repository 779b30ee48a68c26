"""The graph of an exported policy: a step, or a sequence of steps with the resets inside."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.exporting.actions import last_action, parameters, sent
from rl_lnlstm.exporting.signature import Port, input_ports, named_leaves
from rl_lnlstm.lstm.portable import portable
from rl_lnlstm.lstm.steps import rows
from rl_lnlstm.policies.encoder_check import PYTHON_OPERATIONS
from rl_lnlstm.policies.network import Seen
from rl_lnlstm.policies.sequences import swap_batch_and_time
from rl_lnlstm.policies.unrolling import unroll
from rl_lnlstm.spaces import unflatten


class Graph(NamedTuple):
    """A traced policy."""

    function: Any  # a tf.function that takes the inputs by position and returns the outputs by name
    inputs: list[tf.TensorSpec]
    ports: list[Port]
    outputs: dict[str, tf.TensorSpec]
    sequence: bool

    @property
    def concrete(self) -> Any:
        """The only trace of the function."""
        return self.function.get_concrete_function(*self.inputs)


def trace(policy: Any, batch: int | None, sequence: bool, action_masks: bool, float64: bool = True) -> Graph:
    """Traces a policy with operations that other runtimes have too.

    Args:
        policy: the policy.
        batch: the batch size; None for any.
        sequence: whether to trace a sequence `[batch, time, ...]` instead of a step `[batch, ...]`.
        action_masks: whether action masks are an input.
        float64: whether inputs may be float64; otherwise observations that are float64 become float32.

    Raises:
        UserError: a part of the policy, such as an encoder of the user, cannot be exported.
    """
    ports = input_ports(policy, action_masks)
    if not float64:
        narrow = np.dtype(np.float32)
        ports = [port._replace(dtype=narrow) if port.dtype == np.float64 else port for port in ports]

    kinds = "action", "sampled_action"
    dtypes = {name: leaf.dtype for kind in kinds for name, leaf in named_leaves(kind, policy.action_space)}

    def run(*inputs: Any) -> dict[str, Any]:
        given: dict[str, list[Any]] = {}
        for port, tensor in zip(ports, inputs, strict=True):
            given.setdefault(port.kind, []).append(
                swap_batch_and_time(tensor) if "time" in port.axes(sequence) else tensor
            )
        if not sequence:
            given = {kind: [t if kind in "hc" else t[tf.newaxis] for t in tensors] for kind, tensors in given.items()}
        seen, (h, c) = _unrolled(policy, given)
        # The heads see rows. On more axes, tf2onnx converts some of them wrongly.
        masks = rows(given["action_mask"][0]) if "action_mask" in given else None
        outputs = policy.network.heads(Seen(*(None if part is None else rows(part) for part in seen)), masks)
        distribution, head, noise = outputs.distribution, policy.action_head, rows(given["noise"][0])
        results = {
            **sent(head, distribution.mode(), "action"),
            **sent(head, distribution.sample(noise), "sampled_action"),
            **parameters(distribution, head),
            **({} if outputs.values is None else {"value": outputs.values}),
        }
        if sequence:
            size = tf.shape(given["noise"][0])[:2]
            results = {name: swap_batch_and_time(_sequences(tensor, size)) for name, tensor in results.items()}
        # Only now, because TFLite cannot transpose float64.
        results = {name: tf.cast(tensor, dtypes.get(name, tensor.dtype)) for name, tensor in results.items()}
        return {**results, "next_h": h, "next_c": c}

    function, inputs = tf.function(run, autograph=False), [port.spec(batch, sequence) for port in ports]
    with portable():
        concrete = function.get_concrete_function(*inputs)
    policy._clear_losses()  # tensors of the graph are useless outside of it
    _refuse_python(concrete.graph)
    specs = {name: tf.TensorSpec(t.shape, t.dtype, name) for name, t in concrete.structured_outputs.items()}
    return Graph(function, inputs, ports, specs, sequence)


def _unrolled(policy: Any, given: dict[str, list[Any]]) -> Any:
    """The inputs of the heads, time-major, and the state after the last step."""
    observations = unflatten(policy.actor_observation_space, given["observation"])
    (h,), (c,), (starts,) = given["h"], given["c"], given["episode_start"]
    last = []
    if "previous_action" in given:
        last.append(last_action(policy.action_head, unflatten(policy.action_space, given["previous_action"])))
    if "previous_reward" in given:
        last.append(tf.expand_dims(given["previous_reward"][0], -1))
    last_action_reward = tf.concat(last, -1) if last else None
    starts = tf.cast(starts, tf.float32)
    return unroll(policy, observations, h, c, starts, last_action_reward, actor_only=policy.is_asymmetric)


def _sequences(flat: Any, size: Any) -> Any:
    """The inverse of `rows`: `[time * batch, ...]` as `[time, batch, ...]`."""
    return tf.reshape(flat, tf.concat([size, flat.shape[1:]], 0))


def _refuse_python(graph: Any) -> None:
    """Raises `UserError` if the graph would call Python."""
    functions = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    for operation in (operation for part in functions for operation in part.get_operations()):
        if operation.type in PYTHON_OPERATIONS:
            raise UserError(
                f"the policy cannot be exported: {operation.name} calls Python code (tf.py_function or "
                "tf.numpy_function), which exists only in this process; use TensorFlow or keras.ops there"
            )
