"""Scores of games whose rewards are clipped for learning: rewards from before the clipping."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from rl_lnlstm.envs.checks import checked_reward
from rl_lnlstm.errors import warn

SCORE = "rl_lnlstm.score"  # infos[SCORE][index] is the reward before it was clipped; only the modules here read it
CLIPPING = "ClipReward", "ClipRewardEnv"  # the classes' names in Gymnasium and in Stable-Baselines3


class Score(gym.Wrapper):
    """A wrapper that keeps the last reward of an environment, inside the wrapper that clips it."""

    reward = 0.0

    def step(self, action: Any) -> Any:
        """Steps the environment and keeps the reward."""
        answer = self.env.step(action)
        self.reward = checked_reward(answer[1])
        return answer


def find_score(env: gym.Env) -> Score | None:
    """Inserts a `Score` inside the innermost wrapper that clips rewards; None if there is no such wrapper."""
    score, layer = None, env
    while isinstance(layer, gym.Wrapper):
        if type(layer).__name__ in CLIPPING:
            score = layer
        layer = layer.env
    if score is None:
        return None
    if not isinstance(score.env, Score):
        score.env = Score(score.env)
    return score.env


def scores(rewards: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
    """The rewards `[num_envs]` from before the clipping, where infos hold them."""
    for told in (infos, infos.get("final_info")):
        if isinstance(told, dict) and SCORE in told:
            rewards = np.where(told[f"_{SCORE}"], told[SCORE], rewards)
    return rewards


def warn_of_clipped_scores(envs: VectorEnv, name: str) -> None:
    """Warns if a wrapper of a vector environment clips rewards, because the original rewards are not accessible."""
    layer = envs
    while isinstance(layer, VectorWrapper):
        if type(layer).__name__ in CLIPPING:
            warn(
                f"{name}: {type(layer).__name__} clips rewards, so the returns that are reported are not the "
                "environment's scores; leave it out and use --clip-rewards (clip_rewards=True) for learning"
            )
        layer = layer.env
