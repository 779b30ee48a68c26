"""The spaces of an agent of Stable-Baselines 2: from the environment, from what its file says, or from its weights."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import UserError
from rl_lnlstm.importing.agent import Described
from rl_lnlstm.importing.layout import Layout
from rl_lnlstm.policies.encoders import NATURE, SMALLEST_NATURE, image_size
from rl_lnlstm.spaces import width
from rl_lnlstm.spaces_json import space_from_json

KINDS = ("Box", "Discrete", "MultiBinary", "MultiDiscrete")
ATARI = (84, 84)  # the usual size of an image, if only the weights say anything


class Spaces(NamedTuple):
    """The spaces of a single environment."""

    observation: gym.Space
    action: gym.Space


class Sources(NamedTuple):
    """Where the spaces may come from; each is None if it is not there. An earlier one is preferred."""

    given: gym.Space | None
    of_environment: gym.Space | None
    in_file: Described | None


def spaces_of_environment(env_id: str, wrappers: Sequence[str], env_kwargs: Mapping[str, Any]) -> Spaces:
    """The spaces of an environment, which is made and closed again.

    Raises:
        UserError: there is no such environment.
    """
    with contextlib.closing(
        make_vec(env_id, 1, vectorization="sync", wrappers=wrappers, env_kwargs=dict(env_kwargs))
    ) as envs:
        return Spaces(envs.single_observation_space, envs.single_action_space)


def observation_space(sources: Sources, layout: Layout) -> gym.Space:
    """The observation space.

    Raises:
        UserError: the sources contradict each other or the weights, or do not suffice.
    """
    space = _chosen(sources, "observation", None if layout.convolutions else layout.inputs)
    if space is None and not layout.convolutions:
        space = gym.spaces.Box(-np.inf, np.inf, (layout.inputs,))
    if space is None:
        shape = (*ATARI, layout.inputs)
        if _flattened(ATARI) != layout.encoder[0].kernel.shape[0]:
            raise UserError("neither the file nor its weights tell the size of the images: name --env-id")
        space = gym.spaces.Box(0, 255, shape, np.uint8)
    if layout.convolutions:
        _check_image(space, layout)
    elif not isinstance(space, tuple(getattr(gym.spaces, kind) for kind in KINDS)) or width(space) != layout.inputs:
        raise UserError(f"the agent takes {layout.inputs} numbers, but the observation space is {space}")
    return space


def action_space(sources: Sources, layout: Layout) -> gym.Space:
    """The action space.

    Raises:
        UserError: the sources contradict each other or the weights, or do not suffice.
    """
    outputs = layout.logits.kernel.shape[1]
    space = _chosen(sources, "action", outputs)
    if space is None:
        if layout.log_std is None:
            raise UserError(
                f"neither the file nor its weights tell whether its {outputs} outputs are for Discrete, MultiDiscrete "
                "or MultiBinary actions: name --env-id"
            )
        space = gym.spaces.Box(-np.inf, np.inf, (outputs,))
    if not isinstance(space, tuple(getattr(gym.spaces, kind) for kind in KINDS)) or width(space) != outputs:
        raise UserError(f"the agent has {outputs} outputs, but the action space is {space}")
    if isinstance(space, gym.spaces.Box) != (layout.log_std is not None):
        has = "no" if layout.log_std is None else "a"
        raise UserError(f"the agent has {has} standard deviation of actions, but the action space is {space}")
    return space


def _chosen(sources: Sources, what: str, size: int | None) -> gym.Space | None:
    """The first of the sources. Raises `UserError` if the environment contradicts the file.

    `size` is the width of the space according to the weights; None for images.
    """
    in_file = None if sources.in_file is None else _space_in_file(sources.in_file, what, size)
    if sources.given is not None:
        return sources.given
    space = sources.of_environment
    if space is None or in_file is None:
        return in_file if space is None else space
    if not _alike(space, in_file, images=size is None):
        raise UserError(f"the environment has {what} space {space}, but the agent was trained with {in_file}")
    return space


def _alike(one: gym.Space, other: gym.Space, images: bool) -> bool:
    """Whether two spaces have the same kind and sizes. Bounds in a file are rounded or missing.

    Images may also have their channels first in one of them, because a policy moves them to the end.
    """
    if type(one) is not type(other):
        return False
    if isinstance(one, gym.spaces.Box) and isinstance(other, gym.spaces.Box):
        both = images and len(one.shape) == len(other.shape) == 3
        same = one.shape == other.shape or (both and image_size(one.shape) == image_size(other.shape))
        return same and np.dtype(one.dtype).kind == np.dtype(other.dtype).kind
    if isinstance(one, gym.spaces.MultiDiscrete) and isinstance(other, gym.spaces.MultiDiscrete):
        return one.nvec.tolist() == other.nvec.tolist()
    return width(one) == width(other)


def _space_in_file(found: Described, what: str, size: int | None) -> gym.Space | None:
    """The space that a file describes; None if it does not say enough. `size` is used if the file has no size."""
    if found.kind not in KINDS:
        raise UserError(f"the agent's {what} space is a {found.kind}, expected {' or '.join(KINDS)}")
    description: dict[str, Any] = {"type": found.kind}
    sizes = found.numbers({"MultiDiscrete": "nvec"}.get(found.kind, "n"))
    if found.kind == "Box":
        shape = found.numbers("shape" if "shape" in found.attributes else "_shape")
        if shape is None:
            if size is None:
                return None
            shape = np.array([size])
        description |= _box(found, [int(length) for length in shape])
        return space_from_json(description)
    if sizes is None or not sizes.size:
        if size is None or found.kind == "MultiDiscrete":
            return None
        sizes = np.array([size])
    counts = [int(count) for count in sizes]
    if found.kind == "Discrete":
        description |= {"n": counts[0], "start": 0}
    elif found.kind == "MultiBinary":
        description |= {"shape": counts[:1], "flat": True}
    else:
        description |= {"shape": [len(counts)], "dtype": "int64", "nvec": counts, "start": 0}
    return space_from_json(description)


def _box(found: Described, shape: list[int]) -> dict[str, Any]:
    named = re.search(r"bool|u?int(8|16|32|64)|float(16|32|64)", found.text("dtype"))
    dtype = "float32" if named is None else named[0]
    whole = np.issubdtype(dtype, np.integer)
    least, most = (np.iinfo(dtype).min, np.iinfo(dtype).max) if whole else (-math.inf, math.inf)
    bounds: dict[str, Any] = {}
    for name, unknown in (("low", least), ("high", most)):
        numbers = found.numbers(name)
        if numbers is None or numbers.size not in (1, math.prod(shape)):
            bounds[name] = unknown
        else:
            values = [int(number) if whole else float(number) for number in numbers]
            bounds[name] = values[0] if len(values) == 1 else np.reshape(np.array(values, object), shape).tolist()
    return {"shape": shape, "dtype": dtype, **bounds}


def _check_image(space: gym.Space, layout: Layout) -> None:
    channels, flat = layout.inputs, layout.encoder[0].kernel.shape[0]
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 3:
        raise UserError(f"the agent takes images with {channels} channels, but the observation space is {space}")
    rows, columns, got = image_size(space.shape)
    if got != channels or _flattened((rows, columns)) != flat:
        raise UserError(
            f"the agent takes images with {channels} channels, of a size that its convolutions reduce to {flat} "
            f"numbers, but the observation space is {space}"
        )
    if min(rows, columns) < SMALLEST_NATURE:
        raise UserError(f"images must be at least {SMALLEST_NATURE} x {SMALLEST_NATURE} to be imported, got {space}")
    # Stable-Baselines 2 scales an image from its bounds to [0, 1].
    low, high = space.low, space.high
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all())
    if bounded and not ((low == 0).all() and (high == (255 if space.dtype == np.uint8 else 1)).all()):
        raise UserError(f"images must be bytes from 0 to 255, or floats from 0 to 1 or without bounds, got {space}")


def _flattened(size: tuple[int, int]) -> int:
    """How many numbers `nature_cnn` makes of an image."""
    for _, kernel, stride in NATURE:
        size = ((size[0] - kernel) // stride + 1, (size[1] - kernel) // stride + 1)
    return NATURE[-1][0] * max(size[0], 0) * max(size[1], 0)
