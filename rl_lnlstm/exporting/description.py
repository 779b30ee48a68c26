"""The description of an exported policy, as JSON in the exported file: spaces, inputs and outputs, versions."""

from __future__ import annotations

import json
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.exporting.graph import Graph
from rl_lnlstm.exporting.signature import MEANINGS, exported_state_size
from rl_lnlstm.policies.distributions import Bernoulli, Categorical, MultiCategorical
from rl_lnlstm.policies.heads import CompositeHead
from rl_lnlstm.spaces_json import space_to_json
from rl_lnlstm.version import __version__

KEY = "rl_lnlstm"  # the description's key in ONNX and TFLite
FORMAT = 1
OUTPUTS = "action", "sampled_action", "logits", "mean", "log_std", "value", "next_h", "next_c"


def describe(policy: Any, graph: Graph) -> str:
    """The description, as JSON. Bounds of spaces that are not finite are null, because most parsers refuse Infinity."""
    inputs = {
        port.name: _port(port.kind, port.dtype, [*port.axes(graph.sequence), *port.shape]) for port in graph.ports
    }
    outputs = {}
    for name, spec in graph.outputs.items():
        kind = kind_of(name)
        axes = ["batch"] if kind in ("next_h", "next_c") or not graph.sequence else ["batch", "time"]
        outputs[name] = _port(kind, spec.dtype.as_numpy_dtype, [*axes, *spec.shape[len(axes) :]])
    return json.dumps(
        {
            "format": FORMAT,
            "policy": type(policy).__name__,
            "env_id": policy.env_id,
            "observation_space": _finite(space_to_json(policy.actor_observation_space)),
            "action_space": _finite(space_to_json(policy.action_space)),
            "units": policy.units,
            "state_size": exported_state_size(policy),
            "sequence": graph.sequence,
            "inputs": inputs,
            "outputs": outputs,
            "noise_kinds": _noise_kinds(policy.action_head),
            "versions": {
                "rl_lnlstm": __version__,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
            },
        },
        allow_nan=False,
    )


def _finite(description: Any) -> Any:
    """The description of a space with None in place of numbers that are not finite."""
    if isinstance(description, dict):
        return {key: _finite(value) for key, value in description.items()}
    if isinstance(description, list):
        return [_finite(value) for value in description]
    return None if isinstance(description, float) and not math.isfinite(description) else description


def kind_of(name: str) -> str:
    """The key of `MEANINGS` for the name of an output: both "action" and "action_left" are an "action"."""
    return next(kind for kind in OUTPUTS if name == kind or name.startswith(f"{kind}_"))


def _port(kind: str, dtype: Any, shape: list[Any]) -> dict[str, Any]:
    return {"dtype": np.dtype(dtype).name, "shape": shape, "meaning": MEANINGS[kind]}


def _noise_kinds(head: Any) -> list[dict[str, Any]]:
    """The distribution of each group of columns of the noise, in their order."""
    if isinstance(head, CompositeHead):
        return [kind for part in head.parts for kind in _noise_kinds(part)]
    kinds = {Categorical: "standard Gumbel", MultiCategorical: "standard Gumbel", Bernoulli: "standard logistic"}
    kind = {"distribution": kinds.get(head.distribution, "standard normal"), "columns": head.noise_size}
    if head.held().any():
        kind["held"] = True  # gSDE: the same numbers for many steps
    return [kind]
