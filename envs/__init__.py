"""Environments: vector environments with named failures, hidden velocities, and memory tasks.

Importing this registers with Gymnasium `CartPoleNoVel-v1`, `PendulumNoVel-v1`, `MountainCarContinuousNoVel-v0`,
`LunarLanderNoVel-v3`, `TMaze-v0` and `RepeatPrevious-v0`.
"""

from rl_lnlstm.envs.make_vec import make_vec, restore_snapshot, take_snapshot
from rl_lnlstm.envs.tasks.memory import (
    RepeatPreviousEnv,
    RepeatPreviousVectorEnv,
    TMazeEnv,
    TMazeVectorEnv,
    register_memory,
)
from rl_lnlstm.envs.tasks.novel import HideVelocities, register_novel

__all__ = [
    "HideVelocities",
    "RepeatPreviousEnv",
    "RepeatPreviousVectorEnv",
    "TMazeEnv",
    "TMazeVectorEnv",
    "make_vec",
    "restore_snapshot",
    "take_snapshot",
]

register_memory()
register_novel()
