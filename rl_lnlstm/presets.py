"""Tuned hyperparameters for environments. For other options, `PPOConfig`'s defaults apply.

Options have the same order as the fields of `PPOConfig`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rl_lnlstm.config import BEFORE, PPOOptions, WorkerOptions, from_saved, make_config, upgraded
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import output_file, read_json
from rl_lnlstm.option_types import from_json

# As CleanRL's ppo_atari_lstm.py: single frames, so the LSTM must remember where things move. But they are normalised.
# With four stacked frames and normalisation, Pong improved after 30,000 frames. Without normalisation, it had not
# improved after 280,000 frames, and half of the first layer's units had died.
_ATARI: dict[str, Any] = {
    "env_kwargs": {"stack_num": 1},
    "total_timesteps": 10_000_000,
    "num_envs": 8,
    "vectorization": "vector_entry_point",
    "num_steps": 128,
    "sequence_length": 128,
    "num_minibatches": 4,
    "update_epochs": 4,
    "vtrace": False,
    "clip_rewards": True,
    "learning_rate": 2.5e-4,
    "clip_coef": 0.1,
    "clip_vloss": True,
    "ent_coef": 0.01,
    "shared_lstm": True,
    "normalize_observations": True,
    "normalize_rewards": False,  # they are clipped
}

PRESETS: dict[str, dict[str, Any]] = {
    # A smaller discount is too short-sighted, because the cart drifts out of bounds slowly. With a lambda of 0.8, three
    # of 33 seeds ended with a policy that drifts; with 0.95, none of 29.
    "CartPoleNoVel-v1": {
        "total_timesteps": 60_000,
        "num_envs": 8,
        "num_steps": 128,
        "sequence_length": 128,
        "learning_rate": 1e-3,
        "gamma": 0.995,
        "gae_lambda": 0.95,
        "num_minibatches": 4,
        "update_epochs": 5,
        "vtrace": False,
        "normalize_observations": True,
        "normalize_rewards": True,
        "units": 64,
        "shared_lstm": False,
    },
    # Ten epochs help only with a shrinking clipping range. With tanh or silu, with smaller heads, with an encoder, or
    # with actions in the units of the environment, returns are lower. Some policies have a few bad episodes, and the
    # evaluations choose one with few.
    "PendulumNoVel-v1": {
        "total_timesteps": 100_000,
        "num_envs": 4,
        "num_steps": 256,
        "sequence_length": 64,
        "learning_rate": 1e-3,
        "gamma": 0.95,
        "num_minibatches": 8,
        "update_epochs": 10,
        "vtrace": False,
        "anneal_clip": True,
        "normalize_rewards": True,
        "units": 64,
        "shared_lstm": False,
        "encoder_layers": (),
        "head_layers": (256, 256),
        "activation": "relu",
        "log_std_init": 0.0,
        "eval_interval": 5,
    },
    # The car gets up the hill because the noise stays the same for some steps. With five epochs, seed 1 has a return of
    # 92.7 after 300,000 frames, and of 89.7 after 400,000.
    "MountainCarContinuousNoVel-v0": {
        "total_timesteps": 300_000,
        "num_envs": 8,
        "num_steps": 256,
        "sequence_length": 64,
        "learning_rate": 1e-3,
        "gamma": 0.9999,
        "gae_lambda": 0.9,
        "num_minibatches": 8,
        "update_epochs": 10,
        "vtrace": False,
        "normalize_observations": True,
        "normalize_rewards": True,
        "units": 32,
        "shared_lstm": False,
        "log_std_init": 0.0,
        "std": "gsde",
        "sde_sample_freq": 8,
    },
    # With fewer gradient steps, or with entropy in the loss, policies land with sampled actions, but some hover with
    # the most probable actions. With tanh, returns are lower. With a target_kl of 0.02, seeds differ less, but they are
    # no better on average.
    "LunarLanderNoVel-v3": {
        "total_timesteps": 1_000_000,
        "num_envs": 16,
        "num_steps": 256,
        "sequence_length": 64,
        "learning_rate": 5e-4,
        "gamma": 0.995,
        "gae_lambda": 0.98,
        "num_minibatches": 16,
        "update_epochs": 10,
        "vtrace": False,
        "normalize_rewards": True,
        "units": 64,
        "shared_lstm": False,
        "head_layers": (64, 64),
        "activation": "relu",
    },
    # Without target_kl, a seed had a return of 259 after 650,000 frames, but only 168 at the end.
    "BipedalWalker-v3": {
        "total_timesteps": 2_000_000,
        "num_envs": 16,
        "num_steps": 256,
        "sequence_length": 64,
        "learning_rate": 5e-4,
        "num_minibatches": 16,
        "update_epochs": 10,
        "vtrace": False,
        "target_kl": 0.02,
        "normalize_observations": True,
        "normalize_rewards": True,
        "units": 64,
        "shared_lstm": False,
        "head_layers": (64, 64),
        "activation": "relu",
        "log_std_init": 0.0,
    },
    "Acrobot-v1": {
        "total_timesteps": 100_000,
        "num_envs": 8,
        "num_steps": 128,
        "sequence_length": 128,
        "learning_rate": 1e-3,
        "num_minibatches": 4,
        "update_epochs": 4,
        "vtrace": False,
        "normalize_observations": True,
        "normalize_rewards": True,
        "units": 64,
        "shared_lstm": True,
    },
    # One seed ends at 1.0, another at 0.52. Half the frames are not enough, and learning needs entropy in the loss.
    "MiniGrid-MemoryS7-v0": {
        "total_timesteps": 800_000,
        "wrappers": ("minigrid.wrappers:ImgObsWrapper",),
        "num_envs": 16,
        "num_steps": 256,
        "sequence_length": 64,
        "learning_rate": 1e-3,
        "num_minibatches": 8,
        "update_epochs": 4,
        "vtrace": False,
        "ent_coef": 0.01,
        "normalize_rewards": False,
        "units": 64,
        "shared_lstm": True,
        "encoder_layers": (64,),
    },
    # As CleanRL's ppo_continuous_action.py, with eight environments instead of one.
    "HalfCheetah-v5": {
        "total_timesteps": 1_000_000,
        "num_envs": 8,
        "num_steps": 256,
        "sequence_length": 64,
        "learning_rate": 3e-4,
        "num_minibatches": 32,
        "update_epochs": 10,
        "vtrace": False,
        "normalize_observations": True,
        "normalize_rewards": True,
        "units": 64,
        "shared_lstm": False,
        "log_std_init": 0.0,
    },
    # As rl-baselines3-zoo's ppo_lstm for CarRacing, but without its frame skip.
    "CarRacing-v3": {
        "total_timesteps": 4_000_000,
        "wrappers": ("ResizeObservation((64, 64))", "GrayscaleObservation"),
        "num_envs": 8,
        "vectorization": "async",
        "num_steps": 512,
        "sequence_length": 128,
        "learning_rate": 1e-4,
        "num_minibatches": 32,
        "update_epochs": 10,
        "vtrace": False,
        "normalize_rewards": True,
        "shared_lstm": True,
        "log_std_init": -2.0,
        "std": "gsde",
        "sde_sample_freq": 4,
        "rescale_actions": False,  # its scores were measured so
    },
    "ALE/Pong-v5": {**_ATARI, "total_timesteps": 1_000_000, "learning_rate": 7e-4},
    "ALE/Breakout-v5": _ATARI,
    "TMaze-v0": {
        "total_timesteps": 100_000,
        "num_envs": 16,
        "num_steps": 64,
        "learning_rate": 1e-3,
        "num_minibatches": 4,
        "update_epochs": 4,
        "vtrace": False,
        "ent_coef": 0.01,
        "normalize_rewards": False,
        "shared_lstm": True,
    },
    # gamma is 0, because an action affects only its own reward.
    "RepeatPrevious-v0": {
        "total_timesteps": 100_000,
        "num_envs": 16,
        "num_steps": 64,
        "learning_rate": 3e-3,
        "gamma": 0.0,
        "num_minibatches": 4,
        "update_epochs": 10,
        "vtrace": False,
        "normalize_rewards": False,
        "shared_lstm": True,
    },
}


def preset(env_id: str) -> dict[str, Any]:
    """The options of the preset for an environment, as arguments of `PPO` or `PPOConfig`."""
    return {"env_id": env_id, **PRESETS.get(env_id.rpartition(":")[-1], {})}


def read_preset(path: Path) -> dict[str, Any]:
    """Reads a preset from a file, as arguments of `PPO` or `PPOConfig`. `rl-lnlstm tune` writes such files.

    The file is a JSON object with names and values of options of `PPOConfig`. Reading it executes nothing, but training
    with it imports the module that its `env_id` names, and makes its wrappers.

    Raises:
        UserError: the file cannot be read, or an option in it is unknown, has the wrong type or is out of range.
    """
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it must hold a JSON object with options, got {type(content).__name__}")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else printable(error)
        raise UserError(f"preset {path} cannot be read: {reason}") from error
    # With all other options, it is from an earlier version of rl-lnlstm tune.
    is_complete = {field.name for field in dataclasses.fields(PPOOptions)} <= content.keys() | BEFORE.keys()
    try:
        options = from_saved(content) if is_complete else upgraded(content)
        make_config(**options)
    except UserError as error:
        raise UserError(f"preset {path}: {printable(error)}") from None
    return from_json(options)


def write_preset(path: Path, options: dict[str, Any]) -> None:
    """Writes options to a file for `read_preset`, without the seed and the options of workers.

    Raises:
        OSError: the file cannot be written.
    """
    with output_file(path) as temporary:
        left_out = {"seed", *(field.name for field in dataclasses.fields(WorkerOptions))}
        content = {name: value for name, value in options.items() if name not in left_out}
        temporary.write_text(json.dumps(content, indent=2) + "\n")
