"""The search space: every point of it is a valid configuration, and the search can start where it should."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_lnlstm.config import PPOConfig, make_config
from rl_lnlstm.errors import UserError
from rl_lnlstm.presets import PRESETS, preset
from rl_lnlstm.tuning.space import (
    SEARCHED,
    Choice,
    LogRange,
    decoded,
    encoded,
    options_at,
    point_of,
    search_space,
)

SIZES = "num_steps", "sequence_length", "num_minibatches"


def all_sizes(space):
    """All points that differ in the sizes of rollouts, sequences and minibatches."""
    names = [name for name in space if "sequences" in name or name == "num_steps"]
    for values in itertools.product(*(space[name].values for name in names)):
        yield {**{name: ends(values)[0] for name, values in space.items()}, **dict(zip(names, values, strict=True))}


def ends(values):
    return (values.values[0], values.values[-1]) if isinstance(values, Choice) else (values.low, values.high)


@st.composite
def bases(draw):
    """Options at which a search may start, and the names of those that are fixed."""
    num_envs = draw(st.integers(1, 12))
    length = draw(st.integers(1, 40))
    options = {
        "num_envs": num_envs,
        "num_steps": length * draw(st.integers(1, 6)),
        "sequence_length": draw(st.sampled_from([None, length])),
        "num_minibatches": draw(st.one_of(st.none(), st.integers(1, 12))),
        "eval_interval": draw(st.integers(0, 5)),
    }
    return options, draw(st.sets(st.sampled_from(SIZES)))


@settings(max_examples=150, deadline=None)
@given(bases())
def test_every_combination_of_sizes_is_valid_and_keeps_what_is_fixed(given_base):
    options, fixed = given_base
    try:
        base = PPOConfig(**options)
    except UserError:
        return  # refused before a search starts
    space = search_space(base, fixed)
    points = list(all_sizes(space))
    assert points
    for point in points:
        config = PPOConfig(**options_at(point, base, fixed))
        for name in fixed:
            kept = base.bptt_steps if name == "sequence_length" else getattr(base, name)
            assert getattr(config, name) == kept
        assert config.num_envs == base.num_envs


@pytest.mark.parametrize("env_id", [*PRESETS, "CartPole-v1"])
def test_a_search_starts_at_the_preset(env_id):
    base = make_config(**preset(env_id))
    space = search_space(base, ())
    start = point_of(vars(base), space)
    assert start is not None
    config = PPOConfig(**options_at(start, base, ()))
    same = {name for name, value in vars(config).items() if value == getattr(base, name)}
    assert vars(config).keys() - same <= {"sequence_length", "num_minibatches"}  # None became the number it stands for
    assert (config.bptt_steps, config.minibatches) == (base.bptt_steps, base.minibatches)


def test_fixed_options_are_not_searched():
    base = PPOConfig(learning_rate=0.5, units=7, num_steps=50)
    space = search_space(base, {"learning_rate", "units", "num_steps"})
    assert not space.keys() & {"learning_rate", "units", "num_steps"}
    options = options_at({name: ends(values)[0] for name, values in space.items()}, base, {"num_steps"})
    assert (options["learning_rate"], options["units"], options["num_steps"]) == (0.5, 7, 50)
    assert search_space(base, SEARCHED) == {}


def test_values_become_numbers_and_back():
    space = search_space(PPOConfig(), ())
    for name, values in space.items():
        for value in ends(values):
            assert decoded(name, encoded(name, value, space), space) == value
    assert isinstance(space["learning_rate"], LogRange)
    assert decoded("learning_rate", 0.00123456, space) == 0.00123


def test_evaluations_keep_their_distance_in_frames():
    base = PPOConfig(num_steps=64, eval_interval=40)
    assert options_at({"num_steps": 256}, base, ())["eval_interval"] == 10
    assert options_at({"num_steps": 32}, base, ())["eval_interval"] == 80
    assert options_at({"num_steps": 256}, PPOConfig(), ())["eval_interval"] == 0


def test_options_of_another_space_are_outside():
    base = PPOConfig()
    space = search_space(base, ())
    assert point_of({**vars(base), "gamma": 0.5}, space) is None
    assert point_of({**vars(base), "learning_rate": 1.0}, space) is None
