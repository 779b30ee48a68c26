"""The versions on which the bits of a rollout depend."""

from __future__ import annotations

import platform

import gymnasium
import numpy as np
import tensorflow as tf

from rl_lnlstm import version
from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm import kernel


def versions() -> dict[str, str]:
    """The versions in this process, by name."""
    return {
        "Python": platform.python_version(),
        "rl_lnlstm": version.__version__,
        "TensorFlow": tf.__version__,
        "NumPy": np.__version__,
        "Gymnasium": gymnasium.__version__,
        # The portable code differs from one kind of machine to another.
        "kernel": f"{kernel.instruction_set()} {platform.machine()}" if kernel.available() else "none",
    }


def check_versions(of_training: dict[str, str]) -> None:
    """Raises `UserError` if this process, which is a worker's, has other versions than the training process."""
    ours = versions()
    differ = [name for name in ours if ours[name] != of_training.get(name)]
    if differ:
        listed = ", ".join(f"{name} {ours[name]} instead of {of_training.get(name)}" for name in differ)
        raise UserError(
            f"the worker on {platform.node()} has other versions than the training process: {listed}. Install the same "
            "versions on all machines. If only the kernel differs, because the processors do, set RL_LNLSTM_ISA=avx2 "
            "or portable on all machines"
        )
