"""`Agent`: using a trainer's policy to predict, evaluate and save."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.best_policy import BestPolicy
from rl_lnlstm.evaluation.environments import MAX_ENVS
from rl_lnlstm.evaluation.evaluate import evaluate_policy, gathered, run_episodes, seeds_of_episodes
from rl_lnlstm.evaluation.result import Evaluation
from rl_lnlstm.option_types import Count, checked
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.ppo.setup import GivenEnv, GivenPolicy, make_envs_like_training


class Agent:
    """The methods of `PPO` that use the policy rather than train it."""

    config: PPOConfig
    policy: RecurrentPolicy
    _env: GivenEnv
    _selection: BestPolicy | None
    _resources: contextlib.ExitStack  # closes the environments that were made here

    def __init__(self, policy: GivenPolicy, env: GivenEnv, **config: Any) -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | os.PathLike, env: GivenEnv | None = None, **config: Any) -> Self:
        """Makes a trainer that continues to train a saved policy.

        The optimizer starts from its initial state. Use `load_checkpoint` to resume a run exactly.

        Args:
            path: a policy directory, as `save` writes it, or a run directory.
            env: as for `PPO`.
            **config: fields of `PPOConfig`. Options of the network are taken from the saved policy.

        Raises:
            UserError: `path` holds no policy, or the policy does not fit the environment.
        """
        if env is None:
            raise UserError("env: PPO.load needs an environment to train in; rl_lnlstm.load_policy needs none")
        return cls(load_policy(path), env, **config)

    @property
    def best_policy(self) -> RecurrentPolicy:
        """The policy with the best result in the evaluations of `eval_interval`; `policy` if there were none."""
        return self.policy if self._selection is None else self._selection.best_policy

    def save(self, path: str | os.PathLike) -> None:
        """Saves the best policy (see `best_policy`) in the folder `path`; see `RecurrentPolicy.save`."""
        with self.best_weights():
            self.policy.save(path)

    def best_weights(self) -> contextlib.AbstractContextManager[None]:
        """A context manager: inside its block, `policy` has the weights of the best policy."""
        return contextlib.nullcontext() if self._selection is None else self._selection.best_weights()

    def predict(
        self,
        observation: Any,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> tuple[Any, tuple[np.ndarray, ...]]:
        """The actions of the best policy; see `RecurrentPolicy.predict`."""
        return self.best_policy.predict(observation, state, episode_start, deterministic, action_masks)

    @property
    def observation_space(self) -> gym.Space:
        """The observation space of a single environment."""
        return self.policy.observation_space

    @property
    def action_space(self) -> gym.Space:
        """The action space of a single environment."""
        return self.policy.action_space

    @property
    def previous_reward(self) -> bool:
        """Whether the policy sees the previous reward; pass it in with `rewarded`."""
        return self.policy.previous_reward

    def rewarded(self, state: Any, rewards: Any) -> Any:
        """Adds the last rewards to the policy's state; see `RecurrentPolicy.rewarded`."""
        return self.policy.rewarded(state, rewards)

    def evaluate(
        self,
        n_eval_episodes: int = 10,
        deterministic: bool = True,
        env: GivenEnv | None = None,
        max_steps: int | None = None,
    ) -> tuple[float, float]:
        """Mean and standard deviation of the returns of the best policy.

        It runs the same episodes as `rl_lnlstm.evaluate` with the seed of the run. However, an episode in which an
        environment fails is replaced by another one, as in training.

        Args:
            n_eval_episodes: number of episodes.
            deterministic: take the most probable actions instead of sampled ones.
            env: the environment to evaluate in. None makes environments like the training environments.
            max_steps: limit of an episode's steps, as for `rl_lnlstm.evaluate`.

        Raises:
            UserError: `env` is None, but `PPO` was given an environment object, so it cannot make another one.
        """
        if env is not None:
            with self.best_weights():
                seed, mask_key = self.config.seed, self.config.mask_key
                return evaluate_policy(
                    self.policy, env, n_eval_episodes, deterministic, seed, max_steps=max_steps, mask_key=mask_key
                )
        result = self.evaluation(n_eval_episodes, deterministic, max_steps)
        return result.mean, result.std

    def evaluation(self, n_eval_episodes: int, deterministic: bool = True, max_steps: int | None = None) -> Evaluation:
        """The same as `evaluate`, in new environments, with intervals and the seed of each episode.

        Raises:
            UserError: `PPO` was given an environment object, so it cannot make another one.
        """
        if isinstance(self._env, VectorEnv | gym.Env):
            raise UserError(
                "env: give evaluate an environment of its own, because PPO was given an environment object, cannot "
                "make another one like it, and must not disturb it"
            )
        seed = self.config.seed
        seeds = seeds_of_episodes(seed, checked("n_eval_episodes", n_eval_episodes, Count))
        envs = make_envs_like_training(self._env, self.config, min(MAX_ENVS, len(seeds)), self.policy.observation_space)
        with contextlib.closing(envs), self.best_weights():
            return gathered(run_episodes(self.policy, envs, seeds, seed, deterministic, max_steps), deterministic, seed)

    def close(self) -> None:
        """Closes the environments that the trainer made; environments that you passed in stay open."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
