"""`LocalCollector`: collects rollouts in environments of this process."""

from __future__ import annotations

import inspect
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.envs import take_snapshot
from rl_lnlstm.envs.faults import Numbering
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.episodes import has_time_limit
from rl_lnlstm.ppo import checkpoint_files
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.ppo.collectors.whole_batch import as_in_whole_batch
from rl_lnlstm.ppo.noise import acting_generators
from rl_lnlstm.ppo.rollout import Rollout
from rl_lnlstm.ppo.setup import GivenEnv, make_environments
from rl_lnlstm.seeding import derived_seed


class LocalCollector:
    """Collects rollouts in environments of this process, all of a run or a share of them.

    Each environment has the seeds and the random generator of its number in the run. So it makes the same rollout in
    every share.

    Args:
        env: as for `PPO`.
        config: the options.
        share: which environments; None for all.

    Attributes:
        envs: the environments.

    Raises:
        UserError, EnvironmentFailure: as for `make_vec`.
    """

    def __init__(self, env: GivenEnv, config: PPOConfig, share: Share | None = None) -> None:
        self._config, self._share = config, share or Share(0, config.num_envs, config.num_envs)
        self._given = isinstance(env, VectorEnv | gym.Env)
        self.envs = make_environments(env, config, self._share.count, Numbering(self._share.first, self._share.total))
        if self.envs.num_envs != self._share.count:
            self.close()
            raise UserError(f"num_envs is {config.num_envs}, but the VectorEnv has {self.envs.num_envs}")
        self.single_observation_space = self.envs.single_observation_space
        self.single_action_space = self.envs.single_action_space
        self.has_time_limit = has_time_limit(self.envs)

    @property
    def failures(self) -> int:
        """How often an environment failed so far."""
        return self.envs.failures  # type: ignore[attr-defined]

    def begin(self, policy: Any) -> None:
        """Begins the first episodes. `policy` acts from now on."""
        config = self._config
        if self._share.count < self._share.total and "noise" not in inspect.signature(policy.step).parameters:
            raise UserError(
                f"step of {type(policy).__name__} takes no noise, so all workers would explore alike: let it take "
                "noise=None, and pass it on"
            )
        self._runner = RolloutRunner(
            as_in_whole_batch(policy, self._share),
            self.envs,
            config.num_steps,
            config.bptt_steps,
            self._seeds(),
            config.sde_sample_freq if policy.options.std == "gsde" else None,
            acting_generators(config.seed, self._share.numbers),
        )

    def collect(self) -> Rollout:
        """Collects the next rollout."""
        return self._runner.run()

    def restart(self, *numbers: int) -> None:
        """Begins new episodes. Other `numbers` give other seeds."""
        self._runner.restart(self._seeds(*numbers))

    def get_state(self) -> dict[str, Any]:
        """Returns all state except the policy and the environments, for `set_state`."""
        return {"runner": self._runner.get_state(), "environments": self.envs.get_state()}  # type: ignore[attr-defined]

    def take_snapshot(self) -> list[bytes]:
        """Pickles the environments.

        Raises:
            ValueError: one cannot be pickled; the message says why.
        """
        return take_snapshot(self.envs)

    def set_state(self, state: dict[str, Any], snapshot: list[bytes] | None) -> str | None:
        """Continues from a state and a snapshot.

        Returns:
            None; or the reason why the environments cannot be restored. New episodes must begin then.
        """
        if len(state["environments"]["_seeds"]) == self.envs.num_envs:
            self._runner.set_state(state["runner"])
        else:
            self._runner.continue_sampling(state["runner"])
        return checkpoint_files.restore_environments(self.envs, state["environments"], snapshot)

    def close(self) -> None:
        """Closes the environments, unless the user gave them."""
        if not self._given:
            self.envs.close()

    def _seeds(self, *numbers: int) -> int | list[int]:
        """Seeds for a reset: a list with one for each environment if they accept lists, otherwise one seed.

        Vector environments take a single seed s, and seed environment i with s + i.
        """
        seed = self._config.seed
        if isinstance(self.envs.unwrapped, SyncVectorEnv | AsyncVectorEnv):
            return [derived_seed(seed, "environments", *numbers, number) for number in self._share.numbers]
        return derived_seed(seed, "environments", *numbers) + self._share.first
