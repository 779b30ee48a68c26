"""Environments with hidden velocities. The agent has to infer them from earlier observations."""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np

from rl_lnlstm.errors import UserError

# id -> (the original, the components of its observation that are velocities)
_NOVEL = {
    "CartPoleNoVel-v1": ("CartPole-v1", [1, 3]),
    "PendulumNoVel-v1": ("Pendulum-v1", [2]),
    "MountainCarContinuousNoVel-v0": ("MountainCarContinuous-v0", [1]),
    "LunarLanderNoVel-v3": ("LunarLander-v3", [2, 3, 5]),
}


class HideVelocities(gym.ObservationWrapper, gym.utils.RecordConstructorArgs):
    """Multiplies the given components of the observation by zero and changes nothing else.

    The observation space keeps its shape, bounds and dtype. `MaskVelocityWrapper` of rl-baselines3-zoo does the same,
    so its published scores on the NoVel environments are comparable.

    Args:
        env: an environment whose observations are a vector of floats, Box `[n]`.
        indices: the components to hide, each in `0..n-1`.

    Raises:
        UserError: the observations are not a vector of floats, or an index is out of range.

    Example:
        >>> env = HideVelocities(gym.make("Acrobot-v1"), indices=[4, 5])
    """

    def __init__(self, env: gym.Env, indices: Sequence[int]) -> None:
        indices = [int(index) for index in indices]
        gym.utils.RecordConstructorArgs.__init__(self, indices=indices)
        gym.ObservationWrapper.__init__(self, env)
        space = env.observation_space
        if not (
            isinstance(space, gym.spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
        ):
            raise UserError(f"HideVelocities expects observations in a floating-point Box of rank 1, got {space}")
        size = space.shape[0]
        if not all(0 <= index < size for index in indices):
            raise UserError(f"indices={indices}: expected components of the observation, each in 0..{size - 1}")
        self._mask = np.ones(size, space.dtype)
        self._mask[indices] = 0

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Returns a new array, `[n]` as the observation, in which the hidden components are zero."""
        return observation * self._mask


def register_novel() -> None:
    """Registers the NoVel environments with Gymnasium, with the step and reward limits of the originals."""
    for env_id, (original_id, indices) in _NOVEL.items():
        if env_id in gym.registry:
            continue
        original = gym.spec(original_id)
        # The wrapper is part of the spec, and not hidden in an entry point. So the spec of an environment, and its JSON
        # and pickle, make the same environment again.
        gym.register(
            id=env_id,
            entry_point=original.entry_point,
            max_episode_steps=original.max_episode_steps,
            reward_threshold=original.reward_threshold,
            nondeterministic=original.nondeterministic,
            additional_wrappers=(HideVelocities.wrapper_spec(indices=indices),),
            kwargs=dict(original.kwargs),
        )
