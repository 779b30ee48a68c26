"""A masked layer-normalised LSTM for TensorFlow and Keras, recurrent policies on it, and PPO that trains them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rl_lnlstm.checkpoint import load_policy as load_policy
    from rl_lnlstm.config import PPOConfig as PPOConfig
    from rl_lnlstm.errors import EnvironmentFailure as EnvironmentFailure
    from rl_lnlstm.errors import TrainingFailure as TrainingFailure
    from rl_lnlstm.errors import UserError as UserError
    from rl_lnlstm.evaluation import evaluate_policy as evaluate_policy
    from rl_lnlstm.evaluation import record_episodes as record_episodes
    from rl_lnlstm.layer import MaskedLNLSTM as MaskedLNLSTM
    from rl_lnlstm.layer import MaskedLNLSTMCell as MaskedLNLSTMCell
    from rl_lnlstm.ppo import PPO as PPO

__version__ = "0.1.0"

_EXPORTS = {
    "MaskedLNLSTM": "layer",
    "MaskedLNLSTMCell": "layer",
    "PPO": "ppo",
    "PPOConfig": "config",
    "EnvironmentFailure": "errors",
    "TrainingFailure": "errors",
    "UserError": "errors",
    "evaluate_policy": "evaluation",
    "load_policy": "checkpoint",
    "record_episodes": "evaluation",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    # Imported when first used: TensorFlow takes seconds to import, and `rl-lnlstm --help` needs none of it.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
