"""The runs of `memory.py`: tasks, what trains in them, and the file of results."""

from __future__ import annotations

import ast
import concurrent.futures
import json
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from measure import Worker


class Task(NamedTuple):
    env_id: str
    best: float = 1.0  # a return that no policy exceeds by much: score 1
    wrappers: tuple[str, ...] = ()


# RecurrentPPO's CNN needs images of 36 x 36 pixels at least, so both libraries get flat arrays.
MINIGRID = ("minigrid.wrappers:ImgObsWrapper", "FlattenObservation")
TASKS = {
    **{
        name: Task(f"popgym:popgym-{name}-v0")
        for name in (
            *("RepeatPreviousEasy", "RepeatFirstEasy", "AutoencodeEasy", "CountRecallEasy", "HigherLowerEasy"),
            *("MultiarmedBanditEasy", "PositionOnlyCartPoleEasy", "NoisyPositionOnlyCartPoleEasy"),
            *("VelocityOnlyCartpoleEasy", "PositionOnlyPendulumEasy", "ConcentrationEasy", "MineSweeperEasy"),
        )
    },
    "MiniGrid-MemoryS7": Task("minigrid:MiniGrid-MemoryS7-v0", wrappers=MINIGRID),
    "MiniGrid-RedBlueDoors-6x6": Task("minigrid:MiniGrid-RedBlueDoors-6x6-v0", wrappers=MINIGRID),
    "CartPoleNoVel": Task("CartPoleNoVel-v1", 500.0),
    "PendulumNoVel": Task("PendulumNoVel-v1", -150.0),
    "MountainCarContinuousNoVel": Task("MountainCarContinuousNoVel-v0", 95.0),
    "LunarLanderNoVel": Task("LunarLanderNoVel-v3", 250.0),
}
PEER, RANDOM = "sb3-contrib", "random"
EVALUATION_SEED = 1000


class Run(NamedTuple):
    """What identifies a run: a result with the same values is not computed again."""

    task: str
    variant: str
    seed: int
    frames: int
    episodes: int
    num_envs: int


def task_of(name: str) -> Task:
    if name in TASKS:
        return TASKS[name]
    if name.endswith(("Easy", "Medium", "Hard")):
        return Task(f"popgym:popgym-{name}-v0")
    raise SystemExit(f"unknown task {name!r}: expected one of {', '.join(TASKS)}, or another name of POPGym")


def options_of(variant: str) -> dict[str, Any]:
    """The options in `NAME=VALUE NAME=VALUE`."""
    if variant == "defaults":
        return {}
    options: dict[str, Any] = {}
    for part in variant.split():
        name, found, value = part.partition("=")
        if not found:
            raise SystemExit(f"a variant is 'defaults', '{PEER}', '{RANDOM}' or 'OPTION=VALUE ...', got {variant!r}")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


class Ours:
    """Trains with this library."""

    def __init__(self) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)

    def result(self, run: Run) -> dict[str, float]:
        from rl_lnlstm import PPO

        task = task_of(run.task)
        options = {"num_envs": run.num_envs, **options_of(run.variant)}
        started = time.perf_counter()
        with PPO("auto", task.env_id, wrappers=task.wrappers, seed=run.seed, **options) as ppo:
            policy = ppo.learn(run.frames).policy
        return evaluated(policy, run, time.perf_counter() - started)


def whole_sequences(policy_class: type) -> type:
    """RecurrentPPO's policy, with one call of the LSTM for a sequence in place of one for each step.

    RecurrentPPO calls the LSTM step by step if any state must be reset. Its rollouts are cut into sequences that start
    with an episode or with a rollout, so states are only ever reset at the first step. The results are the same, but
    for rounding, and updates take a fifth of the time.
    """
    import torch

    class Policy(policy_class):
        @staticmethod
        def _process_sequence(features: Any, lstm_states: Any, episode_starts: Any, lstm: Any) -> Any:
            sequences = lstm_states[0].shape[1]
            starts = episode_starts.reshape(sequences, -1)
            if torch.any(starts[:, 1:]):
                return policy_class._process_sequence(features, lstm_states, episode_starts, lstm)
            kept = (1.0 - starts[:, 0]).view(1, sequences, 1)
            inputs = features.reshape(sequences, -1, lstm.input_size).swapaxes(0, 1)
            outputs, states = lstm(inputs, tuple(kept * state for state in lstm_states))
            return outputs.transpose(0, 1).flatten(0, 1), states

    features, starts = torch.randn(3 * 7, 5), torch.zeros(3, 7)
    starts[1, 0] = 1.0
    arguments = features, (torch.randn(1, 3, 4), torch.randn(1, 3, 4)), starts.flatten(), torch.nn.LSTM(5, 4)
    (ours, states), (its, its_states) = Policy._process_sequence(*arguments), policy_class._process_sequence(*arguments)
    torch.testing.assert_close((ours, *states), (its, *its_states))
    return Policy


class StableBaselines:
    """Trains with sb3-contrib's RecurrentPPO."""

    def __init__(self) -> None:
        import torch
        from sb3_contrib.ppo_recurrent import MlpLstmPolicy

        torch.set_num_threads(1)
        self._policy = whole_sequences(MlpLstmPolicy)

    def result(self, run: Run) -> dict[str, float]:
        import gymnasium as gym
        from sb3_contrib import RecurrentPPO
        from stable_baselines3.common.env_util import make_vec_env

        from rl_lnlstm.envs.wrappers import wrapper_from_name

        task = task_of(run.task)

        def make() -> gym.Env:
            env = gym.make(task.env_id)
            for wrapper in task.wrappers:
                env = wrapper_from_name(wrapper)(env)
            return env

        started = time.perf_counter()
        envs = make_vec_env(make, run.num_envs, seed=run.seed)
        policy = RecurrentPPO(self._policy, envs, seed=run.seed, device="cpu").learn(run.frames)
        envs.close()
        return evaluated(policy, run, time.perf_counter() - started)


class Uniform:
    """Draws its actions uniformly."""

    def result(self, run: Run) -> dict[str, float]:
        from rl_lnlstm.envs import make_vec

        task = task_of(run.task)
        envs = make_vec(task.env_id, 1, wrappers=task.wrappers)
        envs.action_space.seed(run.seed)

        class Drawing:
            observation_space, action_space = envs.single_observation_space, envs.single_action_space

            def predict(self, *_: Any, **__: Any) -> tuple[Any, None]:
                return envs.action_space.sample(), None

        result = evaluated(Drawing(), run._replace(num_envs=1), 0.0)
        envs.close()
        return result


CANDIDATES = {PEER: StableBaselines, RANDOM: Uniform}


def evaluated(policy: Any, run: Run, seconds: float) -> dict[str, float]:
    from rl_lnlstm import evaluate_policy
    from rl_lnlstm.envs import make_vec

    warnings.simplefilter("ignore")
    task = task_of(run.task)
    envs = make_vec(task.env_id, run.num_envs, wrappers=task.wrappers)
    score, std = evaluate_policy(policy, envs, run.episodes, deterministic=False, seed=EVALUATION_SEED)
    envs.close()
    return {"return": round(score, 4), "std": round(std, 4), "seconds": round(seconds, 1)}


class Results:
    """The file of results."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock, self.found = path, threading.Lock(), dict[Run, dict[str, Any]]()
        if path.exists():
            for line in path.read_text().splitlines():
                entry = json.loads(line)
                self.found[Run(*(entry.pop(name) for name in Run._fields))] = entry

    def add(self, run: Run, result: dict[str, Any]) -> None:
        with self._lock, self._path.open("a") as file:
            file.write(json.dumps({**run._asdict(), **result}) + "\n")
            self.found[run] = result


def compute(runs: Sequence[Run], results: Results, processes: int) -> None:
    """Computes what is missing, and writes down each result. A run that fails has its error as its result."""
    missing = [run for run in runs if run not in results.found]
    of_thread = threading.local()

    def one(number: int, run: Run) -> None:
        candidate = CANDIDATES.get(run.variant, Ours)
        # A process for each candidate, and a new one after some runs, because libraries keep what they compiled.
        if getattr(of_thread, "candidate", None) is not candidate or of_thread.runs >= 10:
            if hasattr(of_thread, "worker"):
                of_thread.worker.close()
            of_thread.worker, of_thread.candidate, of_thread.runs = Worker(candidate), candidate, 0
        of_thread.runs += 1
        try:
            result = of_thread.worker.call("result", run)
        except RuntimeError as error:
            result = {"error": str(error).partition("\n")[0][:200]}
        results.add(run, result)
        print(f"{number}/{len(missing)} {run.task}, {run.variant}, seed {run.seed}: {result}", flush=True)

    with concurrent.futures.ThreadPoolExecutor(processes) as pool:
        for done in [pool.submit(one, number, run) for number, run in enumerate(missing, 1)]:
            done.result()
