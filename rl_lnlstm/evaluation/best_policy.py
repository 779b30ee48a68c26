"""`BestPolicy`: evaluates a policy during training, and keeps the best weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.evaluation.evaluate import evaluate_policy
from rl_lnlstm.policies import RecurrentPolicy


class BestPolicy:
    """Keeps the weights with which a policy did best when it took its most probable actions.

    Each evaluation runs new episodes. If all ran the same ones, the choice would fit these.

    Args:
        policy: the policy that is trained.
        envs: the environments for evaluations. Each evaluation resets them.
        n_eval_episodes: number of episodes of an evaluation.
        seed: seed of the first reset.

    Attributes:
        mean_reward: the mean return of the last evaluation; NaN before the first one.
    """

    _STATE = ("mean_reward", "_seed", "_best", "_weights")

    def __init__(self, policy: RecurrentPolicy, envs: VectorEnv, n_eval_episodes: int, seed: int) -> None:
        self.policy, self.envs, self.n_eval_episodes = policy, envs, n_eval_episodes
        self.mean_reward = float("nan")
        self._seed: int | None = seed
        self._best = -float("inf")
        self._weights: list[np.ndarray] = []
        self._copy: Any = None
        self._copied: list[np.ndarray] | None = None  # the weights that the copy has

    def evaluate(self) -> None:
        """Evaluates the policy, and keeps its weights if they are at least as good as the best ones so far."""
        self.mean_reward, _ = evaluate_policy(self.policy, self.envs, self.n_eval_episodes, seed=self._seed)
        self._seed = None
        if self.mean_reward >= self._best:
            self._best, self._weights = self.mean_reward, self.policy.get_weights()

    @property
    def best_policy(self) -> RecurrentPolicy:
        """A copy of the policy with the best weights; the policy itself before the first evaluation."""
        if not self._weights:
            return self.policy
        if self._copied is not self._weights:
            self._copy = copy.deepcopy(self.policy) if self._copy is None else self._copy
            self._copy.set_weights(self._weights)
            self._copied = self._weights
        return self._copy

    @contextlib.contextmanager
    def best_weights(self) -> Iterator[None]:
        """A context manager: inside its block, the policy has the best weights, if there was an evaluation."""
        if not self._weights:
            yield
            return
        live = self.policy.get_weights()
        try:
            self.policy.set_weights(self._weights)
            yield
        finally:
            self.policy.set_weights(live)

    def restart(self, seed: int) -> None:
        """Makes the next evaluation begin with a reset of all environments with `seed`."""
        self._seed = seed

    def get_state(self) -> dict[str, Any]:
        """Returns all state except the policy and the environments, for `set_state`."""
        return {name: getattr(self, name) for name in self._STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called. Policy and environments must be as they were then."""
        for name in self._STATE:
            setattr(self, name, state[name])
