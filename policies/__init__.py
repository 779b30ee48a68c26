"""Actor-critic policies on the masked LN-LSTM."""

from rl_lnlstm.policies.convolution import Conv2D, Pixels
from rl_lnlstm.policies.factory import (
    POLICIES,
    CnnLnLstmPolicy,
    MlpLnLstmPolicy,
    MultiInputLnLstmPolicy,
    policy_for,
)
from rl_lnlstm.policies.policy import RecurrentPolicy

__all__ = [
    "POLICIES",
    "CnnLnLstmPolicy",
    "Conv2D",
    "MlpLnLstmPolicy",
    "MultiInputLnLstmPolicy",
    "Pixels",
    "RecurrentPolicy",
    "policy_for",
]
