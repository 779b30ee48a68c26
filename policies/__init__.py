"""Actor-critic policies with a recurrent core."""

from rl_lnlstm.policies.mlp import MlpLnLstmPolicy
from rl_lnlstm.policies.recurrent import RecurrentPolicy

POLICIES: dict[str, type[RecurrentPolicy]] = {policy.__name__: policy for policy in (MlpLnLstmPolicy,)}

__all__ = ["POLICIES", "MlpLnLstmPolicy", "RecurrentPolicy"]
