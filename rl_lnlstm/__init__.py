"""A masked layer-normalised LSTM for TensorFlow and Keras, recurrent policies that use it, and PPO to train them."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rl_lnlstm.lstm.registration import register as _register_layers
from rl_lnlstm.version import __version__

if TYPE_CHECKING:
    from rl_lnlstm.config import PPOConfig as PPOConfig
    from rl_lnlstm.errors import EnvironmentFailure as EnvironmentFailure
    from rl_lnlstm.errors import TrainingFailure as TrainingFailure
    from rl_lnlstm.errors import UserError as UserError
    from rl_lnlstm.errors import WorkerFailure as WorkerFailure
    from rl_lnlstm.evaluation.evaluate import evaluate as evaluate
    from rl_lnlstm.evaluation.evaluate import evaluate_policy as evaluate_policy
    from rl_lnlstm.evaluation.evaluate import record_episodes as record_episodes
    from rl_lnlstm.evaluation.padding import PaddedEpisodes as PaddedEpisodes
    from rl_lnlstm.evaluation.padding import pad_episodes as pad_episodes
    from rl_lnlstm.evaluation.record import load_episodes as load_episodes
    from rl_lnlstm.evaluation.result import Evaluation as Evaluation
    from rl_lnlstm.exporting.export import export as export
    from rl_lnlstm.importing.sb2 import import_sb2 as import_sb2
    from rl_lnlstm.lstm.cell import MaskedLNLSTMCell as MaskedLNLSTMCell
    from rl_lnlstm.lstm.layer import MaskedLNLSTM as MaskedLNLSTM
    from rl_lnlstm.policies.loading import load_policy as load_policy
    from rl_lnlstm.ppo.callbacks import Callback as Callback
    from rl_lnlstm.ppo.pretrain import pretrain as pretrain
    from rl_lnlstm.ppo.progress import ProgressBar as ProgressBar
    from rl_lnlstm.ppo.train import PPO as PPO
    from rl_lnlstm.reports.memory_use import MemoryUse as MemoryUse
    from rl_lnlstm.reports.memory_use import memory_use as memory_use
    from rl_lnlstm.runs.checkpoints import CheckpointCallback as CheckpointCallback
    from rl_lnlstm.runs.eval_callback import EvalCallback as EvalCallback
    from rl_lnlstm.runs.loggers import CSVLogger as CSVLogger
    from rl_lnlstm.runs.loggers import TensorBoardLogger as TensorBoardLogger
    from rl_lnlstm.runs.run_directory import RunDirectory as RunDirectory
    from rl_lnlstm.runs.trackers import MlflowLogger as MlflowLogger
    from rl_lnlstm.runs.trackers import TrackioLogger as TrackioLogger
    from rl_lnlstm.runs.trackers import WandbLogger as WandbLogger

# TensorFlow reads this when it is first imported. By default, it uses oneDNN only on processors with instructions for
# neural networks. On other processors, an update on images takes 1.5 times as long without oneDNN, if there is no
# kernel either.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

_EXPORTS = {
    "MaskedLNLSTM": "lstm.layer",
    "MaskedLNLSTMCell": "lstm.cell",
    "PPO": "ppo.train",
    "PPOConfig": "config",
    "EnvironmentFailure": "errors",
    "TrainingFailure": "errors",
    "UserError": "errors",
    "WorkerFailure": "errors",
    "CSVLogger": "runs.loggers",
    "Callback": "ppo.callbacks",
    "CheckpointCallback": "runs.checkpoints",
    "EvalCallback": "runs.eval_callback",
    "MlflowLogger": "runs.trackers",
    "TrackioLogger": "runs.trackers",
    "WandbLogger": "runs.trackers",
    "Evaluation": "evaluation.result",
    "MemoryUse": "reports.memory_use",
    "PaddedEpisodes": "evaluation.padding",
    "ProgressBar": "ppo.progress",
    "RunDirectory": "runs.run_directory",
    "TensorBoardLogger": "runs.loggers",
    "evaluate": "evaluation.evaluate",
    "evaluate_policy": "evaluation.evaluate",
    "load_episodes": "evaluation.record",
    "import_sb2": "importing.sb2",
    "export": "exporting.export",
    "load_policy": "policies.loading",
    "memory_use": "reports.memory_use",
    "pad_episodes": "evaluation.padding",
    "pretrain": "ppo.pretrain",
    "record_episodes": "evaluation.evaluate",
}
__all__ = ["__version__", *_EXPORTS]

# In a checkout, `rl_lnlstm/policies` and `rl_lnlstm/envs` are symlinks to folders at the top. Git on Windows writes
# text files instead, and some downloads leave them out. This entry then finds the folders at the top.
if not Path(__file__).with_name("policies").is_dir():
    __path__.append(str(Path(__file__).parents[1]))


_register_layers()


def __getattr__(name: str) -> Any:
    # Names are imported on first use. TensorFlow takes seconds to import, and neither `rl-lnlstm --help` nor the worker
    # processes of environments need it.
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
