"""Environments that other code uses, that Ctrl-C interrupts, or that hang when they are made or closed."""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import threading
import time
import warnings

import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.errors import EnvironmentFailure, RunWarning
from tests.envs.told_env import MODES, Told, episodes_of


@MODES
@pytest.mark.parametrize("through", ["a guard", "the vector environment"])
@pytest.mark.parametrize("how", ["reset", "step", "both"])
def test_who_else_uses_the_environments_is_noticed(mode, through, how):
    envs = SyncVectorEnv([Told] * 2, autoreset_mode=mode)
    stepper, other = Stepper(make_vec(envs), 0), make_vec(envs) if through == "a guard" else envs
    steps = []
    for time_ in range(40):
        if time_ % 7 == 5:
            if how != "step":
                other.reset()
            if how != "reset" and not (mode is AutoresetMode.DISABLED and how == "step"):
                other.step(np.zeros(2, int))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RunWarning)
            steps.append(stepper.step(np.zeros(2, int)))
        if steps[-1].aborted is not None:
            assert steps[-1].aborted.all()
            assert not steps[-1].valid.any()
            assert stepper.episode_starts.all()
            assert (stepper.observations == 0).all()
    episodes = episodes_of(steps)
    assert len(episodes) > 6
    assert {(episode.length, episode.episode_return) for episode in episodes} == {(4, 4.0)}


def test_a_state_that_is_restored_is_not_taken_for_somebody_elses_use():
    stepper = Stepper(make_vec(Told, 2), 0)
    stepper.step(np.zeros(2, int))
    state = stepper.get_state()
    stepper.envs.step(np.zeros(2, int))
    stepper.set_state(state)
    assert stepper.step(np.zeros(2, int)).aborted is None
    assert stepper.lengths.tolist() == [2, 2]


class Slow(Told):
    """The second environment, whose seed is 1, takes its time."""

    def __init__(self, ignores_ctrl_c=False):
        super().__init__()
        if ignores_ctrl_c and multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def step(self, action):
        time.sleep(0.2 if self.np_random_seed == 1 else 0.0)
        return super().step(action)


def step_often(stepper):
    for _ in range(20):
        stepper.step(np.zeros(2, int))


@pytest.mark.many_cases
@MODES
@pytest.mark.parametrize("vectorization", ["sync", "async", "AsyncVectorEnv"])
def test_after_ctrl_c_in_the_middle_of_a_step_episodes_are_whole(vectorization, mode):
    if vectorization == "AsyncVectorEnv":
        ignoring = functools.partial(Slow, ignores_ctrl_c=True)
        envs = make_vec(AsyncVectorEnv([ignoring] * 2, autoreset_mode=mode))
    else:
        envs = make_vec(Slow, 2, vectorization=vectorization, autoreset_mode=mode, timeout=20.0)
    with contextlib.closing(envs):
        stepper = Stepper(envs, 0)
        stepper.step(np.zeros(2, int))
        threading.Timer(0.15, os.kill, [os.getpid(), signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            step_often(stepper)
        steps = [stepper.step(np.zeros(2, int)) for _ in range(10)]
        assert steps[0].aborted.all()
        assert [episode.length for episode in episodes_of(steps)] == [4, 4] * (len(episodes_of(steps)) // 2)
        assert len(episodes_of(steps)) >= 2
        assert envs.failures == 0
        envs.reset(seed=0)


@MODES
@pytest.mark.parametrize("half", ["send", "expect", "_read", "recv"])
def test_after_ctrl_c_between_two_workers_episodes_are_whole(half, mode, monkeypatch):
    """One worker was sent its command, or has answered, and another one not."""
    with contextlib.closing(make_vec(Told, 2, vectorization="async", autoreset_mode=mode)) as envs:
        stepper = Stepper(envs, 0)
        stepper.step(np.zeros(2, int))
        pipe = envs.unwrapped.parent_pipes[0]
        method = getattr(pipe, half)

        def interrupted(*arguments):
            method(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(pipe, half, interrupted)
        with pytest.raises(KeyboardInterrupt):
            stepper.step(np.zeros(2, int))
        monkeypatch.undo()
        lengths = [episode.length for episode in episodes_of([stepper.step(np.zeros(2, int)) for _ in range(10)])]
        assert set(lengths) == {4}
        assert envs.failures == 0


@pytest.mark.parametrize("loses_worker", [False, True])
def test_after_ctrl_c_in_a_snapshot_steps_and_snapshots_go_on(loses_worker, monkeypatch):
    with contextlib.closing(make_vec(Told, 2, vectorization="async")) as envs:
        stepper = Stepper(envs, 0)
        stepper.step(np.zeros(2, int))
        pipe = envs.unwrapped.parent_pipes[1]

        def interrupted():
            raise KeyboardInterrupt

        monkeypatch.setattr(pipe._connection if loses_worker else pipe, "recv", interrupted)
        with pytest.raises(KeyboardInterrupt):
            envs.take_snapshot()
        monkeypatch.undo()
        if loses_worker:
            with pytest.raises(ValueError, match="an interrupt ended a worker process"):
                envs.take_snapshot()
            with pytest.warns(RunWarning, match="a worker process was replaced, because a snapshot was interrupted"):
                assert stepper.step(np.zeros(2, int)).aborted.all()
        else:
            assert stepper.step(np.zeros(2, int)).aborted is None
        envs.restore_snapshot(envs.take_snapshot())
        lengths = [episode.length for episode in episodes_of([stepper.step(np.zeros(2, int)) for _ in range(10)])]
        assert set(lengths) == {4}
        assert envs.failures == 0


def test_a_snapshot_after_an_interrupted_step_or_after_close(monkeypatch):
    envs = make_vec(Told, 2, vectorization="async")
    with contextlib.closing(envs):
        envs.reset(seed=0)
        envs.unwrapped.step_async(np.zeros(2, int))
        assert len(envs.take_snapshot()) == 2
        envs.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="ClosedEnvironmentError"):
        envs.take_snapshot()


class FailsInSnapshots(Told):
    """The process ends, or hangs, when it is pickled."""

    def __init__(self, hangs):
        super().__init__()
        self.hangs = hangs

    def __reduce__(self):
        if not self.hangs:
            os._exit(3)
        time.sleep(1000)


@pytest.mark.parametrize(("hangs", "message"), [(False, "ended with exit code 3"), (True, "did not answer within 1 s")])
def test_a_worker_that_fails_in_a_snapshot_is_replaced_later(hangs, message, monkeypatch):
    monkeypatch.setattr("rl_lnlstm.envs.worker_pipe.CALL_SECONDS", 0.0)
    kwargs = {"env_kwargs": {"hangs": hangs}, "timeout": 1.0}
    with contextlib.closing(make_vec(FailsInSnapshots, 2, vectorization="async", **kwargs)) as envs:
        stepper = Stepper(envs, 0)
        with pytest.raises(ValueError, match=rf"FailsInSnapshots \(environment 0 in 0\.\.1\) .*{message}"):
            envs.take_snapshot()
        with pytest.warns(RunWarning, match="a worker process was replaced"):
            assert stepper.step(np.zeros(2, int)).aborted.all()
        assert stepper.step(np.zeros(2, int)).aborted is None
        assert envs.failures == 0


def test_environments_that_are_borrowed_stay_open():
    envs = SyncVectorEnv([Told] * 2)
    guard = make_vec(envs)
    guard.reset()
    del guard
    gc.collect()
    assert not envs.closed
    envs.reset()


class HangsInClose(Told):
    """Its `close` never returns."""

    def close(self):
        time.sleep(1000)


class HangsWhenMade(Told):
    """Its constructor never returns."""

    def __init__(self):
        time.sleep(1000)


def test_closing_ends_although_close_hangs():
    envs = make_vec(HangsInClose, 2, vectorization="async", timeout=1.0)
    envs.reset()
    envs.close()
    assert envs.closed
    assert not any(process.is_alive() for process in envs.processes)


def test_a_constructor_that_hangs_ends(monkeypatch):
    monkeypatch.setattr("rl_lnlstm.envs.worker_pipe.CONSTRUCTION_SECONDS", 0.0)
    with pytest.raises(
        EnvironmentFailure, match=r"HangsWhenMade \(environment 0 in 0\.\.1\) did not answer within 1 s"
    ):
        make_vec(HangsWhenMade, 2, vectorization="async", timeout=1.0)


def test_an_error_in_close_leaves_no_other_environment_open():
    closed = []

    class Fails(Told):
        def close(self):
            closed.append(self)
            raise RuntimeError("already gone")

    envs = make_vec(Fails, 3, vectorization="sync")
    with pytest.warns(RunWarning, match="Fails raised RuntimeError in close: already gone"):
        envs.close()
    assert len(closed) == 3
