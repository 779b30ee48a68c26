"""Environments: `make_vec`, which makes and checks all environments, and the environments of this package.

Importing this module registers these ids with Gymnasium: `CartPoleNoVel-v1`, `PendulumNoVel-v1`,
`MountainCarContinuousNoVel-v0`, `LunarLanderNoVel-v3`, `TMaze-v0` and `RepeatPrevious-v0`.
"""

from rl_lnlstm.envs.make_vec import make_vec, restore_snapshot, take_snapshot
from rl_lnlstm.envs.tasks import memory_task
from rl_lnlstm.envs.tasks.novel import HideVelocities, register_novel
from rl_lnlstm.envs.tasks.repeat_previous import RepeatPreviousEnv, RepeatPreviousVectorEnv
from rl_lnlstm.envs.tasks.tmaze import TMazeEnv, TMazeVectorEnv

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

memory_task.register("TMaze-v0", TMazeEnv, TMazeVectorEnv)
memory_task.register("RepeatPrevious-v0", RepeatPreviousEnv, RepeatPreviousVectorEnv)
register_novel()
