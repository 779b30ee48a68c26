"""`Trainer`: what PPO trains and acts in, and how it is saved and resumed. The algorithm is in `train.py`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.config import AUTO, make_config
from rl_lnlstm.envs import make_vec, restore_snapshot, take_snapshot
from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.evaluation.best_policy import BestPolicy
from rl_lnlstm.evaluation.episodes import check_spaces
from rl_lnlstm.policies import POLICIES, RecurrentPolicy, policy_for
from rl_lnlstm.ppo import state as training_state
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.ppo.update import Updater
from rl_lnlstm.spaces import space_to_json

EPISODES_IN_MEAN = 100
EVALUATED_TOGETHER = 100  # environments: acting costs about the same for few as for many


class Schedule(NamedTuple):
    """What a call of `PPO.learn` trains over, in frames, and the seconds that it has taken."""

    start: int
    target: int
    elapsed: float = 0.0


class Trainer:
    """A policy, its environments, and the state of its training."""

    def __init__(
        self, policy: str | RecurrentPolicy, env: str | Callable[..., gym.Env] | VectorEnv, **config: Any
    ) -> None:
        if isinstance(env, VectorEnv):
            config.setdefault("num_envs", env.num_envs)
        # Not every spec is Gymnasium's: envpool's has no id.
        known = getattr(getattr(env, "spec", None), "id", None) or getattr(env, "__name__", str(env))
        config["env_id"] = env if isinstance(env, str) else known
        if isinstance(policy, str):
            config["policy"] = policy
        self.config = make_config(**config)
        self.envs = self._make_envs(env, self.config.num_envs, self.config.vectorization)
        if self.envs.num_envs != self.config.num_envs:
            raise UserError(f"num_envs is {self.config.num_envs}, but the VectorEnv has {self.envs.num_envs}")
        self.policy = policy if isinstance(policy, RecurrentPolicy) else self._make_policy()
        check_spaces(self.policy, self.envs)
        self.policy.env_id = self.config.env_id

        self._selection = self._make_selection(env) if self.config.eval_interval else None

        self.num_timesteps = 0
        self.iteration = 0
        self.between_iterations = True
        self._schedule = Schedule(0, self.config.total_timesteps)
        self._resumed = False
        self._runner = RolloutRunner(
            self.policy,
            self.envs,
            self.config.num_steps,
            self.config.bptt_steps,
            self.config.seed,
            self.config.sde_sample_freq if self.policy.options.std == "gsde" else None,
        )
        self._discounted_sums = np.zeros(self.config.num_envs)
        self._episodes: deque[Episode] = deque(maxlen=EPISODES_IN_MEAN)
        self._updater = Updater(self.policy, self.config, np.random.default_rng(self.config.seed))
        self._aborted_rollouts = 0  # in a row

    def _make_envs(self, env: str | Callable[..., gym.Env] | VectorEnv, num_envs: int, vectorization: str) -> VectorEnv:
        config = self.config
        if isinstance(env, VectorEnv) and (config.wrappers or config.env_kwargs):
            raise UserError("wrappers and env_kwargs are for environments that are made here, got a VectorEnv")
        return make_vec(
            env,
            num_envs,
            vectorization=vectorization,
            wrappers=config.wrappers,
            env_kwargs=config.env_kwargs,
            info_keys=config.info_keys,
            mask_key=config.mask_key,
            **config.fault_tolerance,
        )

    def _make_policy(self) -> RecurrentPolicy:
        name, observation_space = self.config.policy, self.envs.single_observation_space
        if name != AUTO and name not in POLICIES:
            raise UserError(f"policy must be {AUTO} or one of {', '.join(POLICIES)}, got {name!r}")
        policy_class = policy_for(observation_space) if name == AUTO else POLICIES[name]
        return policy_class(
            observation_space,
            self.envs.single_action_space,
            seed=self.config.seed,
            **self.config.policy_options,
        )

    def _make_selection(self, env: str | Callable[..., gym.Env] | VectorEnv) -> BestPolicy:
        config = self.config
        if isinstance(env, VectorEnv):
            raise UserError(
                f"eval_interval is {config.eval_interval}, but evaluation needs environments of its own: expected env "
                "to be an id or a function that makes an environment, got a VectorEnv"
            )
        # Environments that have processes of their own may need them, of which there should not be so many.
        together = config.num_envs if config.vectorization == "async" else EVALUATED_TOGETHER
        envs = self._make_envs(env, min(config.n_eval_episodes, together), config.vectorization)
        return BestPolicy(self.policy, envs, config.n_eval_episodes, config.seed + config.num_envs)

    @property
    def finished(self) -> bool:
        """Whether the last call of `learn`, or the one that a loaded checkpoint interrupted, has all its frames."""
        return self.num_timesteps >= self._schedule.target

    def save(self, path: str | os.PathLike) -> None:
        """Saves the policy; see `RecurrentPolicy.save`."""
        self.policy.save(path)

    def save_checkpoint(self, path: str | os.PathLike, env_snapshot: bool = True) -> None:
        """Writes all that training depends on in the folder `path`, for `load_checkpoint`.

        To be called between iterations: by a callback of `learn`, or after it. The folder is whole, or as before, at
        any instant. Environments that cannot be pickled are named in a `RunWarning`, and left out.

        Args:
            path: the folder, which is replaced if it is there.
            env_snapshot: include the environments, pickled.

        Raises:
            UserError: an iteration was begun and not ended.
            OSError: the disk does not take it.
        """
        if not self.between_iterations:
            raise UserError(f"a checkpoint is written between iterations, but iteration {self.iteration + 1} has begun")
        tree = {
            "spaces": self._spaces(),
            "iteration": self.iteration,
            "num_timesteps": self.num_timesteps,
            "schedule": self._schedule,
            "weights": self.policy.get_weights(),
            "optimizer": [variable.numpy() for variable in self._updater.optimizer.variables],
            "generators": [generator.bit_generator.state for generator in self._generators()],
            "runner": self._runner.get_state(),
            "selection": None if self._selection is None else self._selection.get_state(),
            "environments": {
                purpose: envs.get_state()  # type: ignore[attr-defined]
                for purpose, envs in self._environments().items()
            },
            "in_a_row": (self._aborted_rollouts, self._updater.fruitless),
            "discounted_sums": self._discounted_sums,
            "episodes": list(self._episodes),
        }
        training_state.write(Path(path), tree, self._take_snapshots() if env_snapshot else {})

    def load_checkpoint(
        self,
        checkpoint: str | os.PathLike | training_state.TrainingState,
        total_timesteps: int | None = None,
        env_snapshot: bool = True,
    ) -> None:
        """Goes on from a checkpoint of a trainer that was built alike; call `learn()` next.

        With the environments in it, training goes on exactly as if it had never been interrupted. Otherwise the
        environments begin new episodes, and a `RunWarning` says so.

        Args:
            checkpoint: the folder that `save_checkpoint` wrote, or what was read from it.
            total_timesteps: frames that the interrupted call of `learn` is to train for, if not those that it was asked
                for; what is annealed then goes on as if it had been asked for these from the beginning.
            env_snapshot: restore the environments, by unpickling them: for checkpoints that one wrote oneself.

        Raises:
            UserError: there is no checkpoint, it is damaged, or of a trainer that differs from this one.
        """
        state = checkpoint
        if not isinstance(state, training_state.TrainingState):
            state = training_state.read(Path(state))
        tree = state.tree
        if tree["spaces"] != self._spaces():
            raise UserError(
                f"the checkpoint was written for spaces {tree['spaces']}, this trainer has {self._spaces()}"
            )
        if (tree["selection"] is None) != (self._selection is None):
            raise UserError("eval_interval must be 0 in both the checkpoint's trainer and this one, or in neither")
        optimizer = [variable.numpy() for variable in self._updater.optimizer.variables]
        for what, saved, own in (
            ("weights", tree["weights"], self.policy.get_weights()),
            ("optimizer variables", tree["optimizer"], optimizer),
            ("state", [*tree["runner"]["state"]], [*self._runner.get_state()["state"]]),
        ):
            got, expected = ([(part.shape, str(part.dtype)) for part in parts] for parts in (saved, own))
            if got != expected:
                raise UserError(f"the checkpoint is of another trainer: its {what} are {got}, this one's {expected}")

        self.policy.set_weights(tree["weights"])
        for variable, value in zip(self._updater.optimizer.variables, tree["optimizer"], strict=True):
            variable.assign(value)
        for generator, value in zip(self._generators(), tree["generators"], strict=True):
            generator.bit_generator.state = value
        self.iteration, self.num_timesteps = tree["iteration"], tree["num_timesteps"]
        self._discounted_sums = tree["discounted_sums"]
        self._episodes = deque((Episode(*episode) for episode in tree["episodes"]), maxlen=EPISODES_IN_MEAN)
        self._runner.set_state(tree["runner"])
        if self._selection is not None:
            self._selection.set_state(tree["selection"])
        self._aborted_rollouts, self._updater.fruitless = tree["in_a_row"]
        for purpose, envs in self._environments().items():
            envs.set_state(tree["environments"][purpose])  # type: ignore[attr-defined]
        self._restore_snapshots(state.unpickled_environments() if env_snapshot else {})
        start, target, elapsed = tree["schedule"]
        self._schedule = Schedule(start, target if total_timesteps is None else start + total_timesteps, elapsed)
        self._resumed = total_timesteps is not None or not self.finished
        self.between_iterations = True

    def _spaces(self) -> list[Any]:
        return [space_to_json(space) for space in (self.policy.observation_space, self.policy.action_space)]

    def _generators(self) -> tuple[np.random.Generator, ...]:
        return self._updater.generator, self.policy.generator

    def _environments(self) -> dict[str, VectorEnv]:
        evaluation = {} if self._selection is None else {"evaluation": self._selection.envs}
        return {"training": self.envs, **evaluation}

    def _take_snapshots(self) -> training_state.Environments:
        snapshots = {}
        for purpose, envs in self._environments().items():
            try:
                snapshots[purpose] = take_snapshot(envs)
            except ValueError as error:
                warn(
                    f"checkpoints are without the environments for {purpose}, and who resumes from one begins new "
                    f"episodes: {error}",
                )
        return snapshots

    def _restore_snapshots(self, snapshots: training_state.Environments) -> None:
        for purpose, envs in self._environments().items():
            reason = "the checkpoint is without their snapshot"
            if purpose in snapshots:
                try:
                    restore_snapshot(envs, snapshots[purpose])
                    continue
                except ValueError as error:
                    reason = f"their snapshot cannot be restored, {error}"
            warn(f"the environments for {purpose} begin new episodes: {reason}")
            # Not the seed of the run, which would show again what was seen at its beginning.
            seed = int(np.random.SeedSequence((self.config.seed, self.num_timesteps)).generate_state(1)[0])
            if envs is self.envs:
                self._runner.restart(seed)
            elif self._selection is not None:
                self._selection.restart(seed)
