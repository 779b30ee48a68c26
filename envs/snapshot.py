"""Environments to bytes and back, for checkpoints."""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle
from gymnasium.utils import EzPickle

# Snapshots of earlier versions have these names: module and name then, module and name now.
RENAMED = {
    ("rl_lnlstm.envs.guard", "Copies"): ("rl_lnlstm.envs.foreign_envs", "CopyingWrapper"),
    ("rl_lnlstm.envs.guard", "_add_any_info"): ("rl_lnlstm.envs.foreign_envs", "_add_any_info"),
    ("rl_lnlstm.envs.restart", "EnvMaker"): ("rl_lnlstm.envs.env_maker", "EnvMaker"),
    ("rl_lnlstm.envs.restart", "RestartingSyncVectorEnv"): ("rl_lnlstm.envs.env_maker", "RestartingSyncVectorEnv"),
    ("rl_lnlstm.envs.uses", "Uses"): ("rl_lnlstm.envs.call_counter", "CallCounter"),
}
# The same for attributes of objects.
RENAMED_ATTRIBUTES = {"_uses": "_counter", "_uses_inside": "_inner_counters"}


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle) and type(obj).__getstate__ is EzPickle.__getstate__:
            # Unpickling would silently give a new object, at the beginning of another episode.
            raise pickle.PicklingError(f"{type(obj).__name__} is pickled as its arguments only (gymnasium's EzPickle)")
        if type(obj).__module__.partition(".")[0] == "pygame":
            return type(None), ()  # screens and clocks, which Gymnasium's environments make again when they need them
        return super().reducer_override(obj)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return super().find_class(*RENAMED.get((module, name), (module, name)))


def to_bytes(env: Any) -> bytes:
    """Pickles everything in `env`, including random generators.

    Raises:
        ValueError: it cannot be pickled; the message says why.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(env)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return buffer.getvalue()


def from_bytes(content: bytes) -> Any:
    """The inverse of `to_bytes`. It can execute code in `content`: use it only for your own files.

    Raises:
        ValueError: it cannot be restored; the message says why.
    """
    try:
        return _Unpickler(io.BytesIO(content)).load()
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
