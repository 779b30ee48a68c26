"""A policy's step on NumPy arrays: compiled code for known networks, a TensorFlow graph for all others."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.envs.action_masks import checked_masks
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import State
from rl_lnlstm.policies.compiled_step import CompiledStep, compiled_step
from rl_lnlstm.policies.encoder_check import random_observations
from rl_lnlstm.policies.last_action_reward import LastActionRewardState
from rl_lnlstm.policies.network import Network
from rl_lnlstm.policies.watch import Watch
from rl_lnlstm.spaces import flatten, leaves, map_leaves, observed, unflatten

log = logging.getLogger(__name__)

StepFunction = Callable[..., tuple[Any, ...]]


class Kind(NamedTuple):
    """What a step takes."""

    masked: bool = False  # it takes action masks
    actor_only: bool = False  # it takes no entries for the critic, and computes no values


PLAIN = Kind()


TOLERANCE = 1e-3  # allows for rounding; a compiled step that is wrong differs by much more


def number_of(episode_starts: Any) -> int:
    """The number of episode starts; raises `UserError` if they are not an array."""
    try:
        return len(episode_starts)
    except TypeError as error:
        raise UserError(f"episode_starts must have shape [batch], got {episode_starts!r:.40}") from error


class Actor:
    """Steps a policy on NumPy arrays, and checks the arguments.

    Args:
        policy: the policy.
        base: `RecurrentPolicy`. Only policies that override none of its methods are compiled.
    """

    def __init__(self, policy: Any, base: type) -> None:
        self._policy, self._base = policy, base
        self._watch = Watch(policy)
        self._built: dict[Kind, StepFunction] = {}

    def _step(self, kind: Kind = PLAIN) -> StepFunction:
        """The step; it is built again if a layer has changed since, for example its activation."""
        if self._watch.changed():
            self._built, self._watch = {}, Watch(self._policy)
        if kind not in self._built:
            self._built[kind] = self._build(kind)
            self._watch.settle()
        return self._built[kind]

    @property
    def is_compiled(self) -> bool:
        """Whether the step is compiled code, and no graph."""
        return isinstance(self._step(), CompiledStep)

    def _build(self, kind: Kind) -> StepFunction:
        if kind.actor_only:
            return graph_step(self._policy, *kind)
        if not kind.masked:
            return compiled_like_graph(self._policy, self._base) or graph_step(self._policy, *kind)
        unmasked = self._step()
        return unmasked if isinstance(unmasked, CompiledStep) else graph_step(self._policy, *kind)

    def act(
        self, observations: Any, state: Any, episode_starts: Any, noise: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, ...]:
        """Acts as `RecurrentPolicy.step` does: returns actions, values, log-probabilities and the new state."""
        policy, size = self._policy, len(noise)
        h, c, *kept = self.checked_state(state, size)
        space = policy.observation_space
        if policy.is_asymmetric:
            space = policy._space_of(observations)
        actor_only = space is not policy.observation_space
        observations = in_space(space, observations)
        given = [observations, h, c, self.checked_starts(episode_starts, size), noise, *kept]
        given += [] if action_masks is None else [self.checked_masks(action_masks, size)]
        step = self._step(Kind(action_masks is not None, actor_only))
        actions, values, log_probs, h, c, *kept = step(*given)
        if actor_only:  # the state of the critic's layers is zero, because they see nothing
            h, c = (np.pad(part, [(0, 0), (0, policy.state_size - part.shape[-1])]) for part in (h, c))
        after = LastActionRewardState(h, c, *kept) if kept else State(h, c)
        return policy.action_head.to_space(actions), values, log_probs, after

    def decide(
        self, observations: Any, state: Any, episode_starts: Any, noise: np.ndarray, action_masks: Any = None
    ) -> tuple[Any, Any]:
        """The actions and the new state only. Entries that only the critic sees change no bit of the actions."""
        policy = self._policy
        if not policy.is_asymmetric:
            actions, _, _, after = self.act(observations, state, episode_starts, noise, action_masks)
            return actions, after
        # Another graph could round differently. So the actor's graph acts, even if there are entries for the critic.
        seen = map_leaves(lambda _, part: part, policy.actor_observation_space, observations)
        actions, _, _, after = self.act(seen, state, episode_starts, noise, action_masks)
        own = policy.actor_state_size
        if own < policy.state_size and policy._space_of(observations) is policy.observation_space:
            whole = self.act(observations, state, episode_starts, noise, action_masks)[-1]
            h, c = (np.concatenate([after[i][:, :own], whole[i][:, own:]], 1) for i in range(2))
            after = type(after)(h, c, *after[2:])
        return actions, after

    def checked_state(self, state: Any, size: int) -> Any:
        """Returns the state, or zeros if it is None; raises `UserError` unless its shapes are right."""
        if state is None:
            return self._policy.initial_state(size)
        last = self._policy.last_action_reward.size
        expected = [(size, width) for width in [self._policy.state_size] * 2 + [last] * bool(last)]
        got = [np.shape(part) for part in state]
        if got != expected:
            names = "(h, c, last_action_reward)" if last else "(h, c)"
            raise UserError(f"state must be {names} of shapes {[*map(list, expected)]}, got {[*map(list, got)]}")
        return state

    def checked_starts(self, episode_starts: Any, size: int) -> np.ndarray:
        """Returns the episode starts as bool; raises `UserError` unless there are `size` of them."""
        starts = np.asarray(episode_starts, bool)
        if starts.shape != (size,):
            raise UserError(f"episode_starts must have shape {[size]}, got {list(starts.shape)}")
        return starts

    def checked_observations(self, space: gym.Space, observations: Any, size: int) -> Any:
        """Returns the observations in the dtypes of `space`; raises `UserError` unless they are a batch of `size`.

        Symbolic tensors have no values, so only their shapes are checked.
        """
        if tf.executing_eagerly():
            observations = in_space(space, observations)
        map_leaves(_check_shape, space, observations)
        if (got := len(flatten(space, observations)[0])) != size:
            raise UserError(f"observations must have the batch size of episode_starts, {size}, got {got}")
        return observations

    def checked_masks(self, action_masks: Any, size: int) -> np.ndarray | None:
        """Returns the action masks `[size, ...]` as bool, or None; raises `UserError` if their shape is wrong."""
        return None if action_masks is None else checked_masks(action_masks, self._policy.action_space, size)


def in_space(space: gym.Space, observations: Any) -> Any:
    """Returns observations in the dtypes of their space; tensors stay tensors, so that gradients reach them.

    Raises:
        UserError: they have another structure, or values that the space does not hold; see `spaces.observed`.
    """

    def checked(leaf: gym.Space, part: Any) -> Any:
        values = observed(leaf, part)
        # tf.is_tensor alone takes longer than everything else here.
        return values if isinstance(part, np.ndarray) or not tf.is_tensor(part) else part

    try:
        return map_leaves(checked, space, observations)
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"observations must be structured as {space}, {type(error).__name__}: {error}") from error


def compiled_like_graph(policy: Any, base: type) -> StepFunction | None:
    """The compiled step of a policy; None if there is none, or if its results differ from those of the graph.

    Only policies that override no method of `base`, which is `RecurrentPolicy`, are compiled.
    """
    written = overrides_nothing(policy, base) and overrides_nothing(policy.network, Network)
    compiled = compiled_step(policy) if written else None
    if compiled is None or _agree(compiled, policy):
        return compiled
    log.warning("the compiled step differs from the policy's graph, so the graph is used, which is slower")
    return None


def overrides_nothing(instance: Any, base: type) -> bool:
    """Whether neither the instance nor its subclasses override a member of `base`, apart from `make_encoder`."""
    own = {name for name, member in vars(base).items() if inspect.isfunction(member)}
    if own & set(vars(instance)):
        return False
    for kind in type(instance).__mro__:
        if kind is base:
            return True
        changed = {name for name in vars(kind) if not name.startswith("__") or name.startswith("__get")}
        if any(hasattr(base, name) for name in changed - {"make_encoder"}):
            return False
    return False


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
    names += [name for name, there in (("kept", last.size), ("action_masks", masked)) if there]
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
        map_leaves(_check_shape, space, observations)
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
    kept: Any = None,
    action_masks: Any = None,
    actor_only: bool = False,
) -> tuple[Any, ...]:
    """Computes a step on tensors; see `graph_step`."""
    outputs, state = policy._forward(observations, h, c, episode_starts, kept, action_masks, actor_only)
    actions = outputs.distribution.sample(noise)
    log_probs = outputs.distribution.log_prob(actions)
    values = tf.fill(tf.shape(log_probs), np.float32(np.nan)) if outputs.values is None else outputs.values
    results = (actions, values, log_probs, *state)
    if kept is None:
        return results
    return *results, policy.last_action_reward.after(actions, tf.zeros_like(log_probs))


def _check_shape(leaf: Any, values: Any) -> None:
    shape = np.shape(values)
    if shape[1:] != (leaf.shape or ()) or not shape:
        expected = ", ".join(map(str, ("batch", *(leaf.shape or ()))))
        raise UserError(f"observations must have shape [{expected}], got {list(shape)}")


def _agree(compiled: StepFunction, policy: Any) -> bool:
    rng = np.random.default_rng(0)
    batch = 3
    observations = random_observations(policy.observation_space, batch, rng)
    state = rng.uniform(-1, 1, (2, batch, policy.state_size)).astype(np.float32)
    given = (observations, *state, np.arange(batch) == 1, policy.action_head.noise(rng, batch))
    _, *got = compiled(*given)
    _, *expected = step_once(policy, *given)
    policy._clear_losses()
    return all(
        np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        for one, other in zip(got, expected, strict=True)
    )
