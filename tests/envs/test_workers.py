"""Starting worker processes: they end with the program that starts them, and Ctrl-C leaves none behind."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import EnvironmentFailure

SLOW_IMPORT = """
import sys, time
from pathlib import Path
import gymnasium as gym

class Slow(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 1), gym.spaces.Discrete(2)

    def __reduce__(self):
        return slow_import, ()

class Maker:
    def __call__(self):
        return Slow()

    def __reduce__(self):
        return slow_import, ({path!r},)

def slow_import(path):
    import os, time
    from pathlib import Path
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)

from rl_lnlstm.envs import make_vec
make_vec(Maker(), 2, vectorization="async")
"""


def is_running(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_ends_with_its_parent_while_it_still_imports(tmp_path):
    path = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", SLOW_IMPORT.format(path=str(path))])
    try:
        while not (path.exists() and path.read_text()):
            assert parent.poll() is None
            time.sleep(0.02)
        worker = int(path.read_text())
        assert is_running(worker)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_ctrl_c_while_a_worker_is_started_leaves_none(number, monkeypatch):
    """Even in the middle of the start, and twice. Afterwards environments can be made as before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = type(multiprocessing.get_context("forkserver").Process())
    original, starts = process.start, []

    def start(self):
        starts.append(self)
        interrupts = int(len(starts) == number)
        for _ in range(interrupts):
            os.kill(os.getpid(), signal.SIGINT)
        original(self)
        for _ in range(interrupts):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(process, "start", start)
    try:
        with pytest.raises(KeyboardInterrupt):
            make_vec("CartPole-v1", 2, vectorization="async")
        assert len(starts) == number
        assert not any(worker.is_alive() for worker in starts)
        with contextlib.closing(make_vec("CartPole-v1", 2, vectorization="async")) as envs:
            envs.reset(seed=0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_while_the_function_is_unpickled_is_named():
    class Maker:
        def __call__(self):
            return gym.make("CartPole-v1")

        def __reduce__(self):
            return int, ("seven",)

    with pytest.raises(Exception, match="seven"):
        make_vec(Maker(), 2, vectorization="async")


class Simulated(gym.Env):
    """Starts a simulator, whose process id is in a file. A step hangs, or the worker dies."""

    observation_space, action_space = gym.spaces.Box(0, 1), gym.spaces.Discrete(2)

    def __init__(self, path, hangs):
        self.hangs = hangs
        self.simulator = subprocess.Popen(["sleep", "1000"])
        path.write_text(str(self.simulator.pid))

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if not self.hangs:
            os._exit(3)
        time.sleep(1000)

    def close(self):
        self.simulator.kill()


def ends(pid):
    deadline = time.monotonic() + 30
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("hangs", [False, True])
def test_a_simulator_ends_with_the_worker_that_fails(hangs, tmp_path):
    path = tmp_path / "pid"
    kwargs = {"env_kwargs": {"path": path, "hangs": hangs}, "timeout": 1.0}
    with contextlib.closing(make_vec(Simulated, vectorization="async", **kwargs)) as envs:
        envs.reset()
        simulator = int(path.read_text())
        assert is_running(simulator)
        with pytest.raises(EnvironmentFailure, match="did not answer" if hangs else "exit code 3"):
            envs.step(np.zeros(1, int))
        assert ends(simulator)


WITH_SIMULATOR = """
import os, signal
from pathlib import Path
from rl_lnlstm.envs import make_vec
from tests.envs.test_workers import Simulated
envs = make_vec(Simulated, vectorization="async", env_kwargs={{"path": Path({path!r}), "hangs": True}})
envs.reset()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_simulator_ends_with_the_program(tmp_path):
    path = tmp_path / "pid"
    subprocess.run([sys.executable, "-c", WITH_SIMULATOR.format(path=str(path))])
    assert ends(int(path.read_text()))
