"""A run that the tests of the commands share. None of them changes it."""

import pytest

from tests.commands.small_run import train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train(path, "--eval-episodes", "3") == 0
    return path
