"""`ParallelCollector`: collects rollouts with several workers, each with a share of the environments."""

from __future__ import annotations

from typing import Any

import cloudpickle

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.envs.registry import pickled_registrations
from rl_lnlstm.errors import UserError
from rl_lnlstm.ppo.collectors.crew import Crew, Transport
from rl_lnlstm.ppo.collectors.merge import divide_state, join_states, joined_rollouts
from rl_lnlstm.ppo.collectors.share import shares_of
from rl_lnlstm.ppo.collectors.versions import versions
from rl_lnlstm.ppo.collectors.worker import Setup, WorkerState
from rl_lnlstm.ppo.rollout import Rollout
from rl_lnlstm.ppo.setup import GivenEnv


class ParallelCollector:
    """Collects rollouts with workers; see `Collector`. Rollouts are those that one process would collect.

    Args:
        env: an id, or a function that makes an environment.
        config: the options.
        transport: starts the workers. It is closed together with the collector.
        workers: their number; divides `config.num_envs`.

    Raises:
        UserError: the environment cannot be sent to workers, or as for `make_vec`.
        WorkerFailure: workers cannot be started.
    """

    def __init__(self, env: GivenEnv, config: PPOConfig, transport: Transport, workers: int) -> None:
        self._transport = transport
        setup = pickled(Setup(env, config, pickled_registrations(), versions()), "the environment")
        shares = shares_of(config.num_envs, workers)
        self._crew = Crew(transport, shares, setup, config.worker_timeout, config.max_worker_failures)
        description = self._crew.call("describe")[0]
        self.single_observation_space = description.observation_space
        self.single_action_space = description.action_space
        self.has_time_limit = description.has_time_limit
        self._policy: Any = None

    @property
    def failures(self) -> int:
        """How often an environment failed so far."""
        return sum(state.failures for state in self._states)

    def begin(self, policy: Any) -> None:
        """See `Collector`."""
        self._policy = policy
        self._crew.begin(pickled(policy, "the policy"))

    def collect(self) -> Rollout:
        """See `Collector`."""
        weights = self._transport.share(self._policy.get_weights())
        rollout = joined_rollouts(self._crew.call("collect", self._each(weights)), self._crew.shares)
        if rollout.action_masks is not None:
            self._policy.uses_action_masks = True
        return rollout

    def restart(self, *numbers: int) -> None:
        """See `Collector`."""
        self._crew.call("restart", *map(self._each, numbers))

    def get_state(self) -> dict[str, Any]:
        """See `Collector`."""
        return join_states([state.collector for state in self._states])

    def take_snapshot(self) -> list[bytes]:
        """See `Collector`."""
        snapshots: list[bytes] = []
        for state in self._states:
            if state.snapshot is None:
                raise ValueError(state.problem)
            snapshots += state.snapshot
        return snapshots

    def set_state(self, state: dict[str, Any], snapshot: list[bytes] | None) -> str | None:
        """See `Collector`."""
        shares = self._crew.shares
        total, saved = shares[0].total, len(state["environments"]["_seeds"])
        if saved == total:
            parts = divide_state(state, shares)
        else:  # each worker notices, and continues only counters and random generators
            generators = state["runner"].get("generators", [])
            parts = [
                {
                    "runner": {"generators": generators[share.rows]},
                    "environments": {"failures": 0 if share.first else state["environments"]["failures"], "_seeds": []},
                }
                for share in shares
            ]
        snapshots: list[Any] = self._each(None)
        if snapshot is not None and len(snapshot) == total:
            snapshots = [snapshot[share.rows] for share in shares]
        elif snapshot is not None and len(snapshot) == len(shares):  # of the vector environment of each worker
            snapshots = [[part] for part in snapshot]
        problems = [problem for problem in self._crew.call("set_state", parts, snapshots) if problem is not None]
        if saved != total:
            return f"the checkpoint has {saved} environments, this trainer {total}"
        if snapshot is not None and len(snapshot) not in (total, len(shares)):
            return "their snapshot is of vector environments, which need the same number of workers again"
        return problems[0] if problems else None

    def close(self) -> None:
        """Ends all workers."""
        self._transport.close()

    @property
    def _states(self) -> list[WorkerState]:
        return [state for state in self._crew.states if state is not None]

    def _each(self, value: Any) -> list[Any]:
        return [value] * len(self._crew.shares)


def pickled(value: Any, what: str) -> bytes:
    """Pickles a value for the workers.

    Raises:
        UserError: it cannot be pickled.
    """
    try:
        return cloudpickle.dumps(value)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} cannot be sent to workers, {type(error).__name__}: {error}; let a function make everything that "
            "cannot be pickled, such as locks, files and connections"
        ) from error
