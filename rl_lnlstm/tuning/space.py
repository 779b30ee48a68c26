"""The search space: the options that matter to a recurrent policy, and the values that a sweep tries.

Every point of the space is a valid `PPOConfig`. So the space does not contain `sequence_length` and `num_minibatches`
themselves, whose valid values depend on other options. It contains two numbers that always divide:

- `sequences_per_rollout` is `num_steps / sequence_length`,
- `sequences_per_minibatch` determines `num_minibatches`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from rl_lnlstm.config import PPOConfig

PER_ROLLOUT, PER_MINIBATCH = "sequences_per_rollout", "sequences_per_minibatch"


class Choice(NamedTuple):
    """Values in ascending order."""

    values: tuple[Any, ...]


class LogRange(NamedTuple):
    """All numbers between two bounds, sampled uniformly on a logarithmic scale."""

    low: float
    high: float


Space = dict[str, Choice | LogRange]  # names of options, or of the two numbers above -> their values
Point = dict[str, Any]  # the same names -> a value for each

LEARNING_RATES = LogRange(1e-4, 3e-3)
CHOICES: dict[str, tuple[Any, ...]] = {
    "gamma": (0.9, 0.95, 0.98, 0.99, 0.995, 0.999),
    "gae_lambda": (0.8, 0.9, 0.95, 0.98),
    "update_epochs": (3, 5, 10),
    "clip_coef": (0.1, 0.2, 0.3),
    "ent_coef": (0.0, 0.001, 0.003, 0.01),
    "units": (32, 64, 128),
    "shared_lstm": (False, True),
    "normalize_observations": (False, True),
    "normalize_rewards": (False, True),
}
NUM_STEPS = 32, 64, 128, 256
SEQUENCES_PER_ROLLOUT = 1, 2, 4
SEQUENCES_PER_MINIBATCH = 2, 4, 8, 16, 32
SEARCHED = ("learning_rate", *CHOICES, "num_steps", "sequence_length", "num_minibatches")


def search_space(base: PPOConfig, fixed: Collection[str]) -> Space:
    """The values to try for each option. They include those of `base`, where the search starts.

    Args:
        base: the options at which the search starts.
        fixed: names of the options that keep their values of `base`.
    """
    space: Space = {}
    if "learning_rate" not in fixed:
        low, high = LEARNING_RATES
        space["learning_rate"] = LogRange(min(low, base.learning_rate), max(high, base.learning_rate))
    for name, values in CHOICES.items():
        if name not in fixed:
            space[name] = _choice(values, getattr(base, name))
    space.update(_rollout(base, fixed))
    return {name: values for name, values in space.items() if not isinstance(values, Choice) or len(values.values) > 1}


def _rollout(base: PPOConfig, fixed: Collection[str]) -> Space:
    """The sizes of rollouts, sequences and minibatches, so that all combinations divide."""
    start = _sizes(base)
    steps = _choice(() if "num_steps" in fixed else NUM_STEPS, base.num_steps).values
    cuts = _choice(() if "sequence_length" in fixed else SEQUENCES_PER_ROLLOUT, start[PER_ROLLOUT]).values
    batches = _choice(() if "num_minibatches" in fixed else SEQUENCES_PER_MINIBATCH, start[PER_MINIBATCH]).values
    batches = tuple(size for size in batches if base.num_envs % size == 0 or size == start[PER_MINIBATCH])
    cuts = tuple(cut for cut in cuts if base.num_steps % cut == 0)
    steps = tuple(number for number in steps if all(number % cut == 0 for cut in cuts))

    def divides(cut: int) -> bool:
        sequences = base.num_envs * cut
        if "num_minibatches" in fixed and base.num_minibatches is not None:
            return sequences % base.num_minibatches == 0
        return all(sequences % size == 0 for size in batches)

    if "sequence_length" in fixed:
        length = base.bptt_steps
        steps = tuple(number for number in steps if number % length == 0 and divides(number // length))
    else:
        cuts = tuple(filter(divides, cuts))
    space: Space = {"num_steps": Choice(steps)}
    if "sequence_length" not in fixed:
        space[PER_ROLLOUT] = Choice(cuts)
    if "num_minibatches" not in fixed:
        space[PER_MINIBATCH] = Choice(batches)
    return space


def _choice(values: tuple[Any, ...], start: Any) -> Choice:
    return Choice(tuple(sorted({*values, start})))


def _sizes(config: PPOConfig) -> dict[str, int]:
    cuts = config.num_steps // config.bptt_steps
    return {PER_ROLLOUT: cuts, PER_MINIBATCH: config.num_envs * cuts // config.minibatches}


def point_of(options: Mapping[str, Any], space: Space) -> Point | None:
    """The point of the space at which these options are; None if they are outside."""
    config = PPOConfig(**options)
    values = {**vars(config), **_sizes(config)}
    point = {name: values[name] for name in space}
    inside = all(
        point[name] in values.values if isinstance(values, Choice) else values.low <= point[name] <= values.high
        for name, values in space.items()
    )
    return point if inside else None


def options_at(point: Mapping[str, Any], base: PPOConfig, fixed: Collection[str]) -> dict[str, Any]:
    """The options at a point of the space, as arguments of `PPOConfig`."""
    own = {name: value for name, value in point.items() if name not in (PER_ROLLOUT, PER_MINIBATCH)}
    options = {**dataclasses.asdict(base), **own}
    sizes = {**_sizes(base), **point}
    fixed_length = "sequence_length" in fixed
    length = options["sequence_length"] = (
        base.bptt_steps if fixed_length else options["num_steps"] // sizes[PER_ROLLOUT]
    )
    if "num_minibatches" not in fixed:
        options["num_minibatches"] = base.num_envs * (options["num_steps"] // length) // sizes[PER_MINIBATCH]
    if base.eval_interval:  # about as many frames between evaluations
        options["eval_interval"] = max(1, round(base.eval_interval * base.num_steps / options["num_steps"]))
    return options


def encoded(name: str, value: Any, space: Space) -> float:
    """A value as the number that Optuna sees: its place among the choices, which keeps their order."""
    values = space[name]
    return float(value) if isinstance(values, LogRange) else values.values.index(value)


def decoded(name: str, number: float, space: Space) -> Any:
    """The value of a number that Optuna chose, learning rates rounded to three digits."""
    values = space[name]
    if isinstance(values, Choice):
        return values.values[int(number)]
    rounded = float(f"{number:.3g}")
    return min(max(rounded, values.low), values.high) if math.isfinite(rounded) else number
