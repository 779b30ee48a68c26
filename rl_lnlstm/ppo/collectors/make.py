"""Chooses the collector of a run."""

from __future__ import annotations

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.ppo.collectors.local import LocalCollector
from rl_lnlstm.ppo.collectors.parallel import ParallelCollector
from rl_lnlstm.ppo.collectors.protocol import Collector
from rl_lnlstm.ppo.setup import GivenEnv, check_makes_more


def make_collector(env: GivenEnv, config: PPOConfig) -> Collector:
    """Makes the collector: of environments in this process or, with the option `ray`, in workers.

    Raises:
        UserError: the environments cannot be made or sent to workers, or the cluster cannot be used.
    """
    if config.ray is None:
        return LocalCollector(env, config)
    check_makes_more(env, f"ray is {config.ray!r}, and workers make environments of their own")
    # Import here: only runs with workers need Ray.
    from rl_lnlstm.ppo.collectors.ray_transport import RayTransport

    transport = RayTransport(config.ray, config.num_envs, config.workers)
    try:
        return ParallelCollector(env, config, transport, transport.workers)
    except BaseException:
        transport.close()
        raise
