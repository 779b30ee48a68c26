"""What `ppo.py` compares: runs and calls of ours and of sb3-contrib, each in a process of its own."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, NamedTuple

import numpy as np
from measure import seconds_of

HEAD_LAYERS = [64, 64]  # RecurrentPPO's default; for images it is none


@dataclasses.dataclass
class Options:
    env_id: str = "CartPole-v1"
    """Gymnasium id of the environment"""
    num_envs: int = 8
    """number of environments, stepped one after the other in this process"""
    num_steps: int = 128
    """steps of each environment in a rollout"""
    update_epochs: int = 4
    """passes over each rollout"""
    num_minibatches: int = 4
    """minibatches in an epoch"""
    units: int = 128
    """units of the LSTM"""
    iterations: int = 20
    """iterations of a run, each with a rollout and an update"""
    warmup: int = 2
    """iterations that the steady rate leaves out"""
    rounds: int = 5
    """number of runs of each candidate"""
    patience: float = 0
    """total seconds to wait while other processes use the machine"""
    record: bool = False
    """write the results to RESULTS.md"""

    @property
    def atari(self) -> bool:
        return self.env_id.startswith("ALE/")


class Run(NamedTuple):
    """Cumulative figures, the first before the first iteration and one after each."""

    frames: list[int]
    seconds: list[float]
    rollout_seconds: list[float]  # the part of `seconds` for acting and the environment
    cpu_seconds: list[float]  # of all threads of the process


class Stopwatch:
    """Sums the seconds of the calls of a function."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **options)
            self.seconds += time.perf_counter() - started
            return result

        return timed


class Ours:
    def __init__(self, options: Options, vectorization: str = "auto") -> None:
        self._options, self._vectorization = options, vectorization

    def run(self, seed: int) -> Run:
        from rl_lnlstm import PPO

        options, acting = self._options, Stopwatch()
        layers = {"head_layers": ()} if options.atari else {"encoder_layers": (), "head_layers": tuple(HEAD_LAYERS)}
        ppo = PPO(
            "CnnLnLstmPolicy" if options.atari else "MlpLnLstmPolicy",
            options.env_id,
            vectorization=self._vectorization,
            num_envs=options.num_envs,
            num_steps=options.num_steps,
            update_epochs=options.update_epochs,
            vtrace=False,  # as the others
            num_minibatches=options.num_minibatches,
            units=options.units,
            shared_lstm=True,
            anneal_lr=False,
            seed=seed,
            **layers,
        )
        ppo._collector.collect = acting.around(ppo._collector.collect)
        run = Run([0], [time.perf_counter()], [0.0], [time.process_time()])

        def after_iteration(metrics: dict[str, float]) -> bool:
            run.frames.append(int(metrics["time/total_timesteps"]))
            run.seconds.append(time.perf_counter())
            run.rollout_seconds.append(acting.seconds)
            run.cpu_seconds.append(time.process_time())
            return len(run.frames) <= options.iterations

        ppo.learn(2 * options.iterations * options.num_envs * options.num_steps, after_iteration)
        return run


class StableBaselines:
    def __init__(self, options: Options, threads: int | None = None) -> None:
        self._options, self._threads = options, threads

    def run(self, seed: int) -> Run:
        import torch
        from sb3_contrib import RecurrentPPO
        from stable_baselines3.common.env_util import make_vec_env

        if self._threads is not None:
            torch.set_num_threads(self._threads)
        options, acting = self._options, Stopwatch()
        frames = options.num_envs * options.num_steps
        run = Run([0], [], [0.0], [])

        class Timed(RecurrentPPO):
            def train(self) -> None:
                super().train()
                run.frames.append(self.num_timesteps)
                run.seconds.append(time.perf_counter())
                run.rollout_seconds.append(acting.seconds)
                run.cpu_seconds.append(time.process_time())

        model = Timed(
            "CnnLstmPolicy" if options.atari else "MlpLstmPolicy",
            atari_envs(options, seed) if options.atari else make_vec_env(options.env_id, options.num_envs, seed=seed),
            n_steps=options.num_steps,
            batch_size=frames // options.num_minibatches,
            n_epochs=options.update_epochs,
            policy_kwargs={
                "lstm_hidden_size": options.units,
                "shared_lstm": True,
                "enable_critic_lstm": False,
                "net_arch": [] if options.atari else HEAD_LAYERS,
            },
            seed=seed,
            device="cpu",
        )
        model.collect_rollouts = acting.around(model.collect_rollouts)
        run.seconds.append(time.perf_counter())
        run.cpu_seconds.append(time.process_time())
        model.learn(options.iterations * frames)
        return run


def atari_envs(options: Options, seed: int) -> Any:
    """Makes them as rl-baselines3-zoo does, but with the sticky actions of `-v5`, as in our runs."""
    import ale_py
    import gymnasium as gym
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gym.register_envs(ale_py)
    envs = make_atari_env(options.env_id, options.num_envs, seed=seed, env_kwargs={"frameskip": 1})
    return VecFrameStack(envs, 4)


BATCHES = 1, 8, 64


class Acting:
    """Seconds of one call of `predict` of an untrained policy, ours or sb3-contrib's, by batch size."""

    def __init__(self, ours: bool, options: Options) -> None:
        import gymnasium as gym

        env = gym.make(options.env_id)
        if ours:
            from rl_lnlstm.policies import MlpLnLstmPolicy

            self._policy: Any = MlpLnLstmPolicy(
                env.observation_space,
                env.action_space,
                units=options.units,
                encoder_layers=(),
                head_layers=tuple(HEAD_LAYERS),
            )
        else:
            from sb3_contrib import RecurrentPPO

            lstm = {"lstm_hidden_size": options.units, "shared_lstm": True, "enable_critic_lstm": False}
            self._policy = RecurrentPPO(
                "MlpLstmPolicy", env, policy_kwargs={**lstm, "net_arch": HEAD_LAYERS}, device="cpu"
            )
        rng = np.random.default_rng(0)
        shape = env.observation_space.shape
        self._observations = {batch: rng.standard_normal((batch, *shape), np.float32) for batch in BATCHES}

    def predict(self, batch: int) -> float:
        observations, starts = self._observations[batch], np.zeros(batch, bool)
        _, state = self._policy.predict(observations, episode_start=starts)
        return seconds_of(lambda: self._policy.predict(observations, state, starts), 0.2)


OURS = "rl-lnlstm PPO"
CANDIDATES: dict[str, tuple[Any, ...]] = {  # name: class, and its arguments after the options
    OURS: (Ours,),
    "rl-lnlstm PPO, vectorization sync": (Ours, "sync"),
    "sb3-contrib RecurrentPPO": (StableBaselines,),
    "sb3-contrib RecurrentPPO, 1 thread": (StableBaselines, 1),
}
