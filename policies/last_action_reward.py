"""The last action and its reward as inputs of the LSTM."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rl_lnlstm.config import PolicyOptions
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.portable import is_portable
from rl_lnlstm.policies.heads import ActionHead


class LastActionRewardState(NamedTuple):
    """The state of a policy with `previous_action` or `previous_reward`."""

    h: Any  # [batch, state_size]
    c: Any
    last_action_reward: Any  # [batch, features]: the action's features, then the reward; zeros before the first action


class LastActionReward:
    """Converts the last action and reward to inputs of the LSTM.

    Discrete actions are one-hot, continuous actions are clipped to their bounds. A reward r becomes sign(r) log(1 +
    |r|). Acting and the update both use this code.

    Args:
        head: the policy's action head, which converts actions to features.
        options: the policy's options; `previous_action` and `previous_reward` say which inputs there are.
    """

    def __init__(self, head: ActionHead, options: PolicyOptions) -> None:
        self._head, self._action, self._reward = head, options.previous_action, options.previous_reward

    @property
    def size(self) -> int:
        """The number of inputs; 0 if the policy sees neither action nor reward."""
        return (self._head.features_size if self._action else 0) + self._reward

    def after(self, actions: Any, rewards: Any) -> Any:
        """The state's `last_action_reward` after `actions` `[...]`, in the distribution's form, and their rewards."""
        parts = [self._head.features(actions)] if self._action else []
        parts += [tf.expand_dims(tf.cast(rewards, tf.float32), -1)] if self._reward else []
        return tf.concat(parts, -1)

    def sequence(self, first: Any, actions: Any, rewards: Any) -> Any:
        """The `last_action_reward` before each step of a time-major sequence, `[time, batch, size]`.

        Args:
            first: the `last_action_reward` before the sequence, `[batch, size]`.
            actions: the actions of the sequence, in the distribution's form.
            rewards: `[time, batch]`, the reward of each action.

        Raises:
            UserError: `previous_reward` is on and there are no rewards.
        """
        if self._reward and rewards is None:
            raise UserError("rewards: a policy with previous_reward needs the rewards of the sequences, got None")
        return tf.concat([tf.convert_to_tensor(first)[tf.newaxis], self.after(actions, rewards)[:-1]], 0)

    def inputs(self, last_action_reward: Any) -> Any:
        """The inputs of the LSTM: the same as in the state, with the reward squashed."""
        if not self._reward:
            return last_action_reward
        rewards = last_action_reward[..., -1:]
        size = tf.abs(rewards)
        # ONNX has no log1p.
        squashed = tf.math.log(1.0 + size) if is_portable() else tf.math.log1p(size)
        return tf.concat([last_action_reward[..., :-1], tf.sign(rewards) * squashed], -1)

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """Adds the last rewards `[batch]` to the state, if the policy sees rewards."""
        if not self._reward:
            return state
        last = np.array(state[2])
        if np.shape(rewards) != (len(last),):
            raise UserError(f"rewards must have shape {[len(last)]}, got {list(np.shape(rewards))}")
        last[:, -1] = rewards
        return LastActionRewardState(state[0], state[1], last)
