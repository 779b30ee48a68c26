import pytest

from rl_lnlstm.ppo import train as ppo_module
from rl_lnlstm.ppo.rollout import cut_sequences


@pytest.fixture
def intercept(monkeypatch):
    """Hand a function what each update is about to get: `see(rollout, sequences) -> sequences to take instead`."""

    def install(see):
        def cut_and_see(rollout, advantages, returns, length):
            sequences = cut_sequences(rollout, advantages, returns, length)
            return see(rollout, sequences) or sequences

        monkeypatch.setattr(ppo_module, "cut_sequences", cut_and_see)

    return install
