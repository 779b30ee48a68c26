"""Environments as bytes, and back: the one place where something is pickled."""

from __future__ import annotations

import io
import pickle
from typing import Any

import cloudpickle
from gymnasium.utils import EzPickle


class _Pickler(cloudpickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, EzPickle) and type(obj).__getstate__ is EzPickle.__getstate__:
            # It would come back as it was made, at the beginning of some other episode, without a word.
            raise pickle.PicklingError(f"{type(obj).__name__} is pickled as its arguments only (gymnasium's EzPickle)")
        if type(obj).__module__.partition(".")[0] == "pygame":
            return type(None), ()  # screens and clocks: Gymnasium's environments make them anew where there are none
        return super().reducer_override(obj)


def to_bytes(env: Any) -> bytes:
    """All that `env` holds, random generators included.

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
    """What `to_bytes` was given. This executes what `content` says: only for what one wrote oneself.

    Raises:
        ValueError: it cannot be restored; the message says why.
    """
    try:
        return pickle.loads(content)
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
