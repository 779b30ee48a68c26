"""A layer with the weights of a random case of the reference."""

import numpy as np

from rl_lnlstm import MaskedLNLSTM
from tests.reference import set_weights


def layer_for(case, **kwargs) -> MaskedLNLSTM:
    kwargs = {"return_sequences": True, "return_state": True, "dtype": "float64", **kwargs}
    return set_weights(MaskedLNLSTM(case.weights.cell_gamma.size, **kwargs), case.weights)


def assert_all_close(got, expected, tolerance):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)
