"""A switch for graphs that will run without this package."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

_portable = contextvars.ContextVar("portable", default=False)


def is_portable() -> bool:
    """Whether the graph that is being traced may use only operations that other runtimes have too."""
    return _portable.get()


@contextlib.contextmanager
def portable() -> Iterator[None]:
    """Inside the block, traced graphs have no compiled kernel, and float64 only for inputs that are float64."""
    token = _portable.set(True)
    try:
        yield
    finally:
        _portable.reset(token)
