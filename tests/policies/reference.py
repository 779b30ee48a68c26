"""`MlpLnLstmPolicy` in float64 NumPy, written from its documentation. It shares no code with the package.

A function of the weights, so that central differences of anything computed from it can be taken.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats

from tests.reference import Weights, masked_ln_lstm

Arrays = dict[str, np.ndarray]


class Run(NamedTuple):
    """Results for sequences: `actor` `[batch, time, n]` is logits or means, `hs` is `[batch, time, state_size]`."""

    actor: np.ndarray
    log_std: np.ndarray | None
    values: np.ndarray  # [batch, time]
    hs: np.ndarray

    def log_probs(self, actions):
        """`actions` counted from 0 `[batch, time]`, or flat `[batch, time, n]`."""
        if self.log_std is None:
            log_p = scipy.special.log_softmax(self.actor, -1)
            return np.take_along_axis(log_p, actions[..., None], -1)[..., 0]
        return scipy.stats.norm.logpdf(actions, self.actor, np.exp(self.log_std)).sum(-1)

    def entropies(self):
        if self.log_std is None:
            return scipy.stats.entropy(scipy.special.softmax(self.actor, -1), axis=-1)
        return np.broadcast_to(scipy.stats.norm.entropy(scale=np.exp(self.log_std)).sum(-1), self.values.shape)


def weights_of(policy) -> Arrays:
    """The trainable weights, by path, float64."""
    return {variable.path: variable.numpy().astype(np.float64) for variable in policy.trainable_variables}


def randomise(policy, seed=0, scale=0.6):
    """Sets weights with which a policy is neither nearly uniform nor saturated, and returns the policy."""
    rng = np.random.default_rng(seed)
    for variable in policy.trainable_variables:
        variable.assign(rng.normal(1.0 if "gamma" in variable.path else 0.0, scale, variable.shape))
    return policy


def run(policy, observations, masks=None, state=None, weights: Arrays | None = None) -> Run:
    """Observations `[batch, time, ...]`, masks `[batch, time]`, state `(h, c)`, each `[batch, state_size]`."""
    weights = weights_of(policy) if weights is None else weights
    features = np.asarray(observations, np.float64)
    batch, time = features.shape[:2]
    if policy.observation_statistics is not None:
        mean, variance = (np.array(part) for part in policy.observation_statistics.get_weights()[:2])
        features = np.clip((features - mean) / np.sqrt(variance + 1e-8), -10, 10)
    features = features.reshape(batch, time, -1)
    features = _dense_layers(features, weights, "encoder/encoder_")

    # a constant beside the features, because layer normalisation would lose their magnitude
    inputs = np.concatenate([features, np.ones((batch, time, 1))], -1)

    layers = sorted({path.split("/")[0] for path in weights if "lstm" in path})
    units = weights[f"{layers[0]}/cell_gamma"].size
    if state is None:
        state = np.zeros((2, batch, units * len(layers)))
    masks = np.ones((batch, time)) if masks is None else np.asarray(masks, np.float64)
    outputs = []
    for index, layer in enumerate(layers):  # the actor's, by the alphabet, is first
        own = slice(index * units, (index + 1) * units)
        h, c = (np.asarray(part, np.float64)[:, own] for part in state)
        own_weights = Weights(*(weights[f"{layer}/{name}"] for name in Weights._fields))
        outputs.append(masked_ln_lstm(own_weights, inputs, masks, h, c)[0])
    actor = _dense_layers(np.concatenate([outputs[0], features], -1), weights, "actor_")
    critic = _dense_layers(np.concatenate([outputs[-1], features], -1), weights, "critic_")
    head = "action_head/logits" if "action_head/logits/kernel" in weights else "action_head/mean"
    return Run(
        actor=actor @ weights[f"{head}/kernel"] + weights[f"{head}/bias"],
        log_std=weights.get("action_head/log_std"),
        values=(critic @ weights["value_head/kernel"] + weights["value_head/bias"])[..., 0],
        hs=np.concatenate(outputs, -1),
    )


def _dense_layers(x, weights: Arrays, prefix: str):
    number = 0
    while f"{prefix}{number}/kernel" in weights:
        x = np.tanh(x @ weights[f"{prefix}{number}/kernel"] + weights[f"{prefix}{number}/bias"])
        number += 1
    return x
