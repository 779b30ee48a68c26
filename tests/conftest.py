import os
import signal
import sys

import pytest

# Environments render without a screen. SDL's search for one loads graphics drivers, whose LLVM and TensorFlow's crash.
os.environ["SDL_VIDEODRIVER"] = "dummy"

# In a shell's background Ctrl-C is ignored, and under nohup SIGHUP, also by every process that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items):
    cases = {}
    for item in items:
        if item.get_closest_marker("many_cases"):
            number = cases[item.originalname, item.path] = cases.get((item.originalname, item.path), -1) + 1
            if number % 4:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def seeded():
    """Gives layers without a seed the same weights in every run.

    With some random weights, the rounding error is larger than a test allows.
    """
    if "keras" in sys.modules:  # some test files do without TensorFlow
        sys.modules["keras"].utils.set_random_seed(0)


@pytest.fixture
def told(caplog):
    """What the package logged so far; TensorFlow logs as well, such as that it traced a lot in this process."""
    return lambda: [record.getMessage() for record in caplog.records if record.name.startswith("rl_lnlstm")]


@pytest.fixture
def intercept(monkeypatch):
    """Hands a function what each update is about to get: `see(rollout, sequences) -> sequences to take instead`."""
    from rl_lnlstm.ppo import train  # imports TensorFlow, which many tests do without

    cut_sequences = train.cut_sequences

    def install(see):
        def cut_and_see(rollout, *others):
            sequences = cut_sequences(rollout, *others)
            return see(rollout, sequences) or sequences

        monkeypatch.setattr(train, "cut_sequences", cut_and_see)

    return install
