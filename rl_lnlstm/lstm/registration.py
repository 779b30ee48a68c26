"""Registers the layers with Keras on `import rl_lnlstm`, without importing Keras or TensorFlow.

Keras finds a saved layer by its registered name. The real layers register themselves when they are imported, but that
imports TensorFlow, which takes seconds. So this module registers stand-ins, which import the layer only when Keras asks
for it. If Keras is not imported yet, registration follows right after its import.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

LAYERS = {
    "MaskedLNLSTM": "rl_lnlstm.lstm.layer",
    "MaskedLNLSTMCell": "rl_lnlstm.lstm.cell",
    "Conv2D": "rl_lnlstm.policies.convolution",
    "Pixels": "rl_lnlstm.policies.convolution",
}


class _StandIn:
    """Replaces a layer's class in Keras' registry until the layer is imported and registers itself."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def from_config(self, config: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(LAYERS[self.__name__]), self.__name__).from_config(config)


def register() -> None:
    """Registers the layers with Keras, now or as soon as it is imported."""
    if "keras" in sys.modules:
        _register_with(sys.modules["keras"])
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


def _register_with(keras: ModuleType) -> None:
    saving = getattr(keras, "saving", None)
    if saving is None:  # another package of that name, or Keras in the middle of its own import
        return
    registry = saving.get_custom_objects()
    for name in LAYERS:
        registry.setdefault(f"rl_lnlstm>{name}", _StandIn(name))


class _AfterKeras(importlib.abc.MetaPathFinder):
    """An import hook that waits for the import of Keras, and then registers the layers."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "keras":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next(filter(None, specs), None)
        # TensorFlow also searches for Keras without importing it. So wait until the module is executed.
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register_with(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
