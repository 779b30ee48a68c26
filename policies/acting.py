"""How a policy acts on NumPy arrays: checks the arguments, and takes the compiled step or the graph's."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import tensorflow as tf

from rl_lnlstm.envs.action_masks import checked_masks
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import State
from rl_lnlstm.policies.compiled_step import CompiledStep, compiled_like_graph
from rl_lnlstm.policies.critic_entries import lacks_critic_entries, matching_space
from rl_lnlstm.policies.distributions import Distribution
from rl_lnlstm.policies.exploration import Generators
from rl_lnlstm.policies.graph_step import StepFunction, check_shape, graph_step
from rl_lnlstm.policies.last_action_reward import LastActionRewardState
from rl_lnlstm.policies.unrolling import forward_step
from rl_lnlstm.policies.watch import Watch
from rl_lnlstm.spaces import batch_of, flatten, map_leaves, observed


class StepKind(NamedTuple):
    """What a step takes."""

    masked: bool = False  # it takes action masks
    actor_only: bool = False  # it takes no entries for the critic, and computes no values


PLAIN = StepKind()


def batch_size_of(episode_starts: Any) -> int:
    """The batch size; raises `UserError` if `episode_starts` is not an array."""
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
        self._built: dict[StepKind, StepFunction] = {}

    def _step(self, kind: StepKind = PLAIN) -> StepFunction:
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

    def _build(self, kind: StepKind) -> StepFunction:
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
        h, c, *last = self._checked_state(state, size)
        space = matching_space(policy, observations) if policy.is_asymmetric else policy.observation_space
        actor_only = space is not policy.observation_space
        observations = in_space(space, observations)
        given = [observations, h, c, self._checked_starts(episode_starts, size), noise, *last]
        given += [] if action_masks is None else [self._checked_masks(action_masks, size)]
        step = self._step(StepKind(action_masks is not None, actor_only))
        actions, values, log_probs, h, c, *last = step(*given)
        if actor_only:  # the state of the critic's layers is zero, because they see nothing
            h, c = (np.pad(part, [(0, 0), (0, policy.state_size - part.shape[-1])]) for part in (h, c))
        after = LastActionRewardState(h, c, *last) if last else State(h, c)
        return policy.action_head.to_space(actions), values, log_probs, after

    def predict(
        self,
        observation: Any,
        state: Any,
        episode_start: Any,
        deterministic: bool,
        action_masks: Any,
        rng: Generators | None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """The actions and the new state. Takes the arguments of `RecurrentPolicy.predict`."""
        policy = self._policy
        batch, batch_size = batch_of(matching_space(policy, observation), observation)
        single, size = batch_size is None, 1 if batch_size is None else batch_size
        starts = np.zeros(size, bool) if episode_start is None else np.asarray(episode_start, bool)
        if starts.shape != (size,) and not (single and starts.shape == ()):
            raise UserError(f"episode_start must have shape {[size]}, got {list(starts.shape)}")
        starts = starts.reshape(size)
        head, exploration = policy.action_head, policy.exploration
        noise = head.no_noise(size) if deterministic else exploration.for_predict(size, rng, starts)
        if action_masks is not None and single:
            parts = action_masks if isinstance(action_masks, list | tuple) else [action_masks]
            action_masks = np.concatenate([np.ravel(part) for part in parts])[np.newaxis]
        actions, after = self._decide(batch, state, starts, noise, action_masks)
        actions = policy.clip_actions(actions)
        if single:
            # An element of a `Box` of shape () is an array of shape (), and not a scalar.
            actions = map_leaves(
                lambda leaf, part: part[0, ...] if isinstance(leaf, gym.spaces.Box) else part[0],
                policy.action_space,
                actions,
            )
        return actions, tuple(after)

    def _decide(
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
        if own < policy.state_size and not lacks_critic_entries(policy, observations):
            whole = self.act(observations, state, episode_starts, noise, action_masks)[-1]
            h, c = (np.concatenate([after[i][:, :own], whole[i][:, own:]], 1) for i in range(2))
            after = type(after)(h, c, *after[2:])
        return actions, after

    def distribution(self, observations: Any, state: Any, episode_starts: Any, action_masks: Any) -> Distribution:
        """The distribution of actions, as tensors. Takes the arguments of `RecurrentPolicy.distribution`."""
        policy, size, space = self._policy, batch_size_of(episode_starts), self._policy.actor_observation_space
        h, c, *last = self._checked_state(state, size)
        starts, masks = self._checked_starts(episode_starts, size), self._checked_masks(action_masks, size)
        observations = self._checked_observations(space, observations, size)
        observations = map_leaves(lambda leaf, part: tf.cast(part, leaf.dtype), space, observations)
        given = observations, h, c, starts, last[0] if last else None, masks
        outputs, _ = forward_step(policy, *given, actor_only=policy.is_asymmetric)
        policy._clear_losses()
        return outputs.distribution

    def checked_noise(self, noise: np.ndarray | None, size: int) -> np.ndarray:
        """Returns the noise, or draws it if it is None; raises `UserError` if its shape is wrong."""
        if noise is None:
            return self._policy.exploration.for_step(size)
        expected = (size, self._policy.action_head.noise_size)
        if np.shape(noise) != expected:
            raise UserError(f"noise must have shape {list(expected)}, got {list(np.shape(noise))}")
        return noise

    def _checked_state(self, state: Any, size: int) -> Any:
        """Returns the state, or zeros if it is None; raises `UserError` unless its shapes are right."""
        if state is None:
            return self._policy.initial_state(size)
        check_state(self._policy, state, size)
        return state

    def _checked_starts(self, episode_starts: Any, size: int) -> np.ndarray:
        """Returns the episode starts as bool; raises `UserError` unless there are `size` of them."""
        starts = np.asarray(episode_starts, bool)
        if starts.shape != (size,):
            raise UserError(f"episode_starts must have shape {[size]}, got {list(starts.shape)}")
        return starts

    def _checked_observations(self, space: gym.Space, observations: Any, size: int) -> Any:
        """Returns the observations in the dtypes of `space`; raises `UserError` unless they are a batch of `size`.

        Symbolic tensors have no values, so only their shapes are checked.
        """
        if tf.executing_eagerly():
            observations = in_space(space, observations)
        map_leaves(check_shape, space, observations)
        if (got := len(flatten(space, observations)[0])) != size:
            raise UserError(f"observations must have the batch size of episode_starts, {size}, got {got}")
        return observations

    def _checked_masks(self, action_masks: Any, size: int) -> np.ndarray | None:
        """Returns the action masks `[size, ...]` as bool, or None; raises `UserError` if their shape is wrong."""
        return None if action_masks is None else checked_masks(action_masks, self._policy.action_space, size)


def check_state(policy: Any, state: Any, size: int | None) -> None:
    """Raises `UserError` unless a state of `size` episodes has the right shapes. In a graph, sizes may be None."""
    last = policy.last_action_reward.size
    expected = [(size, width) for width in [policy.state_size] * 2 + [last] * bool(last)]
    got = [np.shape(part) for part in state]
    if got == expected:
        return
    fits = [tf.TensorShape(one).is_compatible_with(other) for one, other in zip(expected, got, strict=False)]
    if len(got) != len(expected) or not all(fits):
        names = "(h, c, last_action_reward)" if last else "(h, c)"
        raise UserError(
            f"state must be {names} of shapes {[*map(list, expected)]}, got {[*map(list, got)]}; the first number "
            "of each is the number of episode_starts"
        )


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
