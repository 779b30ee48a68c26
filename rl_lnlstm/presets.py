"""Tuned hyperparameters per environment. What a preset does not name is `PPOConfig`'s default."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "CartPoleNoVel-v1": {
        "total_timesteps": 100_000,
        "num_envs": 8,
        "num_steps": 32,
        "num_minibatches": 1,
        "update_epochs": 20,
        "learning_rate": 1e-3,
        "anneal_clip": True,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "units": 64,
        "shared_lstm": False,
        "encoder_layers": (),
        "head_layers": (64,),
        "activation": "relu",
        "normalize_observations": True,
        "normalize_rewards": True,
    },
}


def preset(env_id: str) -> dict[str, Any]:
    """The options for an environment, to be handed on to `PPO` or `PPOConfig`; none if there is no preset for it."""
    return {"env_id": env_id, **PRESETS.get(env_id, {})}
