"""What the LSTM sees of the last action and of the reward that it earned."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rl_lnlstm.config import PolicyOptions
from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.heads import ActionHead


class LastActionRewardState(NamedTuple):
    """The state of a policy with `previous_action` or `previous_reward`."""

    h: Any  # [batch, state_size]
    c: Any
    last_action_reward: Any  # [batch, features]: the action's features, then the reward; zeros before the first action


class LastActionReward:
    """Makes the inputs of the LSTM that come from the last action and reward.

    Actions are one-hot, or clipped to their bounds; a reward r is sign(r) log(1 + |r|). Everything is computed here,
    in TensorFlow, for acting and for the update alike.

    Args:
        head: the policy's action head, which has the features of actions.
        options: `previous_action` and `previous_reward` decide which of the two there are.
    """

    def __init__(self, head: ActionHead, options: PolicyOptions) -> None:
        self._head, self._action, self._reward = head, options.previous_action, options.previous_reward

    @property
    def size(self) -> int:
        """How many numbers the LSTM sees; 0 if it sees neither."""
        return (self._head.features_size if self._action else 0) + self._reward

    def after(self, actions: Any, rewards: Any) -> Any:
        """What a state keeps after `actions` `[...]`, in the distribution's form, earned `rewards` `[...]`."""
        parts = [self._head.features(actions)] if self._action else []
        parts += [tf.cast(rewards, tf.float32)[..., tf.newaxis]] if self._reward else []
        return tf.concat(parts, -1)

    def sequence(self, first: Any, actions: Any, rewards: Any) -> Any:
        """What the states of a time-major sequence kept, `[time, batch, size]`.

        Args:
            first: what the state before the sequence kept, `[batch, size]`.
            actions: those of the sequence, in the distribution's form.
            rewards: `[time, batch]`, what these actions earned.

        Raises:
            UserError: rewards are needed and missing.
        """
        if self._reward and rewards is None:
            raise UserError("rewards: a policy with previous_reward needs those of the sequences, got None")
        return tf.concat([tf.convert_to_tensor(first)[tf.newaxis], self.after(actions, rewards)[:-1]], 0)

    def inputs(self, kept: Any) -> Any:
        """What the LSTM sees of that: the reward is squashed."""
        if not self._reward:
            return kept
        rewards = kept[..., -1:]
        return tf.concat([kept[..., :-1], tf.sign(rewards) * tf.math.log1p(tf.abs(rewards))], -1)

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """The state with the last rewards, `[batch]`, in it; the same state if the policy does not see them."""
        if not self._reward:
            return state
        kept = np.array(state[2])
        if np.shape(rewards) != (len(kept),):
            raise UserError(f"rewards must have shape {[len(kept)]}, got {list(np.shape(rewards))}")
        kept[:, -1] = rewards
        return LastActionRewardState(state[0], state[1], kept)
