"""The network of an agent of Stable-Baselines 2, from the names, shapes and order of its arrays.

The names are `model/<layer>/<part>:0`. The LSTM is `lstm1`.

- Before it are `c1`, `c2`, `c3`, `fc1` for images. For vectors there are `pi_fc<i>`, or `shared_fc<i>` with `net_arch`.
- After it are the layers that `net_arch` adds: `shared_fc<i>` for both, `pi_fc<i>` for the actor, `vf_fc<i>` for the
  critic.
- The heads are `pi` with `pi/logstd`, `vf`, and `q`, which only ACER uses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.importing.layers import BASELINES
from rl_lnlstm.policies.encoders import NATURE

NAME = re.compile(r"model/(c1|c2|c3|fc1|lstm1|pi|vf|q|(?:pi|vf|shared)_fc\d+)/(\w+):0")
CONVOLUTIONS = ("c1", "c2", "c3")
KERNELS = tuple((size, filters) for filters, size, _ in NATURE)
MAX_NUMBERS = 1 << 27  # in the layers that get another shape here


class Dense(NamedTuple):
    """The weights of a dense layer, or of a convolution."""

    kernel: np.ndarray
    bias: np.ndarray


class Layout(NamedTuple):
    """The layers of an agent, from the observation to the heads."""

    convolutions: list[Dense]
    encoder: list[Dense]
    lstm: dict[str, np.ndarray]
    actor: list[Dense]
    critic: list[Dense]
    logits: Dense
    log_std: np.ndarray | None
    value: Dense

    @property
    def units(self) -> int:
        """Units of the LSTM."""
        return self.lstm["wh"].shape[0]

    @property
    def features(self) -> int:
        """Width of the LSTM's input."""
        return self.lstm["wx"].shape[0]

    @property
    def inputs(self) -> int:
        """Width of the observation, or channels of the image."""
        return (*self.convolutions, *self.encoder)[0].kernel.shape[-2] if self.before else self.features

    @property
    def before(self) -> list[Dense]:
        """The layers before the LSTM."""
        return [*self.convolutions, *self.encoder]


def layout_of(parameters: Mapping[str, np.ndarray]) -> Layout:
    """Sorts an agent's arrays into layers.

    Args:
        parameters: the arrays by their names, in the order of the network.

    Raises:
        UserError: the agent has no layer-normalised LSTM, or a network that cannot be represented here.
    """
    layers: dict[str, dict[str, np.ndarray]] = {}
    unknown = []
    for name, array in parameters.items():
        match = NAME.fullmatch(name)
        if match is None:
            unknown.append(name)
        else:
            layers.setdefault(match[1], {})[match[2]] = array.astype(np.float32)
    if "lstm1" not in layers:
        raise UserError(
            f"the agent has no LSTM: its parameters are {_listed(list(parameters))}; expected MlpLnLstmPolicy or "
            "CnnLnLstmPolicy of Stable-Baselines 2"
        )
    if unknown:
        raise UserError(f"the agent's network is not one of Stable-Baselines 2: it has {_listed(unknown)}")
    if not layers["lstm1"].keys() >= set(BASELINES):
        raise UserError(
            "the agent's LSTM has no layer normalisation, as in MlpLstmPolicy and CnnLstmPolicy: only MlpLnLstmPolicy, "
            "CnnLnLstmPolicy and LstmPolicy with layer_norm=True can be imported"
        )
    missing = [name for name in ("pi", "vf") if name not in layers]
    if missing:
        raise UserError(f"the agent has no {' and no '.join(missing)}")
    found = _sorted(layers)
    _check_chains(found)
    return found


def _sorted(layers: Mapping[str, Mapping[str, np.ndarray]]) -> Layout:
    order = list(layers)
    lstm = order.index("lstm1")
    before = [name for name in order[:lstm] if name not in CONVOLUTIONS]
    after = [name for name in order[lstm:] if "_fc" in name]
    log_std = layers["pi"].get("logstd")
    return Layout(
        convolutions=[_dense(name, layers[name], 4) for name in CONVOLUTIONS if name in layers],
        encoder=[_dense(name, layers[name]) for name in before],
        lstm=dict(layers["lstm1"]),
        actor=[_dense(name, layers[name]) for name in after if not name.startswith("vf")],
        critic=[_dense(name, layers[name]) for name in after if not name.startswith("pi")],
        logits=_dense("pi", layers["pi"]),
        log_std=None if log_std is None else log_std.ravel(),
        value=_dense("vf", layers["vf"]),
    )


def _dense(name: str, parts: Mapping[str, np.ndarray], axes: int = 2) -> Dense:
    kernel, bias = parts.get("w"), parts.get("b")
    if kernel is None or bias is None or kernel.ndim != axes or bias.size != kernel.shape[-1] or not kernel.size:
        raise UserError(f"layer {name} must have a kernel w of {axes} axes and a bias b for each of its outputs")
    return Dense(kernel, bias.ravel())


def _check_chains(layout: Layout) -> None:
    """Raises `UserError` unless each layer takes what the layer below it gives."""
    units, features = layout.lstm["wh"].shape[0], layout.lstm["wx"].shape[0]
    channels = None
    if layout.convolutions:
        got = tuple((conv.kernel.shape[0], conv.kernel.shape[-1]) for conv in layout.convolutions)
        square = all(conv.kernel.shape[0] == conv.kernel.shape[1] for conv in layout.convolutions)
        if got != KERNELS or not square or len(layout.encoder) != 1:
            raise UserError(
                f"the agent's convolutions must be those of nature_cnn, {_kernels(KERNELS)} and one dense layer, got "
                f"{_kernels(got)} and {len(layout.encoder)}: a cnn_extractor of one's own cannot be imported"
            )
        for below, conv in zip(layout.convolutions[:-1], layout.convolutions[1:], strict=True):
            _check_width("a convolution", conv.kernel.shape[2], below.kernel.shape[3])
    for layer in layout.encoder:
        if channels is not None:
            _check_width("a layer before the LSTM", layer.kernel.shape[0], channels)
        channels = layer.kernel.shape[1]
    if channels is not None:
        _check_width("the LSTM", features, channels)
    if len(layout.actor) != len(layout.critic):
        raise UserError(
            f"the agent's net_arch has {len(layout.actor)} layers for the actor and {len(layout.critic)} for the "
            "critic after the LSTM: branches of different depth cannot be represented here"
        )
    for role, branch, head in (("actor", layout.actor, layout.logits), ("critic", layout.critic, layout.value)):
        width = units
        for layer in (*branch, head):
            _check_width(f"a layer of the {role}", layer.kernel.shape[0], width)
            width = layer.kernel.shape[1]
    if layout.value.kernel.shape[1] != 1:
        raise UserError(f"vf must give one value, got {layout.value.kernel.shape[1]}")
    if layout.log_std is not None:
        _check_width("pi/logstd", layout.log_std.size, layout.logits.kernel.shape[1])
    check_size(layout, layout.logits.kernel.shape[1])


def check_size(layout: Layout, outputs: int) -> None:
    """Raises `UserError` if the first layers of the heads, which also see the observation here, would be too large."""
    widths = [outputs, *(layer.kernel.shape[1] for layer in (*layout.actor[:1], *layout.critic[:1]))]
    if (layout.units + layout.features + 1) * max(widths) > MAX_NUMBERS:
        raise UserError(f"the agent's heads would have more than {MAX_NUMBERS:,} weights")


def _check_width(what: str, got: int, below: int) -> None:
    if got != below:
        raise UserError(f"the agent's arrays do not fit each other: {what} takes {got} numbers, but gets {below}")


def _kernels(convolutions: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{filters} filters of {size} x {size}" for size, filters in convolutions) or "none"


def _listed(names: Sequence[str]) -> str:
    return printable(", ".join(names[:3]), 150) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
