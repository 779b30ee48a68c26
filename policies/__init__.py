"""Actor-critic policies with a recurrent core."""

import gymnasium as gym

from rl_lnlstm.policies.cnn import CnnLnLstmPolicy
from rl_lnlstm.policies.encoders import is_image
from rl_lnlstm.policies.mlp import MlpLnLstmPolicy
from rl_lnlstm.policies.multi_input import MultiInputLnLstmPolicy
from rl_lnlstm.policies.policy import RecurrentPolicy

POLICIES: dict[str, type[RecurrentPolicy]] = {
    policy.__name__: policy for policy in (MlpLnLstmPolicy, CnnLnLstmPolicy, MultiInputLnLstmPolicy)
}

__all__ = [
    "POLICIES",
    "CnnLnLstmPolicy",
    "MlpLnLstmPolicy",
    "MultiInputLnLstmPolicy",
    "RecurrentPolicy",
    "policy_for",
]


def policy_for(observation_space: gym.Space) -> type[RecurrentPolicy]:
    """The class of policy that suits observations."""
    if isinstance(observation_space, gym.spaces.Dict | gym.spaces.Tuple):
        return MultiInputLnLstmPolicy
    return CnnLnLstmPolicy if is_image(observation_space) else MlpLnLstmPolicy
