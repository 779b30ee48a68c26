"""The versions on which the bits of a rollout depend."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path

import gymnasium
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm import kernel

AVX512 = "avx512f", "avx512bw", "avx512dq", "avx512vl"


def versions() -> dict[str, str]:
    """The versions in this process, by name."""
    return {
        "Python": platform.python_version(),
        "rl_lnlstm": importlib.import_module("rl_lnlstm").__version__,
        "TensorFlow": tf.__version__,
        "NumPy": np.__version__,
        "Gymnasium": gymnasium.__version__,
        "kernel": _instruction_set() if kernel.available() else "none",
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


def _instruction_set() -> str:
    """The instruction set that the kernel chooses; see `ChooseCore` in launch.cc."""
    wanted, flags = os.environ.get("RL_LNLSTM_ISA", ""), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        line = next((line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")), "")
        flags = set(line.split())
    if flags.issuperset(AVX512) and wanted not in ("avx2", "portable"):
        return "avx512"
    if flags.issuperset(("avx2", "fma")) and wanted != "portable":
        return "avx2"
    return f"portable {platform.machine()}"
