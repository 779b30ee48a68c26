"""Trainers so small that a test can run several. Mostly without XLA, which takes seconds to compile each."""

from rl_lnlstm import PPO

TINY = {
    **{"num_steps": 12, "num_minibatches": 1, "update_epochs": 1, "anneal_lr": False, "seed": 3, "jit_compile": False},
}
SMALL = {"units": 3, "encoder_layers": (3,), "head_layers": (3,)}
LOSSES = ["loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction"]


def tiny_ppo(envs="CartPole-v1", **config):
    return PPO("MlpLnLstmPolicy", envs, **{**TINY, **SMALL, **config})


def iterate(ppo, iterations):
    """Train for some iterations, and return their metrics."""
    metrics = []
    ppo.learn(10**9, lambda of_one: metrics.append(of_one) or len(metrics) < iterations)
    return metrics


def untimed(metrics):
    timed = ("time/time_elapsed", "time/fps")
    return [{name: value for name, value in of_one.items() if name not in timed} for of_one in metrics]
