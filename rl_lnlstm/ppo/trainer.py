"""`Trainer`: holds the policy, environments and state of PPO, and saves and resumes them.

The algorithm is in `train.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs import take_snapshot
from rl_lnlstm.envs.autoreset import Episode
from rl_lnlstm.errors import EnvironmentFailure, TrainingFailure, UserError, warn
from rl_lnlstm.evaluation.best_policy import BestPolicy
from rl_lnlstm.evaluation.episodes import check_spaces
from rl_lnlstm.files import folder_path
from rl_lnlstm.option_types import Count, checked
from rl_lnlstm.ppo import checkpoint_files
from rl_lnlstm.ppo.agent import Agent
from rl_lnlstm.ppo.callbacks import Listeners, Metrics
from rl_lnlstm.ppo.collectors.local import LocalCollector
from rl_lnlstm.ppo.collectors.make import make_collector
from rl_lnlstm.ppo.rollout import Rollout
from rl_lnlstm.ppo.setup import (
    GivenEnv,
    GivenPolicy,
    check_makes_more,
    configuration,
    make_environments,
    make_policy,
)
from rl_lnlstm.ppo.update import Updater
from rl_lnlstm.seeding import derived_seed
from rl_lnlstm.spaces_json import space_to_json

EPISODES_IN_MEAN = 100
ENDLESS = 10_000  # steps of each environment without the end of an episode, after which a warning is due
EVALUATED_TOGETHER = 100  # environments at most; acting costs about the same for few as for many


class Schedule(NamedTuple):
    """The first and last frame of a call of `PPO.learn`, and the seconds that it has taken so far."""

    start: int
    target: int
    elapsed: float = 0.0


class Trainer(Agent):
    """A policy, its environments, and the state of its training; see `PPO`.

    Attributes:
        config: the options.
        policy: the policy that is trained, with the weights of the last iteration.
        num_timesteps: frames so far.
        iteration: iterations so far.
        between_iterations: false while an iteration runs, and after an iteration that failed or was interrupted.
    """

    def __init__(self, policy: GivenPolicy, env: GivenEnv, **config: Any) -> None:
        self.config = configuration(policy, env, config)
        self._env, self._resources = env, contextlib.ExitStack()
        try:
            self._collector = make_collector(env, self.config)
            self._resources.callback(self._collector.close)
            self.policy = make_policy(policy, self.config, config, self._collector)
            # A given policy has its own options of the network, and a class may fix some.
            self.config = dataclasses.replace(self.config, **dataclasses.asdict(self.policy.options))
            check_spaces(self.policy, self._collector, learning=True)
            self.policy.env_id = self.config.env_id
            self._selection = self._make_selection() if self.config.eval_interval else None
            self.num_timesteps = self.iteration = 0
            self.between_iterations = True
            self._restarts, self._interrupted = 0, False
            self._schedule = Schedule(0, self.config.total_timesteps)
            self._resumed = False
            self._collector.begin(self.policy)
        except BaseException:
            self.close()
            raise
        self._discounted_sums = np.zeros(self.config.num_envs)
        self._episodes: deque[Episode] = deque(maxlen=EPISODES_IN_MEAN)
        shuffler = np.random.default_rng(derived_seed(self.config.seed, "shuffling"))
        self._updater = Updater(self.policy, self.config, shuffler)
        self._aborted_rollouts = 0  # in a row
        self._compiled = False  # the update
        self._warned_of_endless = False
        self._listeners = Listeners(None)

    @property
    def envs(self) -> VectorEnv:
        """The training environments.

        Raises:
            UserError: they are not in this process, because the run has workers.
        """
        if not isinstance(self._collector, LocalCollector):
            raise UserError("the training environments are in the workers of the run, and not in this process")
        return self._collector.envs

    def _make_selection(self) -> BestPolicy:
        config = self.config
        needs = f"eval_interval is {config.eval_interval}, but evaluation needs environments of its own"
        check_makes_more(self._env, needs)
        # With async, each environment has a process of its own, so limit their number.
        together = config.num_envs if config.vectorization == "async" else EVALUATED_TOGETHER
        envs = make_environments(self._env, config, min(config.n_eval_episodes, together))
        self._resources.callback(envs.close)
        return BestPolicy(self.policy, envs, config.n_eval_episodes, derived_seed(config.seed, "selection"))

    @property
    def target(self) -> int:
        """The number of frames at which the call of `learn` ends. It still finishes the rollout that reaches it."""
        return self._schedule.target

    @property
    def finished(self) -> bool:
        """Whether the last call of `learn`, or the call that a loaded checkpoint continues, is complete."""
        return self.num_timesteps >= self._schedule.target

    def save_checkpoint(self, path: str | os.PathLike, env_snapshot: bool = True) -> None:
        """Writes everything that training depends on to the folder `path`, for `load_checkpoint`.

        Call it between iterations: in a callback of `learn`, or after `learn`. Writing is atomic: the folder never
        holds a partial checkpoint. A `RunWarning` names environments that are left out because they cannot be pickled.

        Args:
            path: the folder. A checkpoint in it is replaced.
            env_snapshot: include the environments, pickled.

        Raises:
            UserError: it was called in the middle of an iteration, or the folder holds something else.
            OSError: the disk is full or cannot be written.
        """
        folder = folder_path(path)
        if not self.between_iterations:
            if not self._interrupted:
                raise UserError(
                    f"a checkpoint is written between iterations, but iteration {self.iteration + 1} has begun; if it "
                    "failed, call learn or load_checkpoint first"
                )
            self._begin_new_episodes()
        training = self._collector.get_state()
        environments = {"training": training["environments"]}
        takers: dict[str, Callable[[], list[bytes]]] = {"training": self._collector.take_snapshot}
        if self._selection is not None:
            environments["evaluation"] = self._selection.envs.get_state()  # type: ignore[attr-defined]
            takers["evaluation"] = functools.partial(take_snapshot, self._selection.envs)
        tree = {
            "spaces": self._spaces(),
            "iteration": self.iteration,
            "num_timesteps": self.num_timesteps,
            "schedule": self._schedule,
            "weights": self.policy.get_weights(),
            "optimizer": self._updater.optimizer.get_state(),
            "generators": [generator.bit_generator.state for generator in self._generators()],
            "runner": training["runner"],
            "selection": None if self._selection is None else self._selection.get_state(),
            "environments": environments,
            "in_a_row": (self._aborted_rollouts, self._updater.skipped_updates),
            "discounted_sums": self._discounted_sums,
            "episodes": list(self._episodes),
        }
        snapshots = checkpoint_files.take_snapshots(takers) if env_snapshot else {}
        checkpoint_files.write(folder, tree, snapshots)

    def load_checkpoint(
        self,
        checkpoint: str | os.PathLike | checkpoint_files.TrainingState,
        total_timesteps: int | None = None,
        env_snapshot: bool = True,
    ) -> None:
        """Continues from a checkpoint of a trainer with the same options; call `learn()` next.

        If the checkpoint holds the environments, training continues as if it had never been interrupted. Otherwise, or
        if `num_envs` differs, new episodes begin, and a `RunWarning` says so.

        Args:
            checkpoint: the folder that `save_checkpoint` wrote, or the `TrainingState` read from it.
            total_timesteps: the new total of the interrupted call of `learn`. Schedules are recomputed for it. None
                keeps the old total.
            env_snapshot: restore the environments. This unpickles them and can execute code, so use it only for
                checkpoints that you wrote yourself.

        Raises:
            UserError: there is no checkpoint, it is damaged, or its trainer differs from this one.
        """
        total_timesteps = checked("total_timesteps", total_timesteps, Count | None)
        state = checkpoint
        if not isinstance(state, checkpoint_files.TrainingState):
            state = checkpoint_files.read(folder_path(state))
        tree = state.tree
        self._check_is_alike(tree)
        self.policy.set_weights(tree["weights"])
        self._updater.optimizer.set_state(tree["optimizer"])
        for generator, value in zip(self._generators(), tree["generators"], strict=True):
            generator.bit_generator.state = value
        self.iteration, self.num_timesteps = tree["iteration"], tree["num_timesteps"]
        self._episodes = deque((Episode(*episode) for episode in tree["episodes"]), maxlen=EPISODES_IN_MEAN)
        self._aborted_rollouts, self._updater.skipped_updates = tree["in_a_row"]
        if self._selection is not None and tree["selection"] is not None:
            self._selection.set_state(tree["selection"])
        self._restore_environments(state, env_snapshot)
        start, target, elapsed = tree["schedule"]
        self._schedule = Schedule(start, target if total_timesteps is None else start + total_timesteps, elapsed)
        self._resumed = self.between_iterations = True
        self._interrupted = False
        if tree["runner"]["stepper"]["action_masks"] is not None:
            self.policy.uses_action_masks = True

    def _check_is_alike(self, tree: Any) -> None:
        if tree["spaces"] != self._spaces():
            raise UserError(
                f"the checkpoint was written for spaces {tree['spaces']}, this trainer has {self._spaces()}"
            )
        checkpoint_files.check_alike("weights", tree["weights"], self.policy.get_weights())
        checkpoint_files.check_alike("optimizer variables", tree["optimizer"], self._updater.optimizer.get_state())
        saved, own = tree["runner"]["state"], self.policy.initial_state(1)
        checkpoint_files.check_alike("state", [part[:1] for part in saved], [part[:1] for part in own])

    def _restore_environments(self, state: checkpoint_files.TrainingState, env_snapshot: bool) -> None:
        """Restores the environments or, where that is not possible, begins new episodes and warns."""
        tree = state.tree
        states, snapshots = tree["environments"], state.unpickled_environments() if env_snapshot else {}
        left_out = {checkpoint_files.NO_SNAPSHOT: "env_snapshot=False does not restore their snapshot"}
        reasons = left_out if state.environments is not None and not env_snapshot else {}
        training = {"runner": tree["runner"], "environments": states["training"]}
        if len(self._discounted_sums) == len(tree["discounted_sums"]):
            self._discounted_sums = tree["discounted_sums"]
        if problem := self._collector.set_state(training, snapshots.get("training")):
            warn(f"the environments for training begin new episodes: {reasons.get(problem, problem)}")
            self._begin_new_episodes()
        if self._selection is None or "evaluation" not in states:  # the checkpoint's trainer had no evaluations
            return
        evaluation = states["evaluation"], snapshots.get("evaluation")
        if problem := checkpoint_files.restore_environments(self._selection.envs, *evaluation):
            warn(f"the environments for evaluation begin new episodes: {reasons.get(problem, problem)}")
            self._selection.restart(derived_seed(self.config.seed, "selection", self.num_timesteps))

    def _begin_new_episodes(self) -> None:
        """Begins new training episodes, with seeds that the run has not used before."""
        self._restarts += 1
        self._collector.restart(self.num_timesteps, self._restarts)
        self._discounted_sums = np.zeros(self.config.num_envs)
        self.between_iterations, self._interrupted = True, False

    def _spaces(self) -> list[Any]:
        return [space_to_json(space) for space in (self.policy.observation_space, self.policy.action_space)]

    def _generators(self) -> tuple[np.random.Generator, ...]:
        return self._updater.generator, self.policy.generator

    def _evaluated(self) -> Metrics:
        """Evaluates the policy if it is time to, and returns the metrics."""
        if self._selection is None or not (self.iteration % self.config.eval_interval == 0 or self.finished):
            return {}
        self._listeners.phase("evaluating")
        self._selection.evaluate()
        return {"eval/mean_reward": self._selection.mean_reward}

    def _warn_if_no_episode_ends(self) -> None:
        """Warns once about a missing time limit if no episode ends for a long time."""
        if self._episodes or self._warned_of_endless or self._collector.has_time_limit:
            return
        steps = self.num_timesteps // self.config.num_envs
        if steps >= ENDLESS or self.finished:
            self._warned_of_endless = True
            warn(
                f"no episode has ended after {steps:,} steps of each environment, and {self.config.env_id} has no time "
                "limit: gymnasium.wrappers.TimeLimit adds one (--wrappers 'TimeLimit(1000)')"
            )

    def _check_aborted_rollouts(self, rollout: Rollout, failed: bool) -> None:
        # Without a failure, a short rollout may also hold only steps that begin episodes.
        self._aborted_rollouts = 0 if rollout.valid.any() else self._aborted_rollouts + failed
        if self._aborted_rollouts > self.config.max_env_failures:
            raise EnvironmentFailure(
                f"{self.config.env_id} failed in every episode of the last {self._aborted_rollouts} rollouts: "
                f"max_env_failures={self.config.max_env_failures} such rollouts in a row are allowed"
            )

    def _check_skipped_updates(self) -> None:
        if self._updater.skipped_updates > self.config.max_skipped_updates:
            raise TrainingFailure(
                f"no update of the last {self._updater.skipped_updates} changed the weights, because these were not "
                f"finite: {self._updater.not_finite}; "
                f"max_skipped_updates={self.config.max_skipped_updates} such updates in a row are allowed"
            )
