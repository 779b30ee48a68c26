"""Checks and copies of actions, observations, rewards, ends and infos.

Functions for a single environment take and return what `gymnasium.Env` does. Functions for a vector environment have
names in the plural, and take and return arrays `[num_envs, ...]`. Results never share memory with arguments. Where an
environment breaks a rule, they raise a `Fault` that says what was returned and what was expected.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.faults import Fault
from rl_lnlstm.errors import one_line
from rl_lnlstm.spaces import LEAVES, map_leaves

ANSWERS = {"reset": "(observation, info)", "step": "5 values, (observation, reward, terminated, truncated, info)"}
NUMBERS = "biuf"  # NumPy's kinds: bool, integers, floating point
# Most spaces have one of these types. Looking a type up takes a tenth of the time of `isinstance(space, Dict)`, which
# asks an abstract base class. These functions are called in every step.
LEAF_TYPES = frozenset(LEAVES)

# --------------------------------------------------------------------------------------------------------- actions


def as_element(space: gym.Space, action: Any) -> Any:
    """Converts an action to an element of the space: a NumPy scalar for `Discrete`, otherwise a new array."""
    return _leaf_element(space, action) if type(space) in LEAF_TYPES else map_leaves(_leaf_element, space, action)


def _leaf_element(leaf: gym.Space, part: Any) -> Any:
    if isinstance(leaf, gym.spaces.Discrete):
        return leaf.dtype.type(np.asarray(part).item())
    return np.array(part, dtype=leaf.dtype) if isinstance(leaf, LEAVES) else copy.deepcopy(part)


def as_elements(space: gym.Space, actions: Any) -> Any:
    """Copies the actions of several environments, and converts each part to the dtype of its leaf."""
    if type(space) in LEAF_TYPES:
        return np.array(actions, dtype=space.dtype)
    return map_leaves(
        lambda leaf, part: np.array(part, dtype=leaf.dtype) if isinstance(leaf, LEAVES) else copy.deepcopy(part),
        space,
        actions,
    )


# ---------------------------------------------------------------------------------------------------- observations


def checked_observation(
    space: gym.Space, observation: Any, batch: tuple[int, ...] = (), what: str = "observation"
) -> Any:
    """Copies an observation, and checks that it has the structure and shapes of the space.

    Numbers are cast to the space's dtype if only precision is lost: any number to floating point, and integers to other
    integers that can hold them.

    Args:
        space: of a single observation.
        observation: what the environment returned.
        batch: `(num_envs,)` for the observations of a vector environment.
        what: the name of the observation in messages.

    Raises:
        Fault: the observation has another structure, shape or type.
    """
    if (
        type(space) in LEAF_TYPES
        and type(observation) is np.ndarray
        and observation.dtype == space.dtype
        and observation.shape == batch + space.shape  # type: ignore[operator]
    ):
        return observation.copy()
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(observation, Mapping):
            raise Fault(f"returned {_shown(observation)} as {what}, expected a dict", lasting=True)
        if missing := [key for key in space.spaces if key not in observation]:
            raise Fault(f"returned {what} without {missing[0]!r}, expected the keys {list(space.spaces)}", lasting=True)
        return {
            key: checked_observation(inner, observation[key], batch, f"{what}[{key!r}]")
            for key, inner in space.spaces.items()
        }
    if isinstance(space, gym.spaces.Tuple):
        count = len(space.spaces)
        if not isinstance(observation, tuple | list) or len(observation) != count:
            raise Fault(f"returned {_shown(observation)} as {what}, expected a tuple of {count}", lasting=True)
        return tuple(
            checked_observation(inner, part, batch, f"{what}[{index}]")
            for index, (inner, part) in enumerate(zip(space.spaces, observation, strict=True))
        )
    if not isinstance(space, LEAVES):
        return copy.deepcopy(observation)
    shape = (*batch, *(space.shape or ()))
    return _cast(_as_array(observation, what), shape, np.dtype(space.dtype), what)


def _as_array(value: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:  # its parts have different shapes
        raise Fault(f"returned {_shown(value)} as {what}, which is not an array: {error}", lasting=True) from error


def _cast(array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, what: str) -> np.ndarray:
    if array.shape != shape:
        raise Fault(f"returned {what} of shape {list(array.shape)}, expected {list(shape)}", lasting=True)
    kinds = array.dtype.kind + dtype.kind
    if array.dtype == dtype:
        return array.copy()
    if array.dtype.kind in NUMBERS and dtype.kind == "f":
        with np.errstate(over="ignore"):  # a later check finds values that became infinite
            return array.astype(dtype)
    if kinds[0] in "biu" and kinds[1] in "biu":
        cast = array.astype(dtype)
        if np.array_equal(cast, array):
            return cast
        wrong = array[cast != array].flat[0]
        raise Fault(f"returned {wrong} in {what}, which does not fit the space's {dtype}", lasting=True)
    raise Fault(f"returned {what} of {_dtype_name(array)}, expected {dtype}", lasting=True)


class CheckedPart(NamedTuple):
    """A part of an observation whose values are checked in every step."""

    what: str
    path: tuple[Any, ...]  # the keys that lead to it
    bounds: tuple[Any, Any] | None  # lowest and highest value; None for floating point, which must be finite


def checked_parts(space: gym.Space, path: tuple[Any, ...] = ()) -> Iterator[CheckedPart]:
    """The parts of an observation that can hold values a network cannot use: NaN, infinity, or unknown categories."""
    what = "observation" + "".join(f"[{key!r}]" for key in path)
    if isinstance(space, gym.spaces.Dict | gym.spaces.Tuple):
        entries = space.spaces.items() if isinstance(space, gym.spaces.Dict) else enumerate(space.spaces)
        for key, inner in entries:
            yield from checked_parts(inner, (*path, key))
    elif isinstance(space, gym.spaces.Box):
        if np.issubdtype(space.dtype, np.floating):
            yield CheckedPart(what, path, None)
    elif isinstance(space, gym.spaces.Discrete):
        yield CheckedPart(what, path, (int(space.start), int(space.start) + int(space.n) - 1))
    elif isinstance(space, gym.spaces.MultiDiscrete):
        yield CheckedPart(what, path, (space.start, space.start + space.nvec - 1))
    elif isinstance(space, gym.spaces.MultiBinary):
        yield CheckedPart(what, path, (0, 1))


def wrong_values(parts: list[CheckedPart], observations: Any, single: bool = False) -> dict[int, Fault]:
    """The environments whose observations hold wrong values, with the first wrong value of each.

    Args:
        parts: the result of `checked_parts`.
        observations: a structure of arrays `[num_envs, ...]`.
        single: whether it is the observation of one environment, without the first axis.
    """
    faults: dict[int, Fault] = {}
    for part in parts:
        values = observations
        for key in part.path:
            values = values[key]
        values = np.asarray(values)[np.newaxis] if single else values
        found = not_finite(values, part.what) if part.bounds is None else _out_of_bounds(values, part)
        if found:
            faults = {**found, **faults}
    return faults


def not_finite(values: np.ndarray, what: str) -> dict[int, Fault]:
    """The environments with NaN or infinity in `values`, `[num_envs, ...]`, and the first component of each."""
    # A product with a value that is not finite is not finite. This costs less than half of the exact test, which
    # follows because the product may also overflow.
    if isfinite(np.vdot(values, values)):
        return {}
    return _first_of_each(values, ~np.isfinite(values), what, "")


def _out_of_bounds(values: np.ndarray, part: CheckedPart) -> dict[int, Fault]:
    assert part.bounds is not None
    low, high = part.bounds
    wrong = (values < low) | (values > high)
    if not wrong.any():
        return {}
    expected = f", expected {low}..{high}" if np.ndim(low) == np.ndim(high) == 0 else ", outside of its space"
    return _first_of_each(values, wrong, part.what, expected, lasting=True)


def _first_of_each(
    values: np.ndarray, wrong: np.ndarray, what: str, expected: str, lasting: bool = False
) -> dict[int, Fault]:
    faults: dict[int, Fault] = {}
    for index, *component in np.argwhere(wrong).tolist():
        where = f"[{', '.join(map(str, component))}]" if component else ""
        fault = Fault(f"returned {values[(index, *component)]} in {what}{where}{expected}", lasting=lasting)
        faults.setdefault(index, fault)
    return faults


# ------------------------------------------------------------------------------------------------ rewards and ends


def checked_reward(reward: Any) -> float:
    """The reward as a number. It may be a scalar of any kind, or an array of one number."""
    return reward if type(reward) is float else float(_single(reward, "reward", "a number"))


def checked_end(end: Any, what: str) -> bool:
    """The end of an episode as a bool. It may be a scalar of any kind, or an array of one number."""
    if type(end) is bool:
        return end
    value = _single(end, what, "a bool")
    if value != value:
        raise Fault(f"returned {value} as {what}, expected a bool", lasting=True)
    return bool(value)


def _single(value: Any, what: str, expected: str) -> Any:
    array = _as_array(value, what)
    if array.size != 1:
        raise Fault(f"returned {what} of shape {list(array.shape)}, expected {expected}", lasting=True)
    if array.dtype.kind not in NUMBERS:
        raise Fault(f"returned {_shown(value)} as {what}, expected {expected}", lasting=True)
    return array.item()


def checked_info(info: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """The numbers that `keys` name in the info of an episode's last step.

    Numbers in a dict are named "key/inner key". Keys that are absent or None are left out.
    """
    for key in keys:
        value = info.get(key)
        if isinstance(value, Mapping):
            for name, number in checked_info(value, tuple(value)):
                yield f"{key}/{name}", number
        elif value is not None:
            yield key, float(_single(value, f"info[{key!r}]", "a number"))


def checked_rewards(rewards: Any, num_envs: int) -> np.ndarray:
    """Copies the rewards `[num_envs]`; floating-point dtypes stay, others become float64."""
    if type(rewards) is np.ndarray and rewards.dtype.kind == "f" and rewards.shape == (num_envs,):
        return rewards.copy()
    array = _numbers(rewards, num_envs, "rewards")
    return array.astype(array.dtype if array.dtype.kind == "f" else np.float64)


def checked_ends(ends: Any, num_envs: int, what: str) -> np.ndarray:
    """Copies the ends of episodes, terminations or truncations, as bool `[num_envs]`."""
    if type(ends) is np.ndarray and ends.dtype.kind == "b" and ends.shape == (num_envs,):
        return ends.copy()
    array = _numbers(ends, num_envs, what)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise Fault(f"returned nan in {what}, expected bools", lasting=True)
    return array.astype(bool)


def _numbers(values: Any, num_envs: int, what: str) -> np.ndarray:
    array = _as_array(values, what)
    if array.shape not in ((num_envs,), (num_envs, 1)):
        raise Fault(f"returned {what} of shape {list(array.shape)}, expected [{num_envs}]", lasting=True)
    if array.dtype.kind == "O":  # for example an array of arrays with one number each
        array = np.array([_single(value, what, "numbers") for value in array.ravel()])
    if array.dtype.kind not in NUMBERS:
        raise Fault(f"returned {what} of {_dtype_name(array)}, expected numbers", lasting=True)
    return array.reshape(num_envs)


def unpacked(answer: Any, count: int, method: str) -> tuple[Any, ...]:
    """Returns the answer of `reset` or `step`, after checking that it is a tuple of the right length."""
    if isinstance(answer, tuple | list) and len(answer) == count:
        return tuple(answer)
    got = f"{len(answer)} values" if isinstance(answer, tuple | list) else f"a {type(answer).__name__}"
    raise Fault(f"returned {got} from {method}, expected {ANSWERS[method]}: got {_shown(answer)}", lasting=True)


def _dtype_name(array: np.ndarray) -> str:
    return "objects" if array.dtype.kind == "O" else "text" if array.dtype.kind in "US" else str(array.dtype)


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 80 else f"{text[:80]}..."
