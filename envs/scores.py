"""Scores of games: rewards from before a wrapper clipped them, and warnings where scores cannot be known."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv, VectorWrapper

from rl_lnlstm.envs.checks import checked_reward, checked_rewards
from rl_lnlstm.envs.wrappers import layers
from rl_lnlstm.errors import warn

SCORE = "rl_lnlstm.score"  # infos[SCORE][index] is the reward before it was changed; only the modules here read it
VECTOR_SCORE = "rl_lnlstm.vector_score"  # the same for a wrapper of a vector environment
# The classes' names in Gymnasium and in Stable-Baselines3. They change rewards for learning.
CLIPPING = "ClipReward", "ClipRewardEnv", "TransformReward"
LIVES = "terminal_on_life_loss"  # attribute of Gymnasium's AtariPreprocessing


class Score(gym.Wrapper):
    """A wrapper that adds up the rewards of an environment, inside the wrapper that clips them.

    Call `begin` before you step the outermost wrapper, because wrappers may step several times or not at all.
    """

    reward = 0.0

    def begin(self) -> None:
        """Sets the reward to 0, before the outermost wrapper steps."""
        self.reward = 0.0

    def step(self, action: Any) -> Any:
        """Steps the environment and adds the reward."""
        answer = self.env.step(action)
        self.reward += checked_reward(answer[1])
        return answer


class VectorScore(VectorWrapper):
    """The same for a vector environment: it adds up rewards `[num_envs]`."""

    def __init__(self, env: VectorEnv) -> None:
        super().__init__(env)
        self.begin()

    def begin(self) -> None:
        """Sets the rewards to 0, before the outermost wrapper steps."""
        self.rewards = np.zeros(self.env.num_envs)

    def __getattr__(self, attribute: str) -> Any:
        # Other code that looks into the vector environment still finds its attributes, such as `envs`.
        if attribute.startswith("_") or attribute == "env":
            raise AttributeError(attribute)
        return getattr(self.env, attribute)

    def step(self, actions: Any) -> Any:
        """Steps the environments and adds the rewards."""
        answer = self.env.step(actions)
        self.rewards = self.rewards + checked_rewards(answer[1], self.num_envs)
        return answer


def insert_score_wrapper(env: gym.Env) -> Score | None:
    """Inserts a `Score` inside the innermost wrapper that changes rewards; None if there is no such wrapper."""
    return _insert(env, gym.Wrapper, Score)


def insert_vector_score_wrapper(envs: VectorEnv) -> VectorScore | None:
    """The same for the wrappers of a vector environment."""
    return _insert(envs, VectorWrapper, VectorScore)


def _insert(env: Any, wrapper: type, score: type) -> Any:
    clipping = [layer for layer in layers(env, wrapper) if type(layer).__name__ in CLIPPING]
    if not clipping:
        return None
    innermost: Any = clipping[-1]
    if not isinstance(innermost.env, score):
        innermost.env = score(innermost.env)
    return innermost.env


def scores(rewards: np.ndarray, infos: dict[str, Any]) -> np.ndarray:
    """The rewards `[num_envs]` from before a wrapper changed them, where infos hold them."""
    rewards = infos.get(VECTOR_SCORE, rewards)
    for found in (infos, infos.get("final_info")):
        if isinstance(found, dict) and SCORE in found:
            rewards = np.where(found[f"_{SCORE}"], found[SCORE], rewards)
    return rewards


def warn_of_lives(env: gym.Env, name: str) -> None:
    """Warns if a wrapper ends an episode with each life, because reports are then not of whole games."""
    for layer in layers(env):
        if vars(layer).get(LIVES) or type(layer).__name__ == "EpisodicLifeEnv":
            _warn_of_lives(name, type(layer).__name__)


def warn_of_vector_scores(envs: VectorEnv, name: str) -> None:
    """Warns if a vector environment clips rewards itself, or ends episodes with lives."""
    *_, innermost = layers(envs, VectorWrapper)
    if isinstance(innermost, SyncVectorEnv):
        for env in innermost.envs:
            warn_of_lives(env, name)
    elif isinstance(innermost, AsyncVectorEnv):
        # Its environments are in other processes, which nothing can be inserted in. But their texts name the wrappers.
        may_change = any(innermost.call("has_wrapper_attr", "reward"))  # a method of wrappers that change rewards
        texts = str(innermost.call("__str__")) if may_change else ""
        if clipping := [kind for kind in CLIPPING if f"<{kind}<" in texts]:
            warn(
                f"{name}: {clipping[0]} changes rewards in the processes of an AsyncVectorEnv, so the returns that are "
                "reported are sums of changed rewards; give the id, or a function that makes one environment, with "
                'vectorization="async", for the returns from before'
            )
        if all(innermost.call("has_wrapper_attr", LIVES)) and any(innermost.get_attr(LIVES)):
            _warn_of_lives(name, "AtariPreprocessing")
    elif type(innermost).__name__ == "AtariVectorEnv":
        kwargs = getattr(innermost.spec, "kwargs", {})
        if kwargs.get("reward_clipping", True):
            warn(
                f"{name}: Atari's vector implementation clips rewards unless it is made with reward_clipping=False, "
                "and the returns that are reported are sums of its rewards; use --clip-rewards (clip_rewards=True) for "
                "learning"
            )
        if kwargs.get("episodic_life"):
            _warn_of_lives(name, "episodic_life=True")


def _warn_of_lives(name: str, what: str) -> None:
    warn(
        f"{name}: {what} ends an episode with each life, so the returns that are reported are of lives and not of "
        f"whole games; leave {LIVES} and episodic_life off for the scores of games"
    )
