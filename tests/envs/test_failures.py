"""An environment that raises, dies or returns NaN is named, with the step in which it did so."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import EnvironmentFailure
from tests.envs.faulty_env import BOTH, faulty, run


@BOTH
def test_an_environment_that_raises_in_step(vectorization):
    with pytest.raises(
        EnvironmentFailure,
        match=r"^Faulty \(environment 2 in 0\.\.3\) raised ZeroDivisionError: a bug of mine \(at step 3\)$",
    ) as failure:
        run(make_vec(faulty("raise"), 4, vectorization=vectorization))
    if vectorization == "sync":
        assert isinstance(failure.value.__cause__, ZeroDivisionError)
    else:
        assert "ZeroDivisionError: a bug of mine" in str(failure.value.__cause__)  # with the worker's traceback
        assert "in step" in str(failure.value.__cause__)
        assert not multiprocessing.active_children()


class Leaves(gym.Env):
    """Calls `sys.exit()`, as a script that became an environment may do."""

    observation_space, action_space = gym.spaces.Box(0, 1), gym.spaces.Discrete(2)

    def __init__(self, where):
        self.where = where
        self.at("made")

    def at(self, where):
        if self.where == where:
            sys.exit()

    def reset(self, *, seed=None, options=None):
        self.at("in reset")
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.at("at step 1")
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("handed_in", [False, True])
@pytest.mark.parametrize("where", ["made", "in reset", "at step 1"])
def test_an_environment_that_leaves_the_program_is_named(where, handed_in):
    def envs():
        if handed_in and where != "made":
            return make_vec(gym.vector.SyncVectorEnv([lambda: Leaves(where)] * 2))
        return make_vec(Leaves, 2, vectorization="sync", env_kwargs={"where": where})

    with pytest.raises(EnvironmentFailure, match=r"Leaves .*SystemExit|^SyncVectorEnv raised SystemExit"):
        run(envs())


def test_a_signal_handler_may_leave_the_program_while_an_environment_runs():
    class Signalled(Leaves):
        def step(self, action):
            os.kill(os.getpid(), signal.SIGUSR1)
            return super().step(action)

    before = signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))
    try:
        with pytest.raises(SystemExit):
            run(make_vec(Signalled, env_kwargs={"where": None}, max_failures=3))
    finally:
        signal.signal(signal.SIGUSR1, before)


@BOTH
@pytest.mark.parametrize(("mode", "step"), [("NEXT_STEP", 7), ("SAME_STEP", 6)])
def test_steps_are_counted_over_episodes(vectorization, mode, step):
    class Late(faulty("raise", at_step=0)):
        total = 0

        def step(self, action):
            self.total += 1
            if self.total == 6:
                raise RuntimeError("tired")
            return super().step(action)

    # An episode has 3 steps; NEXT_STEP spends another call on the reset.
    with pytest.raises(
        EnvironmentFailure, match=rf"Late \(environment 0 in 0\.\.0\) raised RuntimeError: tired \(at step {step}\)"
    ):
        run(make_vec(Late, vectorization=vectorization, autoreset_mode=mode))


@BOTH
def test_an_environment_that_raises_in_reset(vectorization):
    class Unready(faulty("raise")):
        def reset(self, *, seed=None, options=None):
            if seed == 1:
                raise OSError("no display")
            return super().reset(seed=seed)

    with pytest.raises(
        EnvironmentFailure,
        match=r"Unready \(environment 1 in 0\.\.1\) raised OSError in reset: no display \(in the reset after step 0\)",
    ):
        run(make_vec(Unready, 2, vectorization=vectorization))


@BOTH
def test_an_environment_that_raises_while_it_is_made(vectorization):
    class Broken(faulty("raise")):
        def __init__(self):
            raise OSError("no licence")

    with pytest.raises(
        EnvironmentFailure, match=r"Broken \(environment 0 in 0\.\.1\) could not be made, OSError: no l"
    ):
        make_vec(Broken, 2, vectorization=vectorization)


def test_an_environment_that_raises_while_it_is_made_in_a_worker():
    class BrokenThere(faulty("raise")):
        def __init__(self):
            if multiprocessing.current_process().name.endswith("-1"):
                raise OSError("no licence")

    with pytest.raises(EnvironmentFailure, match=r"\(environment 1 in 0\.\.1\) could not be made, OSError: no licence"):
        make_vec(BrokenThere, 2, vectorization="async")
    assert not multiprocessing.active_children()


def test_a_worker_that_dies():
    vector_env = make_vec(faulty("exit"), 3, vectorization="async")
    with pytest.raises(
        EnvironmentFailure, match=r"Faulty \(environment 2 in 0\.\.2\) lost .* ended with exit code 3 \(at step 3\)"
    ):
        run(vector_env)
    assert vector_env.closed
    assert not multiprocessing.active_children()


ORPHANS = """
    import ctypes, multiprocessing, os, sys, time
    import gymnasium as gym
    import numpy as np
    from gymnasium.envs.classic_control import CartPoleEnv
    from rl_lnlstm.envs import TMazeVectorEnv, make_vec

    class Stuck(CartPoleEnv):
        def step(self, action):
            if self.np_random_seed == 1:
                open(sys.argv[1], "w").close()
                ctypes.PyDLL(None).sleep(1000)  # holds the interpreter's lock
            return super().step(action)

    vector_env = make_vec(Stuck, 3, vectorization="async")
    vector_env.reset(seed=0)
    print(*(process.pid for process in vector_env.processes), flush=True)
    vector_env.step(np.zeros(3, int))
"""


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    """Not even one that is stuck in a library, nor the fork server."""
    script, stuck = tmp_path / "script.py", tmp_path / "stuck"
    script.write_text(textwrap.dedent(ORPHANS))
    process = subprocess.Popen(
        [sys.executable, script, stuck],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 3
        while not stuck.exists():
            assert process.poll() is None
            time.sleep(0.01)
        assert len(of_session(process.pid)) >= 5, "the script, the fork server and the workers"
        process.kill()
        process.wait()
        deadline = time.monotonic() + 20
        while of_session(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not of_session(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def of_session(leader):
    """The processes of a session that still run."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(leader)], capture_output=True, text=True).stdout
    return [line.split()[0] for line in found.splitlines() if not line.split()[1].startswith("Z")]


def test_a_call_of_a_dead_worker_names_it_and_a_method_that_raises_raises():
    vector_env = make_vec("CartPole-v1", 2, vectorization="async")
    with contextlib.closing(vector_env):
        with pytest.raises(AttributeError, match="no_such_thing") as error:
            vector_env.get_attr("no_such_thing")
        assert "Traceback" in str(error.value.__cause__)
        assert not any(process.is_alive() for process in vector_env.processes)
    vector_env = make_vec("CartPole-v1", 2, vectorization="async")
    with contextlib.closing(vector_env):
        vector_env.processes[1].kill()
        with pytest.raises(EnvironmentFailure, match=r"CartPole-v1 \(environment 1 in 0\.\.1\) lost its worker"):
            vector_env.get_attr("gravity")


NESTED = gym.spaces.Dict(
    image=gym.spaces.Box(0, 255, (2, 2), np.uint8),
    sensors=gym.spaces.Tuple([gym.spaces.Discrete(2), gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)]),
)


@BOTH
@pytest.mark.parametrize(
    ("fault", "space", "returned"),
    [
        ("nan", None, r"nan in observation\[1\]"),
        ("-inf", None, r"-inf in observation\[1\]"),
        ("nan", NESTED, r"nan in observation\['sensors'\]\[1\]\[1\]"),
        ("reward nan", None, r"nan in reward"),
        ("reward inf", NESTED, r"inf in reward"),
    ],
)
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_not_finite(vectorization, fault, space, returned, mode):
    # The step is the episode's last: with SAME_STEP the observation is a final_obs.
    with pytest.raises(
        EnvironmentFailure, match=rf"^Faulty \(environment 2 in 0\.\.3\) returned {returned} \(at step 3\)$"
    ):
        run(make_vec(faulty(fault, space=space), 4, vectorization=vectorization, autoreset_mode=mode))


def test_not_finite_from_a_vector_entry_point_and_in_reset():
    vector_env = make_vec("CartPole-v1", 3, vectorization="vector_entry_point")
    vector_env.reset(seed=0)
    vector_env.unwrapped.state[3, 1] = np.nan
    with pytest.raises(
        EnvironmentFailure, match=r"CartPole-v1 \(environment 1 in 0\.\.2\) returned nan in observation"
    ):
        vector_env.step(np.zeros(3, int))
    with pytest.raises(EnvironmentFailure, match=r"CartPole-v1 raised AssertionError: .* \(at step 2\)"):
        vector_env.step(np.full(3, 7))

    spoiled = make_vec(
        "CartPole-v1", 2, wrappers=[lambda env: gym.wrappers.TransformObservation(env, lambda o: o / o * np.inf, None)]
    )
    with pytest.raises(EnvironmentFailure, match=r"returned -?inf in observation\[0\] \(in the reset after step 0\)"):
        spoiled.reset(seed=0)


@BOTH
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
def test_nested_observations_and_infos_of_an_environment_that_is_made_anew(vectorization, mode):
    class Telling(faulty("nan", at_step=2, space=NESTED)):
        def reset(self, **kwargs):
            observation, _ = super().reset(**kwargs)
            return observation, {"action_mask": np.array([1, 0], np.int8), "unread": "text"}

        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, {"action_mask": np.array([0, 1], np.int8), "unread": None}

    with contextlib.closing(
        make_vec(Telling, 4, vectorization=vectorization, autoreset_mode=mode, max_failures=1)
    ) as vector_env:
        vector_env.reset(seed=0)
        vector_env.step(np.zeros(4, int))
        observations, rewards, terminations, _, infos = vector_env.step(np.zeros(4, int))
        np.testing.assert_array_equal(infos["rl_lnlstm.aborted"], [False, False, True, False])
        assert observations["sensors"][1].tolist() == np.float32([[1e30] * 2, [1e30] * 2, [0, 0], [1e30] * 2]).tolist()
        assert rewards.tolist() == [1, 1, 0, 1]
        assert infos["action_mask"].tolist() == [[False, True], [False, True], [True, False], [False, True]]
        assert "unread" not in infos
        assert not terminations.any()
        # Every environment goes on: the one made anew is at the first step of its episode, the others at their last.
        observations, _, terminations, _, infos = vector_env.step(np.zeros(4, int))
        assert terminations.tolist() == [True, True, False, True]
        assert "rl_lnlstm.aborted" not in infos
        if mode == "DISABLED":
            observations, _ = vector_env.reset(options={"reset_mask": terminations})
            assert observations["sensors"][1][:, 0].tolist() == np.float32([0, 0, 1e30, 0]).tolist()


def test_a_worker_killed_between_steps_aborts_its_episode_also_in_a_reset_of_others():
    with contextlib.closing(
        make_vec("CartPole-v1", 2, vectorization="async", autoreset_mode="DISABLED", max_failures=1)
    ) as vector_env:
        vector_env.reset(seed=0)
        vector_env.processes[1].kill()
        vector_env.processes[1].join()
        vector_env.reset(options={"reset_mask": np.array([True, False])})
        *_, infos = vector_env.step(np.zeros(2, int))
        assert infos["rl_lnlstm.aborted"].tolist() == [False, True]
        assert vector_env.failures == 1
        *_, infos = vector_env.step(np.zeros(2, int))
        assert "rl_lnlstm.aborted" not in infos


def test_large_but_finite_is_accepted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(make_vec(faulty("raise", at_step=0), 2))
