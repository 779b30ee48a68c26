"""Scores of the presets: trains several seeds with `train.py`, and evaluates the saved policies.

    python benchmarks/learning.py [--env-ids CartPoleNoVel-v1 ...] [--seeds 5] [--episodes 100] [--record]

The memory tasks are also trained with masks that are all zero: the same policy and the same PPO, without memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import Table, record

from rl_lnlstm.presets import preset

ROOT = Path(__file__).parents[1]
# rl-baselines3-zoo's benchmark.md; where it is not of `ppo_lstm` after as many frames, it says of what.
PUBLISHED = {
    "CartPoleNoVel-v1": "500.0 +/- 0.0",
    "PendulumNoVel-v1": "-217.9 +/- 140.1",
    "MountainCarContinuousNoVel-v0": "91.5 +/- 1.8",
    "LunarLanderNoVel-v3": "242.1 +/- 31.8 (LunarLander-v2, which shows velocities, `ppo`)",
    "Acrobot-v1": "-73.5 +/- 18.2 (`ppo`, 1,000,000 frames)",
    "BipedalWalker-v3": "287.9 +/- 2.4 (`ppo`, 5,000,000 frames)",
    "HalfCheetah-v5": "5819.1 +/- 663.5 (HalfCheetah-v3, `ppo`)",
    # CleanRL's ppo_atari_lstm.py: single frames, LSTM 128, 10,000,000 frames
    "ALE/Pong-v5": "19.78 (CleanRL, `ppo_atari_lstm`)",
    "ALE/Breakout-v5": "128.9 (CleanRL, `ppo_atari_lstm`)",
    "ALE/BeamRider-v5": "1536 (CleanRL, `ppo_atari_lstm`)",
}
MEMORY_TASKS = ("TMaze-v0", "RepeatPrevious-v0")


@dataclasses.dataclass
class Options:
    env_ids: tuple[str, ...] = ("CartPoleNoVel-v1", "PendulumNoVel-v1", *MEMORY_TASKS)
    """environments that have a preset"""
    seeds: int = 5
    """number of seeds"""
    episodes: int = 100
    """number of deterministic episodes of each evaluation"""
    picture: Path | None = None
    """copy the learning curve of the first environment's seed 0 here"""
    record: bool = False
    """write the results to RESULTS.md"""


def run(*command: str) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def train_and_evaluate(env_id: str, seed: int, options: Options, run_dir: Path) -> dict[str, Any]:
    command = "import sys; from rl_lnlstm.commands import main; sys.exit(main(sys.argv[1:]))"
    run("train.py", "--env-id", env_id, "--seed", str(seed), "--run-dir", str(run_dir), "--eval-episodes", "0")
    evaluated = ["evaluate", str(run_dir), "--episodes", str(options.episodes), "--seed", "1000", "--json"]
    return json.loads(run("-c", command, *evaluated))


def without_memory(env_id: str, seed: int, episodes: int) -> float:
    """The mean return after training with a state that is always reset."""
    import numpy as np
    import tensorflow as tf

    from rl_lnlstm import PPO, evaluate_policy
    from rl_lnlstm.envs import make_vec
    from rl_lnlstm.policies import MlpLnLstmPolicy

    class Memoryless(MlpLnLstmPolicy):
        """The same policy, which takes every observation for an episode's first one: its state is always reset."""

        def step(self, observations: Any, state: Any, episode_starts: Any, *masks: Any) -> Any:
            return super().step(observations, state, np.ones_like(episode_starts), *masks)

        def value(self, observations: Any, state: Any, episode_starts: Any) -> Any:
            return super().value(observations, state, np.ones_like(episode_starts))

        def evaluate_actions(
            self, observations: Any, actions: Any, state: Any, episode_starts: Any, *rest: Any, **named: Any
        ) -> Any:
            starts = tf.ones_like(episode_starts)
            return super().evaluate_actions(observations, actions, state, starts, *rest, **named)

        def predict(
            self, observation: Any, state: Any = None, episode_start: Any = None, *rest: Any, **named: Any
        ) -> Any:
            return super().predict(observation, None, None, *rest, **named)

    options = preset(env_id)
    ppo = PPO(Memoryless, options.pop("env_id"), **options, seed=seed)
    ppo.learn()
    return evaluate_policy(ppo.policy, make_vec(env_id, 8), episodes, deterministic=False, seed=1000)[0]


def learn(env_id: str, options: Options, folder: Path) -> None:
    results = []
    for seed in range(options.seeds):
        results.append(train_and_evaluate(env_id, seed, options, folder / str(seed)))
        print(f"{env_id} seed {seed}: {results[-1]['mean_reward']:.2f} +/- {results[-1]['std_reward']:.2f}", flush=True)
    rows = [
        [f"seed {seed}", f"{result['mean_reward']:.2f} +/- {result['std_reward']:.2f}"]
        for seed, result in enumerate(results)
    ]
    rows.append(["mean of the seeds", f"{statistics.mean(result['mean_reward'] for result in results):.2f}"])
    if env_id in PUBLISHED:
        rows.append(["published, rl-baselines3-zoo", PUBLISHED[env_id]])
    if env_id in MEMORY_TASKS:
        rows.append(
            [
                "seed 0 without memory (the state is always reset), sampled",
                f"{without_memory(env_id, 0, options.episodes):.2f}",
            ]
        )
    table = Table(f"{env_id}, {options.episodes} episodes each", ["", "return"], rows)
    table.print()
    if options.record:
        frames = preset(env_id)["total_timesteps"]
        intro = (
            f"`train.py --env-id {env_id}`, {frames:,} frames. Returns of deterministic episodes of the final policy."
        )
        record(f"Learning {env_id}", intro, [table])


def main(options: Options) -> None:
    for env_id in options.env_ids:
        with tempfile.TemporaryDirectory() as folder:
            learn(env_id, options, Path(folder))
            if options.picture is not None and env_id == options.env_ids[0]:
                shutil.copy(Path(folder) / "0" / "learning_curve.png", options.picture)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Options, description=__doc__))
