"""The connection of a sweep to Ray, without Ray Tune's own output."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator

from rl_lnlstm.errors import UserError, missing_package
from rl_lnlstm.ppo.collectors.ray_cluster import LOCAL, connect

# Ray reads these when it is imported or started.
SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `commands/signals.py` handles it
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the sweep keeps records of its own
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def check_packages() -> None:
    """Raises `UserError` if Ray Tune or Optuna is not installed."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    for package in ("ray.tune", "optuna"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise missing_package("tune", error, "rl-lnlstm[tune]") from error


@contextlib.contextmanager
def connected(address: str, parallel: int | None) -> Iterator[int]:
    """A context manager for the block that uses Ray. It gives the number of trials at the same time.

    Args:
        address: as for `connect`.
        parallel: the number of trials at the same time; None for the number of CPUs.

    Raises:
        UserError: as `connect`; or the cluster has fewer CPUs than trials at the same time, which would wait for ever.
    """
    cluster = connect(address)
    try:
        cpus = cluster.cpus()
        if parallel is not None and parallel > cpus:
            where = "this machine" if address == LOCAL else f"the cluster {address}"
            raise UserError(f"parallel is {parallel}, but {where} has {cpus} CPUs, and each trial needs one")
        yield parallel or max(1, cpus)
    finally:
        cluster.disconnect()
