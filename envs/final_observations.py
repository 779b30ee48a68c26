"""The last observations of episodes in autoreset mode SAME_STEP."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.checks import checked_observation
from rl_lnlstm.envs.faults import Fault
from rl_lnlstm.errors import warn
from rl_lnlstm.spaces import flatten, leaves

# A warning is given after this number of episodes in a row that end with the first observation of the next episode. The
# number is large, because some environments have few different observations.
SUSPICIOUS = 20


class FinalObservations:
    """Reads `info["final_obs"]` of a vector environment.

    If an environment returns the same array at every step, Gymnasium's `AsyncVectorEnv` overwrites the last observation
    of an episode with the first one of the next. The original is lost, so this can only be noticed: such observations
    are equal.

    Args:
        space: of a single observation.
        name: the name of the environments in messages.
        may_share: whether the environments may return the same array at every step.
    """

    def __init__(self, space: gym.Space, name: str, may_share: bool) -> None:
        self._space, self._name = space, name
        self._watches = may_share and any(isinstance(leaf, gym.spaces.Box) for leaf in leaves(space))
        self._equal = 0

    def read(self, infos: dict[str, Any], ends: np.ndarray, observations: Any) -> np.ndarray:
        """Copies of the last observations: an array `[num_envs]` of objects, None where no episode ended.

        Vector environments return them as one object for each environment, or as a batch with the structure of
        observations.

        Args:
            infos: of the step.
            ends: `[num_envs]`, where an episode ended.
            observations: of the step, `[num_envs, ...]`.

        Raises:
            Fault: there is none for an episode that ended, or it does not fit the space.
        """
        given, num_envs = infos.get("final_obs"), len(ends)
        final = np.full(num_envs, None, object)
        one_by_one = isinstance(given, list) or (isinstance(given, np.ndarray) and given.dtype == object)
        batch = None
        if given is not None and not one_by_one:
            batch = checked_observation(self._space, given, (num_envs,), "info['final_obs']")
        for index in np.flatnonzero(ends).tolist():
            observation = None if given is None else given[index] if batch is None else _row(batch, index)
            try:
                if observation is None:
                    raise Fault(
                        "gave no info['final_obs'] for an episode that ended, which autoreset mode SAME_STEP requires",
                        lasting=True,
                    )
                final[index] = checked_observation(self._space, observation, (), "info['final_obs']")
            except Fault as fault:
                fault.index = index
                raise
            if self._watches:
                self._compare(final[index], _row(observations, index))
        return final

    def _compare(self, last: Any, first: Any) -> None:
        pairs = zip(flatten(self._space, last), flatten(self._space, first), strict=True)
        self._equal = self._equal + 1 if all(np.array_equal(one, other) for one, other in pairs) else 0
        if self._equal == SUSPICIOUS:
            self._watches = False
            warn(
                f"{self._name}: the last observations of {SUSPICIOUS} episodes in a row equal the first observations "
                "of the next ones. If the environment returns the same array at every step, they are lost, and "
                "truncated episodes get wrong values: return a new array, let make_vec make the environments, or use "
                "AutoresetMode.NEXT_STEP"
            )


def _row(batch: Any, index: int) -> Any:
    if isinstance(batch, dict):
        return {key: _row(part, index) for key, part in batch.items()}
    return tuple(_row(part, index) for part in batch) if isinstance(batch, tuple) else batch[index]
