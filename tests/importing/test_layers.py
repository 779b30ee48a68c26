"""Weights of other libraries' layers give the same outputs in `MaskedLNLSTM`."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import MaskedLNLSTM, UserError
from rl_lnlstm.importing import weights_from_baselines, weights_from_haste
from tests.importing.sb2_agent import computed, random_agent, sigmoid

TIME, BATCH, FEATURES, UNITS = 9, 3, 4, 5


def run(weights, xs, masks=None):
    """The layer's outputs [time, batch, units] for inputs [time, batch, features]."""
    layer = MaskedLNLSTM(UNITS, return_sequences=True, time_major=True)
    layer.build((None, None, FEATURES))
    layer.set_weights(weights)
    return np.asarray(layer(xs.astype(np.float32), masks=masks))


def test_weights_of_baselines():
    space = gym.spaces.Box(-np.inf, np.inf, (FEATURES,))
    agent = random_agent(space, gym.spaces.Discrete(2), units=UNITS, layers=())
    weights = {name[12:-2]: value for name, value in agent.parameters.items() if "/lstm1/" in name}
    rng = np.random.default_rng(0)
    xs, dones = rng.normal(size=(TIME, BATCH, FEATURES)), (rng.random((TIME, BATCH)) < 0.3) * 1.0
    hs = computed(agent, xs, dones).states[..., UNITS:]
    np.testing.assert_allclose(run(weights_from_baselines(weights), xs, 1 - dones), hs, atol=1e-5)


def test_weights_of_haste():
    """haste's equations, from its documentation: gates i, g, f, o; gains for inputs and state, one bias."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(size=(FEATURES, 4 * UNITS)),
        "recurrent_kernel": rng.normal(size=(UNITS, 4 * UNITS)),
        "bias": rng.normal(size=4 * UNITS),
        "gamma": rng.normal(size=(2, 4 * UNITS)),
        "gamma_h": rng.normal(size=UNITS),
        "beta_h": rng.normal(size=UNITS),
    }
    xs = rng.normal(size=(TIME, BATCH, FEATURES))

    def norm(v):
        return (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)

    h, c = np.zeros((2, BATCH, UNITS))
    hs = []
    for x in xs:
        v = norm(x @ weights["kernel"]) * weights["gamma"][0] + weights["bias"]
        v = v + norm(h @ weights["recurrent_kernel"]) * weights["gamma"][1]
        i, g, f, o = np.split(v, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(norm(c) * weights["gamma_h"] + weights["beta_h"])
        hs.append(h)
    np.testing.assert_allclose(run(weights_from_haste(weights), xs), hs, atol=1e-5)


@pytest.mark.parametrize("convert", [weights_from_baselines, weights_from_haste])
def test_missing_weights_are_named(convert):
    with pytest.raises(UserError, match=r"weights must have .*, but .* are missing"):
        convert({"wx": np.zeros((2, 4)), "kernel": np.zeros((2, 4))})


def test_weights_of_another_shape_are_named():
    weights = {name: np.zeros(4) for name in ("b", "gx", "bx", "gh", "bh")}
    weights |= {"wx": np.zeros((3, 4)), "wh": np.zeros((1, 4)), "gc": np.zeros(1), "bc": np.zeros(1)}
    assert len(weights_from_baselines(weights)) == 7
    with pytest.raises(UserError, match=r"gx must have shape \[4\], got \[5\]"):
        weights_from_baselines({**weights, "gx": np.zeros(5)})
    with pytest.raises(UserError, match=r"wx must have shape \[features, 4\], got \[3, 8\]"):
        weights_from_baselines({**weights, "wx": np.zeros((3, 8))})
