"""Names of options and arguments in other libraries, and what to use here."""

from __future__ import annotations

import re
from collections.abc import Callable, Container

_MINIBATCHES = "`num_minibatches`, the number of minibatches in an epoch and not their size"
_ENCODER = "policy, a RecurrentPolicy(..., encoder=your Keras model)"
_PROGRESS = "progress_bar=True, an argument of learn; commands always show their progress"
_DEVICE = "TensorFlow's choice: a GPU if it sees one"
_RUN_DIR = "--run-dir of the command train, or RunDirectory, a callback of learn"

# Names of our options are in backticks.
OTHER_NAMES = {
    # Stable-Baselines3, sb3-contrib and rl-baselines3-zoo
    "n_steps": "`num_steps`",
    "n_epochs": "`update_epochs`",
    "batch_size": _MINIBATCHES,
    "n_envs": "`num_envs`",
    "n_eval_envs": "`num_envs`",
    "n_timesteps": "`total_timesteps`",
    "clip_range": "`clip_coef`",
    "clip_range_vf": "`clip_vloss`",
    "normalize_advantage": "`norm_adv`",
    "lstm_hidden_size": "`units`",
    "n_lstm_layers": "`num_layers`",
    "enable_critic_lstm": "`shared_lstm`, which is its opposite",
    "activation_fn": "`activation`",
    "net_arch": "`encoder_layers` and `head_layers`",
    "policy_kwargs": "`units`, `encoder_layers`, `head_layers`, `activation` and the other options of the network",
    "features_extractor_class": _ENCODER,
    "features_extractor_kwargs": _ENCODER,
    "verbose": _PROGRESS,
    "progress_bar": _PROGRESS,
    "callback": "callback, an argument of learn",
    "tensorboard_log": _RUN_DIR,
    "log_dir": _RUN_DIR,
    "device": _DEVICE,
    # CleanRL
    "minibatch_size": _MINIBATCHES,
    "num_iterations": "`total_timesteps`",
    "num_updates": "`total_timesteps`",
    "cuda": _DEVICE,
    "exp_name": _RUN_DIR,
    "capture_video": "--video of the command evaluate",
    # OpenAI baselines
    "nsteps": "`num_steps`",
    "nminibatches": "`num_minibatches`",
    "noptepochs": "`update_epochs`",
    "cliprange": "`clip_coef`",
    "lam": "`gae_lambda`",
    "lr": "`learning_rate`",
    "num_env": "`num_envs`",
    "nenvs": "`num_envs`",
    "nlstm": "`units`",
    # what else people write
    "env": "`env_id`",
    "steps": "`total_timesteps`",
    "timesteps": "`total_timesteps`",
    "frames": "`total_timesteps`",
    "epochs": "`update_epochs`",
    "lambda": "`gae_lambda`",
    "entropy_coef": "`ent_coef`",
    "value_coef": "`vf_coef`",
    "max_kl": "`target_kl`",
    "logdir": _RUN_DIR,
    "output": _RUN_DIR,
}

# Arguments of `learn` in Stable-Baselines3
ARGUMENTS_OF_LEARN = {
    "log_interval": "callback=function, which gets the metrics after each iteration, or progress_bar=True",
    "reset_num_timesteps": "a new PPO to count from 0; each call of learn(n) trains n more frames",
    "tb_log_name": _RUN_DIR,
    "eval_env": "eval_interval, an option of PPO",
    "eval_freq": "eval_interval, an option of PPO, counted in iterations",
    "eval_log_path": "save, which saves the best policy",
}


def name_here(other: str, known: Container[str], spelled: Callable[[str], str] = str) -> str | None:
    """Says what to use here for another library's option; None if it is not in the table, or not for these options.

    Args:
        other: the option's name in the other library.
        known: the names of the options that can be used.
        spelled: how to write their names.
    """
    text = OTHER_NAMES.get(other, "")
    if not text or not all(name in known for name in re.findall(r"`(\w+)`", text)):
        return None
    return re.sub(r"`(\w+)`", lambda match: spelled(match[1]), text)
