"""Connecting to Ray: a signal that arrives meanwhile is not lost."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest

from rl_lnlstm.errors import UserError
from rl_lnlstm.ppo.collectors import ray_cluster
from rl_lnlstm.ppo.collectors.ray_cluster import Cluster, _translated, connect


class StandIn(SimpleNamespace):
    """As Ray, it installs a handler of SIGTERM before it has started."""

    def init(self):
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        os.kill(os.getpid(), signal.SIGTERM)

    def shutdown(self):
        self.ended = True


def test_sigterm_reaches_our_own_handler():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    ray = StandIn(ended=False)
    try:
        with pytest.raises(KeyboardInterrupt), _translated(ray, "local"):
            ray.init()
        assert received == [signal.SIGTERM]
        assert ray.ended
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(received) == 2, "the handler is ours again"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_earlier_connection_leaves_a_later_one_alone(monkeypatch):
    """For example, if other code has called `ray.shutdown()` in between."""
    ray = SimpleNamespace(is_initialized=lambda: False, shutdown=lambda: ended.append("shutdown"))
    ended = []
    monkeypatch.setattr(ray_cluster, "_import_ray", lambda: ray)
    monkeypatch.setattr(ray_cluster, "_new_connection", lambda ray, address: Cluster(ray, address, None, True))
    first, second = connect("local"), connect("local")
    first.disconnect()
    assert (ended, ray_cluster._connected) == ([], second)
    second.disconnect()
    assert (ended, ray_cluster._connected) == (["shutdown"], None)


def test_an_exit_of_ray_is_an_error():
    with pytest.raises(UserError, match="ray: local cannot be used, 1"), _translated(StandIn(), "local"):
        sys.exit(1)
