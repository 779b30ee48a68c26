"""Gymnasium spaces as JSON, and back."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError


def space_to_json(space: gym.Space) -> dict[str, Any]:
    """A description of `space` in JSON's types."""
    if isinstance(space, gym.spaces.Box):
        return {
            "type": "Box",
            "shape": list(space.shape),
            "dtype": str(space.dtype),
            "low": _bound_to_json(space.low),
            "high": _bound_to_json(space.high),
        }
    if isinstance(space, gym.spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    raise UserError(f"space must be Box or Discrete, got {space}")


def space_from_json(description: dict[str, Any]) -> gym.Space:
    """The space that `space_to_json` described.

    Raises:
        KeyError, TypeError, ValueError: it is no such description.
    """
    if description["type"] == "Discrete":
        return gym.spaces.Discrete(int(description["n"]), start=int(description["start"]))
    if description["type"] == "Box":
        shape, dtype = tuple(int(size) for size in description["shape"]), np.dtype(description["dtype"])
        if dtype.kind not in "fiu":
            raise ValueError(f"no dtype of a Box: {dtype}")
        low, high = (
            np.broadcast_to(np.asarray(description[bound], np.float64), shape).astype(dtype)
            for bound in ("low", "high")
        )
        return gym.spaces.Box(low, high, shape, dtype.type)
    raise ValueError(f"no known space: {description['type']!r}")


def _bound_to_json(bound: np.ndarray) -> Any:
    """A number where all are the same: the bounds of an image are not worth a megabyte."""
    first = bound.flat[0] if bound.size else 0
    return bound.tolist() if np.any(bound != first) else np.asarray(first).item()
