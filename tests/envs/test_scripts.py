"""Environments in scripts: worker processes know what a script defines, and importing is light."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

SCRIPT = """
    import multiprocessing, signal, time
    import gymnasium as gym
    import numpy as np
    from gymnasium.envs.classic_control import CartPoleEnv
    from rl_lnlstm.envs import TMazeVectorEnv, make_vec

    print("top", flush=True)
    class Mine(CartPoleEnv):
        def step(self, action):
            time.sleep(0.2 * self.np_random_seed)  # the parent has the first answer and waits for the second
            return super().step(action)
    gym.register("Mine-v0", entry_point="__main__:Mine")

    def nested():
        return gym.make("Mine-v0")

    vector_env = make_vec("Mine-v0", 2, vectorization="async")
    vector_env.reset(seed=0)
    interrupted = []
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    print("ready", flush=True)
    while not interrupted:
        vector_env.step(np.array([0, 1]))
    vector_env.step(np.array([0, 1]))
    vector_env.close()
    print("closed", len(multiprocessing.active_children()), flush=True)

    signal.signal(signal.SIGINT, before)
    vector_env = make_vec(nested, 2, vectorization="async")
    vector_env.reset(seed=0)
    try:
        print("ready", flush=True)
        while True:
            vector_env.step(np.array([0, 1]))
    except KeyboardInterrupt:
        vector_env.close()
    print("closed", len(multiprocessing.active_children()), flush=True)
"""


def test_a_script_without_main_guard_and_ctrl_c(tmp_path):
    """Workers do not run the script, but know what it defined and registered. The script alone handles Ctrl-C."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = threading.Timer(60, os.killpg, [process.pid, signal.SIGKILL])
    deadline.start()
    try:
        assert process.stdout.readline() == "top\n"
        for _ in range(2):
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            time.sleep(0.3)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            assert process.stdout.readline() == "closed 0\n", process.stderr.read()
        out, err = process.communicate()
    finally:
        deadline.cancel()
        process.kill()
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


def test_importing_is_light():
    code = (
        "import sys, rl_lnlstm.envs; print([m for m in ('tensorflow', 'keras', 'Box2D', 'pygame') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
