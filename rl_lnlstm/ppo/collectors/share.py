"""`Share`: which environments of a run a collector owns."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Share:
    """The environments of a run that a collector owns: `count` from number `first` on, of `total`."""

    first: int
    count: int
    total: int

    @property
    def numbers(self) -> range:
        """The numbers of these environments."""
        return range(self.first, self.first + self.count)

    @property
    def rows(self) -> slice:
        """Where these environments stand in a list or array of all environments."""
        return slice(self.first, self.first + self.count)


def shares_of(num_envs: int, workers: int) -> list[Share]:
    """The environments of each worker: worker i has the i-th part."""
    count = num_envs // workers
    return [Share(first, count, num_envs) for first in range(0, num_envs, count)]
