"""Learning CartPoleNoVel-v1 to a score, with this library; for `peers.py`.

The score is the mean return of deterministic episodes, after every 4,096 frames. Evaluations are part of the time.
"""

from __future__ import annotations

import time
from typing import NamedTuple

ENV_ID = "CartPoleNoVel-v1"
TARGET, EPISODES, EVALUATE_EVERY = 475.0, 20, 4096
FRAMES = 200_000  # the end, if the target is not reached
EVALUATION_SEED = 1000


class Learnt(NamedTuple):
    frames: int
    score: float
    all_cpu_seconds: float


class Ours:
    """With the environment's preset."""

    def run(self, seed: int) -> Learnt:
        from rl_lnlstm import PPO, evaluate_policy
        from rl_lnlstm.envs import make_vec

        envs = make_vec(ENV_ID, EPISODES)
        frames, score, due = 0, 0.0, EVALUATE_EVERY

        def after_iteration(metrics: dict[str, float]) -> bool:
            nonlocal frames, score, due
            frames = int(metrics["time/total_timesteps"])
            if frames >= due:
                due += EVALUATE_EVERY
                score, _ = evaluate_policy(ppo.policy, envs, EPISODES, seed=EVALUATION_SEED)
            return score < TARGET

        with PPO("auto", ENV_ID, seed=seed) as ppo:
            ppo.learn(ppo.config.total_timesteps, after_iteration)
        envs.close()
        return Learnt(frames, score, time.process_time())
