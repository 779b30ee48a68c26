"""Action masks: where environments provide them, and checks of what they contain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from rl_lnlstm.envs.faults import FAILURES, Fault, Numbering, environment_name, reraise_of_signal_handler
from rl_lnlstm.errors import EnvironmentFailure, UserError, warn

KEY, METHOD = "action_mask", "action_masks"  # named as in PettingZoo's infos and in sb3-contrib's MaskablePPO
KINDS = "Discrete, MultiDiscrete and MultiBinary actions"


def mask_sizes(space: gym.Space) -> np.ndarray | None:
    """The number of values of each component of an action, in the order in which a mask lists them.

    - A mask of `Discrete` is `[n]`.
    - A mask of `MultiDiscrete` is `[sum(nvec)]`, one component after the other.
    - A mask of `MultiBinary` is `[2 * n]`: for each bit, whether 0 and whether 1 is legal.

    Returns None for other spaces, which have no masks.
    """
    if isinstance(space, gym.spaces.Discrete):
        return np.array([space.n])
    if isinstance(space, gym.spaces.MultiBinary):
        return np.full(math.prod(space.shape), 2)
    return space.nvec.ravel() if isinstance(space, gym.spaces.MultiDiscrete) else None


def checked_masks(masks: Any, space: gym.Space, batch_size: int) -> np.ndarray:
    """Converts `masks` to bool `[batch_size, sum of the sizes]`.

    Raises:
        UserError: the space has no masks, the shape is wrong, or a mask allows no action.
    """
    sizes = mask_sizes(space)
    if sizes is None:
        raise UserError(f"action_masks are for {KINDS}, got {space}")
    try:
        masks, shape = _as_bools(masks), (batch_size, int(sizes.sum()))
    except Fault as fault:
        raise UserError(f"action_masks: {fault}") from fault
    if isinstance(space, gym.spaces.MultiBinary) and masks.shape == (batch_size, len(sizes), 2):
        masks = masks.reshape(shape)
    if masks.shape != shape:
        raise UserError(f"action_masks must have shape {list(shape)}, got {list(masks.shape)}")
    if not (allowing := _allowing(masks, sizes)).all():
        raise UserError(f"action_masks must allow at least one action, got {masks[~allowing][0].astype(int)}")
    return masks


def flat_mask(mask: Any, sizes: np.ndarray) -> np.ndarray:
    """Converts an environment's mask to a new bool array `[sum of the sizes]`.

    The mask may also have one row for each component, `[components, size]`, or be a tuple with a mask for each
    component, as for `MultiDiscrete.sample`.

    Raises:
        Fault: the shape is wrong, or it holds other values than true and false.
    """
    if isinstance(mask, tuple):
        mask = np.concatenate([np.ravel(part) for part in mask])
    array = _as_bools(mask)
    if array.shape == (len(sizes), sizes[0]) and (sizes == sizes[0]).all():
        array = array.ravel()
    if array.shape != (size := int(sizes.sum()),):
        raise Fault(f"gave an action mask of shape {list(array.shape)}, expected [{size}]", lasting=True)
    return array


def _as_bools(mask: Any) -> np.ndarray:
    """Converts a mask of bools, or of the numbers 0 and 1, to a new bool array.

    Other numbers may mean anything: in additive masks, 0 stands for what is legal.

    Raises:
        Fault: it holds something else.
    """
    try:
        array = np.asarray(mask)
    except ValueError as error:  # its parts have different shapes
        raise Fault(f"gave {mask!r:.80} as an action mask, which is not an array: {error}", lasting=True) from error
    bools = array.astype(bool) if array.dtype.kind in "biuf" else np.zeros(array.shape, bool)
    if array.dtype.kind not in "biuf" or not (array.dtype.kind == "b" or np.array_equal(bools, array)):
        raise Fault(f"gave an action mask with values other than true and false: {array!r:.80}", lasting=True)
    return bools


class MaskEntry:
    """The entry of a `Dict` observation that is the action mask, as in PettingZoo and RLlib.

    Args:
        key: the key of the entry.
        observation_space, action_space: of a single environment.

    Raises:
        UserError: there is no such entry, or it does not fit the actions.
    """

    def __init__(self, key: str, observation_space: gym.Space, action_space: gym.Space) -> None:
        if not isinstance(observation_space, gym.spaces.Dict) or key not in observation_space.spaces:
            raise UserError(f"mask_key={key!r}: the observation has no such entry; its space is {observation_space}")
        if len(observation_space.spaces) == 1:
            raise UserError(f"mask_key={key!r}: the observation has no other entry; its space is {observation_space}")
        if not _could_be_mask(observation_space[key], action_space):
            raise UserError(f"mask_key={key!r}: {observation_space[key]} does not fit the actions {action_space}")
        self.key = key
        self.other_entries = gym.spaces.Dict(
            {name: space for name, space in observation_space.spaces.items() if name != key}
        )

    def moved(self, observations: dict[str, Any], infos: dict[str, Any]) -> dict[str, Any]:
        """Moves the entry from the observations to the infos, and returns the other observations."""
        others = dict(observations)
        mask = others.pop(self.key)
        infos[KEY] = _as_bools(mask).reshape(len(mask), -1)
        infos.pop(f"_{KEY}", None)  # Gymnasium's marker of which environments have the key; here all have it
        return others


def warn_of_mask_entry(observation_space: gym.Space, action_space: gym.Space, name: str) -> None:
    """Warns if an entry of the observation looks like an action mask, but no `mask_key` was given."""
    if isinstance(observation_space, gym.spaces.Dict) and len(observation_space.spaces) > 1:
        for key in (KEY, METHOD):
            if key in observation_space.spaces and _could_be_mask(observation_space[key], action_space):
                warn(
                    f"{name}: the entry {key!r} of the observation is not used as an action mask, so illegal actions "
                    f"may be chosen; mask_key={key!r} (--mask-key {key}) uses it as one"
                )


def _could_be_mask(space: gym.Space, action_space: gym.Space) -> bool:
    sizes = mask_sizes(action_space)
    kinds = gym.spaces.MultiBinary, gym.spaces.MultiDiscrete, gym.spaces.Box
    return sizes is not None and isinstance(space, kinds) and math.prod(space.shape) == int(sizes.sum())


class ActionMasks:
    """Reads the action masks of environments; use `find` to make it.

    Raises:
        UserError: the environments give masks, but their action space has none.
    """

    def __init__(self, envs: VectorEnv, method: Callable[[], Any] | None) -> None:
        sizes = mask_sizes(envs.single_action_space)
        if sizes is None:
            raise UserError(
                f"{environment_name(envs)} gives action masks, which are for {KINDS}, but its action space is "
                f"{envs.single_action_space}"
            )
        self._sizes, self._method, self._name = sizes, method, environment_name(envs)
        self._numbering = getattr(envs, "numbering", None) or Numbering(0, envs.num_envs)
        self._shape = envs.num_envs, int(sizes.sum())
        self._reads = 0

    @classmethod
    def find(cls, envs: VectorEnv, infos: dict[str, Any]) -> ActionMasks | None:
        """Finds out from the infos of a reset how environments give their masks; None if they give none."""
        method = None if getattr(envs, "mask_entry", None) is not None else _method(envs)
        return cls(envs, method) if method is not None or KEY in infos else None

    def read(self, *mask_sources: tuple[dict[str, Any], np.ndarray]) -> np.ndarray:
        """The masks for the next actions, bool `[num_envs, size]`.

        Args:
            *mask_sources: pairs of infos, and a bool array `[num_envs]` that says for which environments these infos
                are the newest. An environment in none of them will ignore its action; its mask allows everything.

        Raises:
            EnvironmentFailure: a mask is missing, has the wrong shape, or allows no action.
        """
        masks = np.ones(self._shape, bool)
        if self._method is not None:
            self._fill(masks, self._called(), np.any([rows for _, rows in mask_sources], 0))
        else:
            for infos, rows in mask_sources:
                given = np.asarray(infos.get(f"_{KEY}", np.full(len(rows), KEY in infos)))
                if (missing := rows & ~given).any():
                    self._fail(missing, f"gave no info[{KEY!r}], but did before")
                if rows.any():
                    self._fill(masks, infos[KEY], rows)
        if not (allowing := _allowing(masks, self._sizes)).all():
            mask = masks[~allowing][0].astype(int)
            self._fail(~allowing, f"allows no action: its action mask is {mask}")
        self._reads += 1
        return masks

    def _called(self) -> Any:
        try:
            return self._method()  # type: ignore[misc]
        except FAILURES as error:
            reraise_of_signal_handler(error)
            raise EnvironmentFailure(
                f"{self._name} raised {type(error).__name__} in {METHOD}(): {error} ({self._when})"
            ) from error

    def _fill(self, masks: np.ndarray, given: Any, rows: np.ndarray) -> None:
        if isinstance(given, np.ndarray) and given.dtype != object and given.shape == masks.shape:
            try:
                masks[rows] = _as_bools(given[rows])
            except Fault as fault:
                self._fail(rows, str(fault))
            return
        for index in np.flatnonzero(rows):
            try:
                masks[index] = flat_mask(given[index], self._sizes)
            except Fault as fault:
                self._fail(np.arange(len(rows)) == index, str(fault))

    def _fail(self, rows: np.ndarray, what: str) -> NoReturn:
        index = int(np.argmax(rows))
        raise EnvironmentFailure(f"{self._numbering.named(self._name, index)} {what} ({self._when})")

    @property
    def _when(self) -> str:
        return f"at step {self._reads}" if self._reads else "in the reset"


def _allowing(masks: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Whether each mask `[..., sum(sizes)]` allows at least one value for every component."""
    return np.all(np.logical_or.reduceat(masks, np.cumsum(sizes) - sizes, axis=-1), -1)


def _method(envs: VectorEnv) -> Callable[[], Any] | None:
    """The method `action_masks` of the environments, or of the vector environment itself."""
    base = envs.unwrapped
    if isinstance(base, (SyncVectorEnv, AsyncVectorEnv)):
        # Ask first, because calling a method that does not exist would end the worker processes.
        if not all(base.call("has_wrapper_attr", METHOD)):
            return None
        # Environments from `make_vec`, and those in a `SyncVectorEnv`, have this method. After the end of a game,
        # `action_masks` may fail.
        if all(base.call("has_wrapper_attr", "call_unless_ended")):
            return lambda: base.call("call_unless_ended", METHOD)
        return lambda: base.call(METHOD)
    own = getattr(base, METHOD, None)
    return own if callable(own) else None
