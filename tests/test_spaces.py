"""Spaces as JSON with strict reading, and observations in the structure of a space."""

import json

import numpy as np
import pytest
from gymnasium import spaces

from rl_lnlstm import UserError
from rl_lnlstm.spaces import batch_of, categories, check_observation_space, flatten, map_leaves, unflatten
from rl_lnlstm.spaces_json import space_from_json, space_to_json
from tests.any_space import OBSERVATION_SPACES

SPACES = {
    **OBSERVATION_SPACES,
    "bounds of each": spaces.Box(np.array([-1, -np.inf]), np.array([np.inf, 3]), dtype=np.float64),
    "large integers": spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (2,), np.int64),
    "large unsigned": spaces.Box(0, np.iinfo(np.uint64).max, (2,), np.uint64),
    "small discrete": spaces.Discrete(3, dtype=np.int32),
    "multi-binary of one axis": spaces.MultiBinary([3]),
    "unsorted": spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(3))]),
    "empty tuple": spaces.Tuple([]),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_space_survives_json(space):
    read = space_from_json(json.loads(json.dumps(space_to_json(space))))
    assert read == space
    assert type(read) is type(space)
    if isinstance(space, spaces.Dict):
        assert list(read) == list(space)
    else:
        assert (read.shape, read.dtype) == (space.shape, space.dtype)


BOX = space_to_json(spaces.Box(-1, 1, (2,)))
NESTED = BOX
for _ in range(40):
    NESTED = {"type": "Tuple", "spaces": [NESTED]}
DAMAGED = {
    "no object": [1],
    "no type": {"n": 3},
    "unknown": {"type": "os.system", "command": "ls"},
    "type of another type": {"type": ["Box"]},
    "unknown entry": {**BOX, "seed": 3},
    "missing entry": {"type": "Box", "shape": [2]},
    "size": {**BOX, "shape": [2.0]},
    "negative size": {**BOX, "shape": [-2]},
    "huge": {**BOX, "shape": [10**6, 10**6], "low": 0, "high": 1},
    "huge Discrete": {"type": "Discrete", "n": 10**15, "start": 0},
    "huge MultiBinary": {"type": "MultiBinary", "shape": [10**5, 10**5], "flat": False},
    "huge MultiDiscrete": {"type": "MultiDiscrete", "shape": [2], "dtype": "int64", "nvec": 2**62, "start": 0},
    "empty MultiDiscrete": {"type": "MultiDiscrete", "shape": [2], "dtype": "int64", "nvec": 0, "start": 0},
    "bounds of another shape": {**BOX, "low": [1, 2, 3]},
    "bounds that are no numbers": {**BOX, "low": ["a", "b"]},
    "dtype": {**BOX, "dtype": "object"},
    "dtype of many": {**BOX, "dtype": "f4,f4"},
    "n": {"type": "Discrete", "n": "3", "start": 0},
    "bool": {"type": "Discrete", "n": True, "start": 0},
    "n of 0": {"type": "Discrete", "n": 0, "start": 0},
    "key": {"type": "Dict", "spaces": [[3, BOX]]},
    "key twice": {"type": "Dict", "spaces": [["a", BOX], ["a", BOX]]},
    "object for a list": {"type": "Tuple", "spaces": {"a": BOX}},
    "flat of two axes": {"type": "MultiBinary", "shape": [2, 2], "flat": True},
    "too deep": NESTED,
}


@pytest.mark.parametrize("description", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_description_is_refused(description):
    with pytest.raises((KeyError, TypeError, ValueError, AssertionError)):
        space_from_json(description)


def test_what_cannot_be_written():
    with pytest.raises(UserError, match="Text"):
        space_to_json(spaces.Tuple([spaces.Text(3)]))
    with pytest.raises(UserError, match="must be strings to be saved, got 3"):
        space_to_json(spaces.Dict([(3, spaces.Discrete(2))]))
    with pytest.raises(UserError, match=r"observation space\['a'\] must have names as keys, got \[3\]"):
        check_observation_space(spaces.Dict({"a": spaces.Dict([(3, spaces.Discrete(2))])}))


@pytest.mark.parametrize("kind", OBSERVATION_SPACES)
def test_one_observation_or_many(kind):
    space = OBSERVATION_SPACES[kind]
    space.seed(0)
    samples = [space.sample() for _ in range(3)]
    batch, size = batch_of(space, map_leaves(lambda _, *parts: np.stack(parts), space, *samples))
    assert size == 3
    for index, sample in enumerate(samples):
        alone, size = batch_of(space, sample)
        assert size is None
        for one, many, part in zip(*(flatten(space, each) for each in (alone, batch, sample)), strict=True):
            assert one.shape == (1, *np.shape(part))
            np.testing.assert_array_equal(one[0], part)
            np.testing.assert_array_equal(many[index], part)
    for part, again in zip(flatten(space, batch), flatten(space, unflatten(space, flatten(space, batch))), strict=True):
        assert part is again


def test_what_is_no_observation_is_refused():
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3))
    for wrong in (np.zeros(2), {"a": np.zeros(2)}, {"a": np.zeros(3), "b": 1}):
        with pytest.raises(UserError, match="observation must"):
            batch_of(space, wrong)
    with pytest.raises(UserError, match=r"same batch size, got \[2, 3\]"):
        batch_of(space, {"a": np.zeros((2, 2)), "b": np.zeros(3, int)})


def test_categories_are_gymnasiums_one_hot_coding():
    for space in (spaces.Discrete(4, start=-2), *(OBSERVATION_SPACES[k] for k in OBSERVATION_SPACES if "multi-d" in k)):
        component, value = categories(space)
        space.seed(0)
        for _ in range(20):
            sample = space.sample()
            coded = np.ravel(sample)[component] == value
            np.testing.assert_array_equal(coded, spaces.flatten(space, sample))
