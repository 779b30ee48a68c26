"""From observations to the outputs of a policy's heads: normalises, encodes, and runs the LSTM layers.

All functions take tensors. `episode_starts` are true or 1 where the state is reset before a step, and
`last_action_reward` is the third part of the state, if the policy has one.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import tensorflow as tf

from rl_lnlstm.lstm.equations import State
from rl_lnlstm.policies.network import Outputs, Seen
from rl_lnlstm.policies.normalization import normalize_each
from rl_lnlstm.spaces import flatten, map_leaves


def forward_step(
    policy: Any,
    observations: Any,
    h: Any,
    c: Any,
    episode_starts: Any,
    last_action_reward: Any = None,
    action_masks: Any = None,
    actor_only: bool = False,
) -> tuple[Outputs, State]:
    """Runs one step. Returns the outputs of the heads, and h and c after it."""
    space = policy.actor_observation_space if actor_only else policy.observation_space
    sequences = map_leaves(lambda _, part: part[tf.newaxis], space, observations)
    starts = tf.cast(episode_starts, tf.float32)[tf.newaxis]
    last = None if last_action_reward is None else tf.convert_to_tensor(last_action_reward)[tf.newaxis]
    return policy._forward_sequences(sequences, h, c, starts, last, action_masks, True, actor_only)


def forward_sequences(
    policy: Any,
    observations: Any,
    h: Any,
    c: Any,
    episode_starts: Any,
    last_action_reward: Any = None,
    action_masks: Any = None,
    one_step: bool = False,
    actor_only: bool = False,
) -> tuple[Outputs, State]:
    """Runs time-major sequences. Returns the outputs of the heads for each step, and h and c after the last step.

    With `one_step` there is a single step, and outputs and action masks have no time axis. With `actor_only`, there are
    no values, and h and c are those of the actor's layers.
    """
    seen, state = unroll(policy, observations, h, c, episode_starts, last_action_reward, actor_only)
    if one_step:
        seen = Seen(*(None if part is None else part[0] for part in seen))
    return policy.network.heads(seen, action_masks), state


def unroll(
    policy: Any,
    observations: Any,
    h: Any,
    c: Any,
    episode_starts: Any,
    last_action_reward: Any = None,
    actor_only: bool = False,
) -> tuple[Seen, State]:
    """Encodes time-major sequences and runs the LSTM layers. Returns the inputs of the heads, and h and c."""
    policy._clear_losses()  # the penalties of an earlier call
    space = policy.actor_observation_space if actor_only else policy.observation_space
    first = flatten(space, observations)[0]
    time, batch = tf.unstack(tf.shape(first)[:2])
    static = first.shape[0]
    frames = map_leaves(_merge_time_and_batch, space, observations)

    def in_sequences(features: Any) -> Any:
        return tf.reshape(features, [time if static is None else static, batch, features.shape[-1]])

    features = in_sequences(policy._encode(frames))
    critic_features = None if actor_only else encode_for_critic(policy, frames)
    seen, state = policy.network.unroll(
        features,
        policy.network.split(h, c, actor_only),
        1.0 - episode_starts,
        None if last_action_reward is None else policy.last_action_reward.inputs(last_action_reward),
        None if critic_features is None else in_sequences(critic_features),
    )
    return seen, policy.network.join(state)


def encode(policy: Any, frames: Any) -> Any:
    """Normalises and encodes what the actor sees in observations `[n, *shape]`, to features `[n, features]`."""
    space = policy.actor_observation_space
    return policy.network.encode(normalize_each(space, policy.observation_statistics, frames))


def encode_for_critic(policy: Any, frames: Any) -> Any:
    """The same for the entries that only the critic sees; None if there are none."""
    space = policy.critic_observation_space
    if space is None:
        return None
    return policy.network.encode_for_critic(normalize_each(space, policy.observation_statistics, frames))


def _merge_time_and_batch(space: gym.Space, sequences: Any) -> Any:
    return tf.reshape(sequences, [-1, *(space.shape or ())])
