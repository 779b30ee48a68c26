"""sb3-contrib's RecurrentPPO, for `peers.py`: the speed as `ppo.py` measures it, and learning CartPole.

To learn, it has the hyperparameters of rl-baselines3-zoo for CartPoleNoVel-v1.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import gymnasium as gym
import numpy as np
from peer_run import Task, main, make_env
from ppo_candidates import Options as Sizes
from ppo_candidates import StableBaselines


@dataclasses.dataclass(frozen=True)
class Options(Task):
    target: float | None = None
    """hide velocities, and learn until this score"""
    evaluate_every: int = 4
    """iterations from one evaluation to the next, if there is a target"""
    episodes: int = 20
    """deterministic episodes, whose mean return is the score"""


def without_velocities() -> gym.Env:
    env, mask = make_env(), np.array([1, 0, 1, 0], np.float32)
    return gym.wrappers.TransformObservation(env, lambda observation: observation * mask, env.observation_space)


def speed(options: Options) -> dict[str, float]:
    same = {name: getattr(options, name) for name in ("num_envs", "iterations", "warmup")}
    columns = StableBaselines(Sizes(**same), options.threads).run(options.seed)
    frames, seconds, _, cpu_seconds = (column[-1] - column[options.warmup] for column in columns)
    return {"frames": frames, "seconds": seconds, "cpu_seconds": cpu_seconds}


def learn(options: Options) -> dict[str, float]:
    import torch
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.utils import LinearSchedule

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(without_velocities, options.num_envs, seed=options.seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        clip_range=LinearSchedule(0.2, 0.0, 1.0),
        seed=options.seed,
        device="cpu",
    )
    evaluation: Any = EvalCallback(
        make_vec_env(without_velocities, options.episodes, seed=1000),
        callback_on_new_best=StopTrainingOnRewardThreshold(options.target),
        n_eval_episodes=options.episodes,
        eval_freq=options.evaluate_every * options.num_steps,
        verbose=0,
        warn=False,
    )
    model.learn(100_000, evaluation)
    result = {"frames": model.num_timesteps, "score": float(evaluation.last_mean_reward)}
    return {**result, "all_cpu_seconds": time.process_time()}


def run(options: Options) -> dict[str, float]:
    return speed(options) if options.target is None else learn(options)


if __name__ == "__main__":
    main(run, Options)
