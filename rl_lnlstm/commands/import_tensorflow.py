"""Imports TensorFlow for a command: without its messages, and without what no command needs."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

from rl_lnlstm.errors import UserError
from rl_lnlstm.terminal import silenced

# All modules that `keras.visualization` imports if they are installed. It takes a second, and commands show no images.
# Importing another module of matplotlib at the same time would fail.
DRAWING_MODULES = "matplotlib", "matplotlib.pyplot", "matplotlib.patches"


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow with standard error closed, because it ignores its log level until it is imported.

    The garbage collector is off during the import. Afterwards it ignores the imported objects, which all stay loaded.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        gc.disable()
        with silenced(), _drawing_modules_imported_when_used():
            # Import here, because `--help` should not wait for TensorFlow.
            import rl_lnlstm.lstm.layer  # noqa: F401
    except ImportError as error:
        backend = os.environ.get("KERAS_BACKEND", "tensorflow")
        if backend != "tensorflow":
            raise UserError(f"the backend of Keras must be TensorFlow, got KERAS_BACKEND={backend}: {error}") from error
        raise UserError(f"a package that is needed cannot be imported: {error}") from error
    finally:
        gc.enable()
        gc.freeze()


class _Postponed(types.ModuleType):
    """A stand-in for a module. The first use of an attribute imports the module."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for `__path__`
            raise AttributeError(name)
        _remove_stand_ins()  # otherwise the import would find them
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def _drawing_modules_imported_when_used() -> Iterator[None]:
    """A context manager in which imports of `DRAWING_MODULES` give stand-ins."""
    stand_ins = {name: _Postponed(name) for name in DRAWING_MODULES if name not in sys.modules}
    sys.modules.update(stand_ins)
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            vars(stand_ins[parent])[child] = module
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    for name in DRAWING_MODULES:
        if type(sys.modules.get(name)) is _Postponed:
            del sys.modules[name]
