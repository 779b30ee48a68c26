"""The process of a worker on Ray. This file imports little, so that Ray soon knows where the process is."""

from __future__ import annotations

import os
import signal
from typing import Any

import ray

from rl_lnlstm.ppo.collectors.share import Share


class RayWorker:
    """A `Worker` as an actor of Ray."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._worker: Any = None

    def where(self) -> tuple[str, int]:
        """The node and the process."""
        return ray.get_runtime_context().get_node_id(), os.getpid()

    def call(self, *arguments: Any) -> Any:
        """See `Worker.call`."""
        if self._worker is None:
            self._worker = self._make_worker()
        return self._worker.call(*arguments)

    def _make_worker(self) -> Any:
        # Import here: TensorFlow takes seconds.
        import tensorflow as tf

        from rl_lnlstm.ppo.collectors.worker import Worker

        tf.config.set_visible_devices([], "GPU")  # acting is fastest on a CPU, and the learner needs the GPU
        return Worker(self._share)


def kill_process(process: int) -> None:
    """Ends a process of this machine, even one that is frozen."""
    os.kill(process, signal.SIGKILL)
