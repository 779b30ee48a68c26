"""The defaults of `sequence_length` and `num_minibatches`. They follow from the size of a rollout."""

from __future__ import annotations

SEQUENCE_LENGTH = 64  # updates take a fifth less time than with 128, and no less is learnt; see benchmarks/RESULTS.md
MINIBATCHES = 8  # measured together with 5 epochs and a learning rate of 2e-3; see benchmarks/RESULTS.md


def default_sequence_length(num_envs: int, num_steps: int, num_minibatches: int | None) -> int:
    """64 if that divides `num_steps`, otherwise `num_steps`; less if that is too few sequences for minibatches."""
    length = SEQUENCE_LENGTH if num_steps % SEQUENCE_LENGTH == 0 else num_steps
    return min(length, sequence_length_before(num_envs, num_steps, num_minibatches))


def default_minibatches(sequences: int) -> int:
    """The number of minibatches in an epoch over so many sequences."""
    return _largest_divisor(sequences, MINIBATCHES)


def sequence_length_before(num_envs: int, num_steps: int, num_minibatches: int | None) -> int:
    """The default of `sequence_length` in earlier versions: whole rollouts, unless that is too few sequences."""
    few = num_minibatches is None and minibatches_before(num_envs) == 1
    return num_steps // minibatches_before(num_steps) if few else num_steps


def minibatches_before(sequences: int) -> int:
    """The default of `num_minibatches` in earlier versions."""
    return _largest_divisor(sequences, 4)


def _largest_divisor(count: int, most: int) -> int:
    """The largest number up to `most` that divides `count`."""
    return next(number for number in range(most, 0, -1) if count % number == 0)
