"""Learning on partially observable tasks with the same frames, compared with sb3-contrib's RecurrentPPO.

    python benchmarks/partially_observable.py [--env-ids popgym:popgym-RepeatPreviousEasy-v0 ...] [--seeds 3] [--record]

The environments are of public packages, POPGym (Morad et al. 2023) and MiniGrid, and have no presets: both libraries
train with their own default hyperparameters, in as many environments at once. Both are evaluated by `evaluate_policy`,
which samples the actions: the best strategy of some of the games is a mixed one.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from measure import Table, Worker, record

MINIGRID_WRAPPERS = ("minigrid.wrappers:ImgObsWrapper", "FlattenObservation")  # RecurrentPPO's CNN needs 36 x 36 pixels


@dataclasses.dataclass
class Options:
    env_ids: tuple[str, ...] = (
        "popgym:popgym-RepeatPreviousEasy-v0",
        "popgym:popgym-RepeatFirstEasy-v0",
        "popgym:popgym-CountRecallEasy-v0",
        "popgym:popgym-HigherLowerEasy-v0",
        "popgym:popgym-MultiarmedBanditEasy-v0",
        "popgym:popgym-NoisyPositionOnlyCartPoleEasy-v0",
        "popgym:popgym-PositionOnlyPendulumEasy-v0",
        "popgym:popgym-VelocityOnlyCartpoleEasy-v0",
        "minigrid:MiniGrid-RedBlueDoors-6x6-v0",
    )
    """Gymnasium ids, or module:id"""
    frames: int = 100_000
    """frames to train for, over all environments"""
    num_envs: int = 8
    """number of environments, for both libraries"""
    seeds: int = 3
    """number of seeds"""
    episodes: int = 100
    """number of episodes of each evaluation"""
    threads: int = 2
    """number of threads, for both libraries"""
    record: bool = False
    """write the results to RESULTS.md"""


class Result(NamedTuple):
    mean_reward: float
    seconds: float  # of training


def wrappers(env_id: str) -> tuple[str, ...]:
    return MINIGRID_WRAPPERS if env_id.startswith("minigrid:") else ()


def evaluated(options: Options, env_id: str, train: Callable[[], Any]) -> Result:
    """Trains a policy with `train`, and returns its mean return and the time that training took."""
    from rl_lnlstm import evaluate_policy
    from rl_lnlstm.envs import make_vec

    warnings.simplefilter("ignore")
    started = time.perf_counter()
    policy = train()
    seconds = time.perf_counter() - started
    envs = make_vec(env_id, options.num_envs, wrappers=wrappers(env_id))
    return Result(evaluate_policy(policy, envs, options.episodes, deterministic=False, seed=1000)[0], seconds)


class Ours:
    def __init__(self, options: Options) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        self._options = options

    def run(self, env_id: str, seed: int) -> Result:
        from rl_lnlstm import PPO

        options = self._options

        def train() -> Any:
            ppo = PPO("auto", env_id, num_envs=options.num_envs, wrappers=wrappers(env_id), seed=seed)
            return ppo.learn(options.frames).policy

        return evaluated(options, env_id, train)


class StableBaselines:
    def __init__(self, options: Options) -> None:
        import torch

        torch.set_num_threads(options.threads)
        self._options = options

    def run(self, env_id: str, seed: int) -> Result:
        import gymnasium as gym
        from sb3_contrib import RecurrentPPO
        from stable_baselines3.common.env_util import make_vec_env

        from rl_lnlstm.envs.wrappers import wrapper_from_name

        options = self._options

        def make() -> gym.Env:
            env = gym.make(env_id)
            for wrapper in wrappers(env_id):
                env = wrapper_from_name(wrapper)(env)
            return env

        def train() -> Any:
            envs = make_vec_env(make, options.num_envs, seed=seed)
            return RecurrentPPO("MlpLstmPolicy", envs, seed=seed, device="cpu").learn(options.frames)

        return evaluated(options, env_id, train)


CANDIDATES = {"rl-lnlstm PPO": Ours, "sb3-contrib RecurrentPPO": StableBaselines}


def main(options: Options) -> None:
    results: dict[str, dict[str, list[Result]]] = {}
    for env_id in options.env_ids:
        of_env: dict[str, list[Result]] = {name: [] for name in CANDIDATES}
        for seed in range(options.seeds):
            for name, candidate in CANDIDATES.items():
                worker = Worker(candidate, options)
                of_env[name].append(worker.call("run", env_id, seed))
                worker.close()
                print(f"{env_id} seed {seed}, {name}: {of_env[name][-1]}", flush=True)
        results[env_id] = of_env
        if options.record:  # fail now rather than after hours
            record_results(results, options)
    table_of(results, options).print()


def table_of(results: dict[str, dict[str, list[Result]]], options: Options) -> Table:
    rows = []
    for env_id, of_env in results.items():
        cells = [env_id.rpartition(":")[2]]
        for runs in of_env.values():
            means = [run.mean_reward for run in runs]
            cells.append(f"{statistics.mean(means):.2f} ({', '.join(f'{mean:.2f}' for mean in means)})")
        rows.append(cells + [f"{statistics.median(run.seconds for run in runs):.0f} s" for runs in of_env.values()])
    return Table(
        f"Mean return over {options.episodes} episodes, mean of the seeds (of each), and time to train",
        ["", *CANDIDATES, *(f"{name}, time" for name in CANDIDATES)],
        rows,
    )


def record_results(results: dict[str, dict[str, list[Result]]], options: Options) -> None:
    intro = (
        f"{options.frames:,} frames of {options.num_envs} environments, seeds 0 to {options.seeds - 1}, "
        f"{options.threads} threads; default hyperparameters of either library."
    )
    record("partially_observable.py", intro, [table_of(results, options)])


if __name__ == "__main__":
    import os

    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
