"""Advantages, discounted returns and their statistics: pure functions of time-major arrays `[num_steps, num_envs]`."""

from __future__ import annotations

import numpy as np


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    next_values: np.ndarray,
    terminations: np.ndarray,
    episode_ends: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """Generalised advantage estimates, Schulman et al. (2016), equation 16.

    Args:
        rewards: r_t, what action t earned.
        values: V(s_t).
        next_values: V(s_{t+1}), the value of the state that action t led to, in the same episode. At an episode's end
            this is the value of its final observation, and not that of the next episode's first observation.
        terminations: bool, true where s_{t+1} is terminal, so its value counts as 0. Truncated episodes are not marked
            here: they bootstrap from `next_values`.
        episode_ends: bool, true where the step is the last of its episode (terminated or truncated).
        gamma: the discount per step.
        gae_lambda: 0 uses one-step returns, 1 uses whole returns.

    Returns:
        The advantages, float32, `[num_steps, num_envs]`.
    """
    deltas = rewards + gamma * next_values * ~terminations - values
    carry = gamma * gae_lambda * ~episode_ends
    advantages = np.zeros_like(deltas)
    following = np.zeros_like(deltas[0])
    for t in reversed(range(len(deltas))):
        following = deltas[t] + carry[t] * following
        advantages[t] = following
    return advantages.astype(np.float32)


def discounted_sums(
    rewards: np.ndarray, episode_ends: np.ndarray, start: np.ndarray, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Discounted running sums of rewards, R_t = gamma * R_{t-1} + r_t, which start from 0 in each episode.

    Rewards are divided by the standard deviation of these sums, as in OpenAI baselines' `VecNormalize`.

    Args:
        rewards: `[num_steps, num_envs]`.
        episode_ends: bool, true where the step is the last of its episode.
        start: the sums at the end of the rollout before, `[num_envs]`.
        gamma: the discount.

    Returns:
        The sums `[num_steps, num_envs]`, and the sums `[num_envs]` that the next rollout starts from.
    """
    sums, running = np.zeros(rewards.shape), start
    for t in range(len(rewards)):
        sums[t] = running * gamma + rewards[t]
        running = sums[t] * ~episode_ends[t]
    return sums, running


def explained_variance(predictions: np.ndarray, targets: np.ndarray) -> float:
    """1 - var(targets - predictions) / var(targets).

    1 means perfect predictions, 0 means predictions no better than a constant. NaN if the targets do not vary.
    """
    variance = np.var(targets) if len(targets) else 0.0
    return float(1 - np.var(targets - predictions) / variance) if variance > 0 else float("nan")
