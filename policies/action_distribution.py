"""`ActionDistribution`: what `RecurrentPolicy.distribution` returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from rl_lnlstm.policies.distributions import Bernoulli, Categorical, Distribution, MultiCategorical
from rl_lnlstm.policies.heads import ActionHead
from rl_lnlstm.spaces import map_leaves


class ActionDistribution:
    """The distribution of actions for a batch of observations, with NumPy results.

    Actions have the form in which `RecurrentPolicy.step` returns them: `Box` actions are neither clipped nor scaled.
    """

    def __init__(self, distribution: Distribution, head: ActionHead) -> None:
        self._distribution, self._head = distribution, head

    @property
    def probabilities(self) -> np.ndarray | None:
        """The probability of each action; None for spaces other than these.

        - `Discrete`: `[batch, n]`.
        - `MultiDiscrete`: `[batch, components, most values]`, 0 where a component has fewer values than others.
        - `MultiBinary`: `[batch, bits]`, the probability of 1.
        """
        if isinstance(self._distribution, Categorical | MultiCategorical):
            return tf.nn.softmax(self._distribution.logits).numpy()
        if isinstance(self._distribution, Bernoulli):
            return tf.sigmoid(self._distribution.logits).numpy()
        return None

    @property
    def parameters(self) -> Distribution:
        """The parameters, as tensors: a NamedTuple of `rl_lnlstm.policies.distributions`."""
        return self._distribution

    def mode(self) -> Any:
        """The most probable actions, `[batch, ...]`."""
        return self._head.to_space(tf.nest.map_structure(np.asarray, self._distribution.mode()))

    def log_prob(self, actions: Any) -> np.ndarray:
        """The log-probability, or log-density, of actions, `[batch]`, in nats."""
        return self._distribution.log_prob(self._head.to_distribution(_tensors(self._head, actions))).numpy()

    def entropy(self) -> np.ndarray:
        """The entropy `[batch]` in nats; for `Box` actions the differential entropy."""
        return self._distribution.entropy().numpy()


def _tensors(head: ActionHead, actions: Any) -> Any:
    return map_leaves(lambda _, part: tf.convert_to_tensor(part), head.space, actions)
