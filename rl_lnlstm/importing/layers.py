"""Weights of other libraries' layer-normalised LSTMs, in the order of `MaskedLNLSTM.set_weights`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm.equations import Weights

BASELINES = ("wx", "wh", "b", "gx", "bx", "gh", "bh", "gc", "bc")
HASTE = ("kernel", "recurrent_kernel", "bias", "gamma", "gamma_h", "beta_h")
# haste's gates are in the order i, g, f, o, ours in the order i, f, o, g.
HASTE_GATES = (0, 2, 3, 1)


def weights_from_baselines(weights: Mapping[str, Any]) -> list[np.ndarray]:
    """Converts the weights of `lnlstm` in OpenAI baselines and Stable-Baselines 2. The equations are the same.

    Their three biases are added to the same sum, so one bias takes their place. Their state is [c, h] side by side,
    ours is (h, c). Their masks are 1 where an episode has ended, ours are 0 there.

    Args:
        weights: arrays by the names `wx` `[features, 4 * units]`, `wh` `[units, 4 * units]`, `b`, `gx`, `bx`, `gh`,
            `bh` `[4 * units]`, `gc`, `bc` `[units]`. The gates are in the order i, f, o, g.

    Returns:
        The weights for `MaskedLNLSTM.set_weights`, in the dtypes of the given ones.

    Raises:
        UserError: an array is missing, or has another shape.

    Example:

    >>> layer.set_weights(weights_from_baselines(np.load("lnlstm.npz")))
    """
    given = _arrays(weights, BASELINES)
    units = given["wh"].shape[0] if given["wh"].ndim else 0
    _check_shapes(
        given,
        {"wx": (None, 4 * units), "wh": (units, 4 * units), "gc": (units,), "bc": (units,)},
        (4 * units,),
    )
    return list(
        Weights(
            kernel=given["wx"],
            recurrent_kernel=given["wh"],
            kernel_gamma=given["gx"],
            recurrent_gamma=given["gh"],
            bias=given["b"] + given["bx"] + given["bh"],
            cell_gamma=given["gc"],
            cell_beta=given["bc"],
        )
    )


def weights_from_haste(weights: Mapping[str, Any]) -> list[np.ndarray]:
    """Converts the weights of haste's `LayerNormLSTM`, without zoneout. The equations are the same.

    Args:
        weights: arrays by the names `kernel` `[features, 4 * units]`, `recurrent_kernel` `[units, 4 * units]`, `bias`
            `[4 * units]`, `gamma` `[2, 4 * units]`, `gamma_h`, `beta_h` `[units]`. The gates are in the order i, g, f,
            o.

    Returns:
        The weights for `MaskedLNLSTM.set_weights`, in the dtypes of the given ones.

    Raises:
        UserError: an array is missing, or has another shape.

    Example:

    >>> layer.set_weights(weights_from_haste({name: value.numpy() for name, value in haste_layer.state_dict().items()}))
    """
    given = _arrays(weights, HASTE)
    units = given["gamma_h"].shape[0] if given["gamma_h"].ndim else 0
    _check_shapes(
        given,
        {
            "kernel": (None, 4 * units),
            "recurrent_kernel": (units, 4 * units),
            "gamma": (2, 4 * units),
            "gamma_h": (units,),
            "beta_h": (units,),
        },
        (4 * units,),
    )
    return list(
        Weights(
            kernel=_reordered(given["kernel"]),
            recurrent_kernel=_reordered(given["recurrent_kernel"]),
            kernel_gamma=_reordered(given["gamma"][0]),
            recurrent_gamma=_reordered(given["gamma"][1]),
            bias=_reordered(given["bias"]),
            cell_gamma=given["gamma_h"],
            cell_beta=given["beta_h"],
        )
    )


def _reordered(weights: np.ndarray) -> np.ndarray:
    gates = np.split(weights, 4, -1)
    return np.concatenate([gates[gate] for gate in HASTE_GATES], -1)


def _arrays(weights: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, np.ndarray]:
    missing = [name for name in names if name not in weights]
    if missing:
        raise UserError(f"weights must have {', '.join(names)}, but {', '.join(missing)} are missing")
    return {name: np.asarray(weights[name]) for name in names}


def _check_shapes(
    given: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int | None, ...]], other: tuple[int, ...]
) -> None:
    """Compares the shapes with the expected ones; `other` is that of the arrays that are not named, None any size."""
    for name, array in given.items():
        expected = shapes.get(name, other)
        fits = array.ndim == len(expected) and all(
            size in (None, got) for size, got in zip(expected, array.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("features" if size is None else str(size) for size in expected)
            raise UserError(f"{name} must have shape [{wanted}], got {list(array.shape)}")
