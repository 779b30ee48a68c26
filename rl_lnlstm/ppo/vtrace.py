"""V-trace of Espeholt et al. (2018), "IMPALA": advantages of the current policy from steps of an earlier one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from rl_lnlstm.ppo.rollout import Rollout


class Steps(NamedTuple):
    """What V-trace needs of a rollout, as in `Rollout`: arrays `[num_steps, num_envs]`."""

    rewards: Any  # the rewards to learn from
    log_probs: Any
    values: Any
    next_values: Any
    terminations: Any
    episode_ends: Any
    valid: Any

    @classmethod
    def of(cls, rollout: Rollout, rewards: np.ndarray) -> Steps:
        """The steps of a rollout, with rewards that may be scaled."""
        columns = {name: getattr(rollout, name) for name in cls._fields if name != "rewards"}
        return cls(rewards=rewards.astype(np.float32), **columns)


def vtrace(steps: Steps, log_probs: Any, values: Any, gamma: float, gae_lambda: float) -> tuple[Any, Any]:
    """Advantages and returns of the current policy.

    A_t = delta_t + gamma * lambda * (v_{t+1} - V(s_{t+1})), with delta_t = r_t + gamma * V(s_{t+1}) - V(s_t). Here v is
    the V-trace target of equation 1 in the paper, with rho-bar = c-bar = 1 and lambda as in remark 2. The action's own
    ratio pi(a_t|s_t) / pi_old(a_t|s_t) is left out, because PPO's objective multiplies by it. Returns are V(s_t) + A_t.
    While the policy is the one that acted, both are those of `generalized_advantages`.

    Args:
        steps: what the earlier policy did. Steps that are not valid keep their recorded values.
        log_probs: log pi(a|s) of the actions with the current policy, `[num_steps, num_envs]`.
        values: V(s) with the current policy, `[num_steps, num_envs]`. Where an episode or the rollout ends, the
            recorded value of what follows is used.
        gamma: the discount per step.
        gae_lambda: lambda of generalised advantage estimation.

    Returns:
        Advantages and returns, float32, `[num_steps, num_envs]`.
    """
    log_ratios = tf.where(steps.valid, log_probs - steps.log_probs, 0.0)
    ratios = tf.exp(tf.minimum(log_ratios, 0.0))  # pi(a|s) / pi_old(a|s), clipped at 1
    values = tf.where(steps.valid, values, steps.values)
    following = tf.concat([values[1:], steps.next_values[-1:]], 0)
    following = tf.where(steps.episode_ends, steps.next_values, following)
    following = tf.where(steps.terminations, 0.0, following)
    deltas = steps.rewards + gamma * following - values
    carry = tf.where(steps.episode_ends, 0.0, gamma * gae_lambda)
    following_ratios = tf.concat([ratios[1:], tf.ones_like(ratios[:1])], 0)
    # By the recursion in remark 1, v_t - V(s_t) is A_t times the action's own ratio.
    advantages = tf.scan(
        lambda after, step: step[0] + step[1] * (step[2] * after),
        (deltas, carry, following_ratios),
        tf.zeros_like(deltas[0]),
        reverse=True,
    )
    return advantages, values + advantages


def join_column(column: Any, num_envs: int) -> Any:
    """Joins what `cut_sequences` has cut: a column `[sequences, length]` becomes `[num_steps, num_envs]` again."""
    length = column.shape[1]
    return tf.reshape(tf.transpose(tf.reshape(column, [-1, num_envs, length]), [0, 2, 1]), [-1, num_envs])


def cut_column(column: Any, length: int) -> Any:
    """Cuts one column as `cut_sequences` does, but in a graph: `[num_steps, num_envs]` to `[sequences, length]`."""
    num_envs = column.shape[1]
    return tf.reshape(tf.transpose(tf.reshape(column, [-1, length, num_envs]), [0, 2, 1]), [-1, length])
