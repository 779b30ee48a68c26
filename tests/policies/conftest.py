import pytest

from tests.policies.reference import randomise
from tests.policies.small_policy import policy_for


@pytest.fixture(scope="session")
def discrete():
    """A policy for `Discrete` actions with random weights, which no test changes."""
    return randomise(policy_for())
