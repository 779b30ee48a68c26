"""Whole training, ours beside sb3-contrib's RecurrentPPO: frames per second on the same environment and sizes.

    python benchmarks/ppo.py [--env-id CartPole-v1] [--num-envs 8] [--iterations 20] [--rounds 5] [--record]

Every run is a process of its own, and the runs alternate. Both train the same network (an LSTM on the observation that
actor and critic share, and two tanh layers of 64 in front of each head) with the same hyperparameters. Frames are the
steps that the environments made: ours has steps that only reset an environment, and does not count them. The peer runs
with PyTorch's own number of threads and, since that is faster for some small networks, with one.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import statistics
import time
from typing import Any, NamedTuple

from measure import Bar, Patience, Table, Worker, record

HEAD_LAYERS = [64, 64]  # RecurrentPPO's default


@dataclasses.dataclass
class Options:
    env_id: str = "CartPole-v1"
    """Gymnasium id of the environment"""
    num_envs: int = 8
    """environments, in the process, one after the other"""
    num_steps: int = 128
    """steps of each environment in a rollout"""
    update_epochs: int = 4
    """passes over each rollout"""
    num_minibatches: int = 4
    """minibatches of an epoch"""
    units: int = 128
    """of the recurrent core"""
    iterations: int = 20
    """rollouts and updates of a run"""
    warmup: int = 2
    """iterations that the steady rate leaves out"""
    rounds: int = 5
    """runs of each"""
    patience: float = 0
    """seconds to spend, in all, on waiting for others to leave the machine alone"""
    record: bool = False
    """write the results to RESULTS.md"""


class Run(NamedTuple):
    """Cumulative figures, the first before the first iteration and one after each."""

    frames: list[int]
    seconds: list[float]
    rollout_seconds: list[float]  # that part of `seconds` which went into acting and the environment


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
    def __init__(self, options: Options) -> None:
        self._options = options

    def run(self, seed: int) -> Run:
        from rl_lnlstm import PPO

        options, acting = self._options, Stopwatch()
        ppo = PPO(
            "MlpLnLstmPolicy",
            options.env_id,
            num_envs=options.num_envs,
            num_steps=options.num_steps,
            update_epochs=options.update_epochs,
            num_minibatches=options.num_minibatches,
            units=options.units,
            encoder_layers=(),
            head_layers=tuple(HEAD_LAYERS),
            anneal_lr=False,
            seed=seed,
        )
        ppo._runner.run = acting.around(ppo._runner.run)
        run = Run([0], [time.perf_counter()], [0.0])

        def after_iteration(metrics: dict[str, float]) -> bool:
            run.frames.append(int(metrics["time/total_timesteps"]))
            run.seconds.append(time.perf_counter())
            run.rollout_seconds.append(acting.seconds)
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
        run = Run([0], [], [0.0])

        class Timed(RecurrentPPO):
            def train(self) -> None:
                super().train()
                run.frames.append(self.num_timesteps)
                run.seconds.append(time.perf_counter())
                run.rollout_seconds.append(acting.seconds)

        model = Timed(
            "MlpLstmPolicy",
            make_vec_env(options.env_id, options.num_envs, seed=seed),
            n_steps=options.num_steps,
            batch_size=frames // options.num_minibatches,
            n_epochs=options.update_epochs,
            policy_kwargs={
                "lstm_hidden_size": options.units,
                "shared_lstm": True,
                "enable_critic_lstm": False,
                "net_arch": HEAD_LAYERS,
            },
            seed=seed,
            device="cpu",
        )
        model.collect_rollouts = acting.around(model.collect_rollouts)
        run.seconds.append(time.perf_counter())
        model.learn(options.iterations * frames)
        return run


class Rates(NamedTuple):
    """Of one run: frames per second, and seconds of an iteration."""

    steady: float
    with_start: float
    rollout: float
    update: float


OURS = "rl-lnlstm PPO"
CANDIDATES: dict[str, tuple[Any, ...]] = {  # name: class, and its arguments after the options
    OURS: (Ours,),
    "sb3-contrib RecurrentPPO": (StableBaselines,),
    "sb3-contrib RecurrentPPO, 1 thread": (StableBaselines, 1),
}


def rates(name: str, options: Options, seed: int) -> Rates:
    candidate, *arguments = CANDIDATES[name]
    started = time.perf_counter()
    worker = Worker(candidate, options, *arguments)
    run = worker.call("run", seed)
    total = time.perf_counter() - started
    worker.close()
    frames, seconds, rollout = (column[-1] - column[options.warmup] for column in run)
    count = options.iterations - options.warmup
    return Rates(frames / seconds, run.frames[-1] / total, rollout / count, (seconds - rollout) / count)


def main(options: Options) -> None:
    wait = Patience(options.patience)
    measured: dict[str, list[Rates]] = {name: [] for name in CANDIDATES}
    for seed, name in itertools.product(range(options.rounds), CANDIDATES):
        wait()
        measured[name].append(rates(name, options, seed))

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in measured[name])

    def ratio(name: str, field: str) -> float:
        pairs = zip(measured[OURS], measured[name], strict=True)
        return statistics.median(getattr(ours, field) / getattr(peer, field) for ours, peer in pairs)

    def cell(name: str, field: str) -> str:
        value = median(name, field)
        text = f"{value:,.0f}" if field in ("steady", "with_start") else f"{1000 * value:.0f} ms"
        return text if name == OURS else f"{text} ({ratio(name, field):.2f})"

    peer = max((name for name in CANDIDATES if name != OURS), key=lambda name: median(name, "steady"))
    tables = [
        Table(
            f"{options.env_id}, {options.num_envs} environments x {options.num_steps} steps, "
            f"{options.update_epochs} epochs x {options.num_minibatches} minibatches, LSTM {options.units}",
            ["(ratio of ours to it)", "frames/s", "frames/s with start-up", "rollout", "update"],
            [[name, *(cell(name, field) for field in Rates._fields)] for name in CANDIDATES],
        ),
        Table.of_bars([Bar(f"frames/s, ours to {peer}", ratio(peer, "steady"), 2.5, at_least=True)]),
    ]
    for table in tables:
        table.print()
    intro = (
        f"Medians of {options.rounds} runs of {options.iterations} iterations each, and of the ratios of runs that "
        f"followed each other. frames/s: after the first {options.warmup} iterations. With start-up: from the start of "
        "the process, imports included. Rollout and update: of one iteration."
    )
    if options.record:
        record("ppo.py", intro, tables)


if __name__ == "__main__":
    import tyro

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main(tyro.cli(Options, description=__doc__))
