"""Behaviour cloning: a policy learns to act as in recorded episodes, before PPO goes on from there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.record import EpisodeArrays, load_episodes
from rl_lnlstm.option_types import Count, Fraction, Index, NonNegative, Positive, checked
from rl_lnlstm.policies import RecurrentPolicy
from rl_lnlstm.ppo.cloning import Cloning, Epoch, Pretraining
from rl_lnlstm.ppo.demonstrations import demonstrations

OPTIONS: dict[str, Any] = {
    "n_epochs": Count,
    "batch_size": Count,
    "sequence_length": Count,
    "learning_rate": Positive,
    "ent_coef": NonNegative,
    "vf_coef": NonNegative,
    "validation_fraction": Fraction,
    "patience": Count,
    "seed": Index | None,
    "gamma": Fraction | None,
    "jit_compile": bool,
}


# A long function, because its documentation is long.
def pretrain(
    policy: Any,
    episodes: Sequence[EpisodeArrays] | str | os.PathLike,
    *,
    n_epochs: int = 200,
    batch_size: int = 4,
    sequence_length: int = 256,
    learning_rate: float = 1e-3,
    ent_coef: float = 1e-3,
    vf_coef: float = 0.5,
    validation_fraction: float = 0.1,
    patience: int = 20,
    gamma: float | None = None,
    seed: int | None = 0,
    jit_compile: bool = True,
    callback: Callable[[Epoch], Any] | None = None,
) -> Pretraining:
    """Trains a policy to act as in recorded episodes (behaviour cloning), and its values to predict their returns.

    The loss is the mean negative log-likelihood of the recorded actions (Pomerleau, 1991, "Efficient training of
    artificial neural networks for autonomous navigation"), plus `vf_coef` times the squared error of the values, in
    units of the variance of the returns, minus `ent_coef` times the entropy. Adam minimises it over minibatches of
    sequences. A sequence starts with an episode, or with the state that the current weights reach there.

    With `normalize_observations` and `normalize_rewards`, the statistics are first updated with the episodes. Returns
    of truncated episodes bootstrap from the value of the final observation.

    Afterwards, `PPO` goes on from there. Without values that fit the policy, its first updates would undo what was
    learnt. So leave `vf_coef` above 0, use PPO's `gamma`, and give PPO a small learning rate.

    Args:
        policy: the policy, or a `PPO`, whose policy is then trained, with its `gamma`.
        episodes: what `record_episodes` or `load_episodes` returned, or the folder of `evaluate --record`.
        n_epochs: passes over the episodes, at most.
        batch_size: sequences in a minibatch.
        sequence_length: steps of backpropagation through time; longer episodes are cut into several sequences.
        learning_rate: of Adam.
        ent_coef: weight of the entropy, as in the library `imitation`.
        vf_coef: weight of the values' loss; 0 leaves the critic as it is.
        validation_fraction: fraction of the episodes that are kept for validation. The weights of the epoch with the
            lowest loss on them are kept. With 0, or a single episode, the last weights are kept.
        patience: epochs without a lower validation loss after which training stops.
        gamma: the discount of the returns; None: that of the `PPO`, otherwise 0.99.
        seed: of the split and of the minibatches: the same seed gives the same weights. None draws a random seed.
        jit_compile: compile the gradient steps with XLA, except those of convolutional networks.
        callback: a function that is called after each epoch. Training stops when it returns False.

    Returns:
        Losses and accuracies; see `Pretraining`.

    Raises:
        UserError: an option is wrong, there are no episodes, a file is damaged, or an episode does not fit the spaces
            of the policy.
        TrainingFailure: the loss is not finite.

    Example:

    >>> demonstrations = record_episodes(expert, "CartPole-v1", 20)
    >>> result = pretrain(policy, demonstrations)
    >>> result.accuracy > 0.9
    True
    """
    given = locals()
    options = {name: checked(name, given[name], hint) for name, hint in OPTIONS.items()}
    config, owner = getattr(policy, "config", None), getattr(policy, "policy", policy)
    if not isinstance(owner, RecurrentPolicy):
        raise UserError(f"policy must be a RecurrentPolicy or a PPO, got {type(policy).__name__}")
    if gamma is None:
        options["gamma"] = getattr(config, "gamma", PPOConfig.gamma)
    if isinstance(episodes, str | os.PathLike):
        episodes = load_episodes(episodes)
    options["clip_rewards"] = getattr(config, "clip_rewards", False)
    return Cloning(owner, demonstrations(owner, episodes), options).run(callback)
