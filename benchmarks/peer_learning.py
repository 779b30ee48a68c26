"""Learning CartPoleNoVel-v1 to a score, with the libraries of this environment; for `peers.py`.

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


class StableBaselines:
    """With the hyperparameters of rl-baselines3-zoo."""

    def __init__(self, threads: int | None = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, seed: int) -> Learnt:
        from sb3_contrib import RecurrentPPO
        from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
        from stable_baselines3.common.env_util import make_vec_env
        from stable_baselines3.common.utils import LinearSchedule

        import rl_lnlstm.envs  # noqa: F401, it registers the environment

        num_envs = 8
        model = RecurrentPPO(
            "MlpLstmPolicy",
            make_vec_env(ENV_ID, num_envs, seed=seed),
            n_steps=32,
            batch_size=256,
            gae_lambda=0.8,
            gamma=0.98,
            n_epochs=20,
            learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
            clip_range=LinearSchedule(0.2, 0.0, 1.0),
            seed=seed,
            device="cpu",
        )
        evaluation = EvalCallback(
            make_vec_env(ENV_ID, EPISODES, seed=EVALUATION_SEED),
            callback_on_new_best=StopTrainingOnRewardThreshold(TARGET),
            n_eval_episodes=EPISODES,
            eval_freq=EVALUATE_EVERY // num_envs,
            verbose=0,
            warn=False,
        )
        model.learn(100_000, evaluation)
        return Learnt(model.num_timesteps, float(evaluation.last_mean_reward), time.process_time())
