"""`RayTransport`: workers as actors of Ray."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any

from rl_lnlstm.errors import UserError
from rl_lnlstm.ppo.collectors.crew import WorkerLost
from rl_lnlstm.ppo.collectors.ray_cluster import Cluster, connect
from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.ppo.collectors.worker import Answer

KILL_SECONDS = 10.0  # that killing a process on another machine may take


class _Actor:
    """A worker: its actor, and where its process is, as soon as that is known."""

    def __init__(self, actor: Any, where: Any, is_extra: bool) -> None:
        self.actor, self.where = actor, where
        self.is_extra = is_extra  # it was started although no CPU was left


class RayTransport:
    """Starts workers as actors of Ray.

    Ray neither restarts actors nor repeats calls here, because both would silently lose the state of environments.

    Args:
        address: the option `ray`.
        num_envs: number of environments.
        workers: the option `workers`.

    Attributes:
        workers: number of workers to start.

    Raises:
        UserError: Ray is not installed, the cluster does not answer, or it has too few CPUs.
    """

    def __init__(self, address: str, num_envs: int, workers: int | None) -> None:
        self._cluster: Cluster = connect(address)
        self._actors: list[_Actor] = []
        try:
            self.workers = self._cluster.number_of_workers(num_envs, workers)
        except BaseException:
            self._cluster.disconnect()
            raise
        from rl_lnlstm.ppo.collectors.ray_actor import RayWorker

        self._ray = self._cluster.ray
        self._kind = self._ray.remote(RayWorker)

    def share(self, value: Any) -> Any:
        """See `Transport`."""
        return self._ray.put(value)

    def start(self, share: Share) -> _Actor:
        """See `Transport`."""
        is_extra = self._cluster.is_shared and not self._has_room()
        options: dict[str, Any] = {"num_cpus": 1 if self._cluster.is_shared and not is_extra else 0}
        if self._cluster.is_shared:
            options["scheduling_strategy"] = "SPREAD"
        actor = self._kind.options(max_restarts=0, max_task_retries=0, **options).remote(share)
        worker = _Actor(actor, actor.where.remote(), is_extra)
        self._actors.append(worker)
        return worker

    def submit(self, worker: _Actor, arguments: Sequence[Any]) -> Any:
        """See `Transport`."""
        return worker.actor.call.remote(*arguments)

    def ready(self, futures: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Transport`."""
        first, _ = self._ray.wait(list(futures), num_returns=1, timeout=seconds)
        return first

    def result(self, future: Any) -> Answer:
        """See `Transport`."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(future)
        except errors.RayTaskError as error:  # outside of `Worker.call`, which catches everything
            raise UserError(f"a worker cannot start: {error.cause or error}") from error
        except (errors.RuntimeEnvSetupError, errors.ActorUnschedulableError) as error:
            raise UserError(f"a worker cannot start: {error}") from error
        except errors.RayError as error:
            if "creation task" in str(error):
                raise UserError(f"a worker cannot start: {str(error).strip().splitlines()[-1]}") from error
            raise WorkerLost(f"was lost ({type(error).__name__}: {_first_sentence(error)})") from error

    def misplaced(self, worker: _Actor) -> bool:
        """Whether it shares a CPU with another worker, but a CPU is free: a machine has joined since."""
        return worker.is_extra and self._has_room()

    def stranded(self, worker: _Actor) -> bool:
        """Whether it waits for a CPU that the cluster has lost since."""
        waits = not self._ray.wait([worker.where], timeout=0)[0]
        return waits and not worker.is_extra and self._cluster.is_shared and self._cluster.cpus() < self._claimed()

    def kill(self, worker: _Actor) -> None:
        """See `Transport`."""
        if worker not in self._actors:  # Ctrl-C interrupted its replacement
            return
        self._actors.remove(worker)
        ray = self._ray
        # Ray asks a process to end. One that is frozen does not hear it.
        with contextlib.suppress(Exception):
            if ray.wait([worker.where], timeout=0)[0]:
                node, process = ray.get(worker.where)
                self._kill_process(node, process)
        with contextlib.suppress(Exception):
            ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """See `Transport`."""
        with contextlib.suppress(Exception):
            for worker in list(self._actors):
                self.kill(worker)
        self._cluster.disconnect()

    def _kill_process(self, node: str, process: int) -> None:
        ray = self._ray
        if node == ray.get_runtime_context().get_node_id():
            os.kill(process, signal.SIGKILL)
            return
        if not any(known["NodeID"] == node and known["Alive"] for known in ray.nodes()):
            return
        from rl_lnlstm.ppo.collectors.ray_actor import kill_process

        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(kill_process).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        ray.get(task.remote(process), timeout=KILL_SECONDS)

    def _claimed(self) -> int:
        return sum(not worker.is_extra for worker in self._actors)

    def _has_room(self) -> bool:
        return self._cluster.cpus() >= self._claimed() + 1


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
