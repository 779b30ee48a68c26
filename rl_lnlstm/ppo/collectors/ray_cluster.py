"""Connecting to Ray: a cluster of this process alone, or one that others started."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from rl_lnlstm.errors import UserError, missing_package, one_line
from rl_lnlstm.ppo.collectors.ray_folder import RayFolder

LOCAL, AUTO = "local", "auto"
ANSWER_SECONDS = 5.0  # that a machine may take to accept a connection
CHECK_SECONDS = 30.0  # that a cluster may take to answer
# A worker that waits for its simulator needs no CPU of its own. More workers would mostly need memory.
WORKERS_PER_CPU = 8


class Cluster:
    """A connection of this process to Ray. All trainers of the process use the same one.

    Args:
        ray: the module.
        address: the option `ray`.
        folder: the folder for Ray's files, which is removed at the end; None if the cluster is not ours.
        is_ours: whether to disconnect when no trainer uses it any more.

    Attributes:
        is_shared: whether the cluster was started by others, so that its CPUs must be asked for.
    """

    def __init__(self, ray: Any, address: str, folder: RayFolder | None, is_ours: bool) -> None:
        self.ray, self.address, self.is_shared = ray, address, address != LOCAL
        self.users = 0
        self._folder, self._is_ours = folder, is_ours
        atexit.register(self._end)  # for trainers that nobody closes

    def cpus(self) -> int:
        """The CPUs of all machines of the cluster."""
        return int(self.ray.cluster_resources().get("CPU", 0))

    def number_of_workers(self, num_envs: int, workers: int | None) -> int:
        """The number of workers: the given one or, if it is None, one that suits the CPUs.

        Raises:
            UserError: there are too few CPUs.
        """
        cpus = self.cpus() if self.is_shared else os.cpu_count() or 1
        most = cpus if self.is_shared else cpus * WORKERS_PER_CPU
        if workers is None:
            return max((count for count in range(1, min(cpus, num_envs) + 1) if num_envs % count == 0), default=1)
        if workers > most:
            where = f"the cluster {self.address} has" if self.is_shared else "this machine has"
            hint = (
                "or add machines to the cluster with `ray start --address=HOST:PORT`"
                if self.is_shared
                else f"which is {WORKERS_PER_CPU} for each CPU, or use a cluster of several machines"
            )
            raise UserError(f"workers is {workers}, but {where} {cpus} CPUs: give at most {most} workers, {hint}")
        return workers

    def disconnect(self) -> None:
        """Ends the connection, if this was its last user."""
        global _connected
        self.users -= 1
        if self.users > 0:
            return
        if _connected is self:
            _connected = None
        else:  # other code has ended this connection, and Ray now belongs to a later one
            self._is_ours = False
        atexit.unregister(self._end)
        self._end()

    def _end(self) -> None:
        if self._is_ours:
            with contextlib.suppress(Exception):
                self.ray.shutdown()
        if self._folder is not None:
            self._folder.remove()
            self._folder = None


_connected: Cluster | None = None


def connect(address: str) -> Cluster:
    """Connects this process to Ray, unless it is connected.

    Args:
        address: "local" starts a cluster on this machine, for this process alone; it never joins one that happens to
            run here. "auto" joins the cluster that runs on this machine. HOST:PORT joins the one with this address.

    Raises:
        UserError: Ray is not installed, there is no such cluster, or it cannot be used.
    """
    global _connected
    ray = _import_ray()
    if _connected is None or not ray.is_initialized():
        _connected = _new_connection(ray, address)
    elif _connected.address != address:
        raise UserError(
            f"ray is {address!r}, but this process is connected to the cluster {_connected.address!r}, and a process "
            "can use only one: close the other trainer first"
        )
    _connected.users += 1
    return _connected


def _new_connection(ray: Any, address: str) -> Cluster:
    if ray.is_initialized():  # by other code of this process, such as a trial of Ray Tune
        if address == LOCAL:
            raise UserError(
                "ray is 'local', but other code has connected this process to a cluster: use 'auto' for that cluster"
            )
        return Cluster(ray, address, None, is_ours=False)
    _silence(ray)
    # Ray's messages about this process; those of the workers come with their answers.
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address != LOCAL:
        if address != AUTO:
            _check_answers(address)
        with _translated(ray, address):
            ray.init(address=address, **options)
        return Cluster(ray, address, None, is_ours=True)
    folder = RayFolder()
    try:
        with _translated(ray, address):
            ray.init(address=LOCAL, include_dashboard=False, _temp_dir=folder.path, **options)
    except BaseException:
        folder.remove()
        raise
    return Cluster(ray, address, folder, is_ours=True)


def _silence(ray: Any) -> None:
    """Hides messages of Ray that say the same as ours, but longer.

    Without this, Ray prints a paragraph to standard output for each process that dies, even with `log_to_driver=False`.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    with contextlib.suppress(AttributeError):  # another version of Ray prints elsewhere
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


def _import_ray() -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.util.scheduling_strategies")
    except ImportError as error:
        raise missing_package("the option ray", error, "rl-lnlstm[ray]") from error
    return ray


def _check_answers(address: str) -> None:
    """Raises `UserError` unless a cluster answers. (`ray.init` would try for two minutes, and then end the process.)"""
    host, _, port = address.rpartition(":")
    advice = "start Ray there with `ray start --head`, which prints the address, and check that no firewall is between"
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"ray: nothing answers at {address} ({error}): {advice}") from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        check = subprocess.run(
            [*command, "--skip-version-check"], capture_output=True, text=True, timeout=CHECK_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"ray: what answers at {address} is not a cluster of Ray: {advice}") from error
    if check.returncode:
        reason = (check.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"ray: the cluster at {address} cannot be used, {reason}")


@contextlib.contextmanager
def _translated(ray: Any, address: str) -> Iterator[None]:
    """A context manager for `ray.init`: errors become `UserError`s, and signal handlers stay as they are."""
    is_main = threading.current_thread() is threading.main_thread()
    ours = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in ours}
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM and is_main:
            # `ray.init` installs a handler of SIGTERM before it returns. The signal is meant for ours.
            _install(handlers)
            ray.shutdown()
            os.kill(os.getpid(), signal.SIGTERM)
            raise KeyboardInterrupt from None
        with contextlib.suppress(Exception):
            ray.shutdown()
        hint = "no cluster runs on this machine: start one with `ray start --head`" if address == AUTO else str(error)
        if address == AUTO and not isinstance(error, ConnectionError):
            hint = str(error)
        raise UserError(f"ray: {address} cannot be used, {one_line(hint)}") from error
    finally:
        _install(handlers)


def _install(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
