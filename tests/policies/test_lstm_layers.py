"""Several LSTM layers, with and without residual connections."""

import numpy as np
import pytest

from rl_lnlstm import UserError
from rl_lnlstm.policies import (
    RecurrentPolicy,
)
from tests.policies.numpy_layers import heads, run_lstm_layers
from tests.policies.reference import randomise
from tests.policies.test_encoders import DISCRETE, VECTOR


@pytest.mark.parametrize("shared_lstm", [True, False])
@pytest.mark.parametrize(("num_layers", "residual"), [(2, False), (3, True), (1, True)])
def test_stacked_layers(num_layers, residual, shared_lstm):
    arguments = {"num_layers": num_layers, "residual": residual, "shared_lstm": shared_lstm}
    policy = randomise(RecurrentPolicy(VECTOR, DISCRETE, units=4, head_layers=(), seed=0, **arguments))
    width = 4 * num_layers * (1 if shared_lstm else 2)
    assert policy.initial_state(2).h.shape == (2, width)
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(2, 6, 3)).astype(np.float32)
    masks = (rng.random((2, 6)) > 0.3).astype(np.float64)
    state = tuple(rng.normal(0, 0.5, (2, 2, width)).astype(np.float32))
    _, expected = heads(policy, *run_lstm_layers(policy, observations, masks, state), observations)
    _, _, values = policy.evaluate_actions(observations, np.zeros((2, 6), np.int64), state, 1 - masks)
    np.testing.assert_allclose(values, expected, atol=1e-5)
    for t in range(6):
        starts = masks[:, t] == 0
        _, stepped, _, state = policy.step(observations[:, t], state, starts)
        np.testing.assert_allclose(stepped, expected[:, t], atol=1e-5)
        assert state.h.shape == state.c.shape == (2, width)


@pytest.mark.parametrize("num_layers", [0, -1, 1.5, True])
def test_layers_are_a_number(num_layers):
    with pytest.raises(UserError, match="num_layers must be an integer of at least 1"):
        RecurrentPolicy(VECTOR, DISCRETE, num_layers=num_layers)
