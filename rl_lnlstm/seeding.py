"""Seeds for named purposes, derived from one seed.

Seeds for different purposes, and from neighbouring seeds, are independent (numpy.random.SeedSequence).
"""

from __future__ import annotations

import numpy as np

# The position of a purpose determines its seeds, so add new purposes only at the end.
PURPOSES = ("environments", "policy", "shuffling", "selection", "evaluation", "sampling", "acting", "pretraining")


def seed_sequence(seed: int, purpose: str, *numbers: int) -> np.random.SeedSequence:
    """The seed sequence of a purpose and of numbers within it, such as the number of an episode."""
    return np.random.SeedSequence(seed, spawn_key=(PURPOSES.index(purpose), *numbers))


def derived_seed(seed: int, purpose: str, *numbers: int) -> int:
    """An integer seed from `seed_sequence`."""
    return integer_seed(seed_sequence(seed, purpose, *numbers))


def random_seed() -> int:
    """An integer seed that is different each time."""
    return integer_seed(np.random.SeedSequence())


def integer_seed(sequence: np.random.SeedSequence) -> int:
    """An integer seed of 31 bits, because some environments take no more."""
    return int(sequence.generate_state(1)[0] >> 1)
