"""Names of run directories, and of the files in them."""

from __future__ import annotations

import re
import time
from pathlib import Path

CONFIG = "config.json"
METRICS = "metrics.csv"
LEARNING_CURVE = "learning_curve.png"
RESULTS = "results.json"
REPORT = "report.html"
POLICY = "policy"
CHECKPOINTS = "checkpoints"
BEST_POLICY = "checkpoints/best"
TENSORBOARD = "tensorboard"


def default_run_dir(env_id: str, what: str) -> Path:
    """runs/<env>-<what>-<time>."""
    name = re.sub(r"[^\w.-]", "-", env_id)
    return Path("runs") / f"{name}-{what}-{time.strftime('%Y%m%d-%H%M%S')}"
