"""The LSTM layers and the heads of a policy in float64 NumPy."""

import numpy as np

from tests.policies.reference import weights_of
from tests.reference import Weights, masked_ln_lstm


def run_lstm_layers(policy, features, masks, state, last=None):
    """The LSTM layers in float64 NumPy: layer on layer, each on the outputs of the one below and a constant."""
    weights = weights_of(policy)
    names = ["lstm"] if policy.options.shared_lstm else ["actor_lstm", "critic_lstm"]
    constant = np.ones((*features.shape[:2], 1))
    outputs, column = [], 0
    for name in names:
        below = None
        for layer in range(policy.options.num_layers):
            own = Weights(*(weights[f"{name}{f'_{layer}' if layer else ''}/{part}"] for part in Weights._fields))
            inputs = [features] if layer == 0 else [below]
            if layer == 0 and last is not None:
                inputs.append(last * masks[..., None])
            h, c = (part[:, column : column + policy.units] for part in state)
            output = masked_ln_lstm(own, np.concatenate([*inputs, constant], -1), masks, h, c)[0]
            below = output + below if policy.options.residual and layer else output
            column += policy.units
        outputs.append(below)
    return outputs[0], outputs[-1]


def heads(policy, actor, critic, features):
    weights = weights_of(policy)
    actor, critic = (np.concatenate([part, features], -1) for part in (actor, critic))
    logits = actor @ weights["action_head/logits/kernel"] + weights["action_head/logits/bias"]
    return logits, (critic @ weights["value_head/kernel"] + weights["value_head/bias"])[..., 0]
