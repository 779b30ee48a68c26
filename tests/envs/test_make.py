import contextlib
import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lnlstm.envs import TMazeVectorEnv, make_vec
from rl_lnlstm.errors import EnvironmentFailure, UserError

BOTH = pytest.mark.parametrize("vectorization", ["sync", "async"])


def faulty(fault, at_step=3, space=None):
    """A function that makes environments. The one that is reset with seed 2 has the fault, in the given step."""

    # A class of the function's own, so that it travels to a worker by value, as one of a user's script does.
    class Faulty(gym.Env):
        observation_space = space or gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return self.answer(np.zeros(2, np.float32)), {}

        def answer(self, vector):
            if isinstance(self.observation_space, gym.spaces.Dict):
                return {"image": np.zeros((2, 2), np.uint8), "sensors": (0, vector)}
            return vector

        def step(self, action):
            self.time += 1
            vector, reward = np.full(2, 1e30, np.float32), 1.0  # finite, but its square is not
            if self.np_random_seed == 2 and self.time == at_step:
                if fault == "raise":
                    raise ZeroDivisionError("a bug of mine")
                if fault == "exit":
                    os._exit(3)
                if fault.startswith("reward"):
                    reward = float(fault.split()[1])
                else:
                    vector[1] = float(fault)
            return self.answer(vector), reward, self.time == 3, False, {}

    return Faulty


def run(vector_env, steps=10):
    """Steps a vector environment with seed 0 and hands back what it returned; closes it whatever happens."""
    rng = np.random.default_rng(0)
    with contextlib.closing(vector_env):
        history = [vector_env.reset(seed=0)]
        history += [
            vector_env.step(rng.integers(vector_env.single_action_space.n, size=vector_env.num_envs))
            for _ in range(steps)
        ]
    return history


def test_a_vector_env_is_only_guarded():
    vector_env = gym.make_vec("CartPole-v1", 2)
    guarded = make_vec(vector_env, 3, vectorization="async")
    assert guarded.unwrapped is vector_env
    assert guarded.num_envs == 2
    assert make_vec(guarded) is guarded
    guarded.reset(seed=0)
    vector_env.state[0, 1] = np.nan
    with pytest.raises(EnvironmentFailure, match=r"environment 1 in 0\.\.1.*returned nan in observation"):
        guarded.step(np.zeros(2, int))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_sync_equals_gymnasiums(mode):
    ours = make_vec("CartPole-v1", 3, vectorization="sync", autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is mode
    assert ours.spec.id == "CartPole-v1"
    theirs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=mode)
    assert data_equivalence(run(ours, 60), run(theirs, 60), exact=True)


@pytest.mark.parametrize("env_id", ["CartPoleNoVel-v1", "TMaze-v0"])
@pytest.mark.parametrize("mode", ["NEXT_STEP", "SameStep"])
def test_async_equals_sync(env_id, mode):
    kwargs = {"corridor_length": 2} if env_id == "TMaze-v0" else {}
    sync = run(make_vec(env_id, 3, vectorization="sync", autoreset_mode=mode, env_kwargs=kwargs), 60)
    in_workers = run(make_vec(env_id, 3, vectorization="async", autoreset_mode=mode, env_kwargs=kwargs), 60)
    assert any(step[2].any() for step in sync[1:])
    assert data_equivalence(sync, in_workers, exact=True)


def test_vector_entry_point_with_its_autoreset_mode():
    for mode in AutoresetMode:
        vector_env = make_vec("TMaze-v0", 3, vectorization="vector_entry_point", autoreset_mode=mode)
        assert vector_env.metadata["autoreset_mode"] is mode
    single = run(make_vec("RepeatPrevious-v0", 3, vectorization="sync"), 60)
    vectorised = run(make_vec("RepeatPrevious-v0", 3, vectorization="vector_entry_point"), 60)
    assert data_equivalence(single, vectorised, exact=True)


@pytest.mark.parametrize(
    ("env", "options", "expected"),
    [
        ("CartPole-v1", {}, CartPoleVectorEnv),
        ("CartPole-v1", {"env_kwargs": {"sutton_barto_reward": True}}, CartPoleVectorEnv),
        ("CartPole-v1", {"autoreset_mode": "SAME_STEP"}, SyncVectorEnv),  # CartPole's has NEXT_STEP only
        ("TMaze-v0", {"autoreset_mode": "SAME_STEP", "env_kwargs": {"corridor_length": 3}}, TMazeVectorEnv),
        ("CartPole-v1", {"wrappers": ["FlattenObservation"]}, SyncVectorEnv),
        ("Acrobot-v1", {}, SyncVectorEnv),
        (gym.envs.classic_control.CartPoleEnv, {}, SyncVectorEnv),
    ],
)
def test_auto_takes_the_vector_implementation_where_it_does_all_that_is_asked(env, options, expected):
    with contextlib.closing(make_vec(env, 2, **options)) as vector_env:
        assert isinstance(vector_env.unwrapped, expected)
        assert vector_env.reset(seed=0)[0].shape[0] == 2


def test_auto_takes_single_environments_for_keyword_arguments_that_only_they_have():
    gym.register(
        "OnlySingle-v0",
        entry_point=lambda length=0.5: gym.envs.classic_control.CartPoleEnv(),
        vector_entry_point=lambda num_envs, max_episode_steps=9: CartPoleVectorEnv(num_envs, max_episode_steps),
    )
    try:
        with contextlib.closing(make_vec("OnlySingle-v0", 2, env_kwargs={"length": 1.0})) as vector_env:
            assert isinstance(vector_env.unwrapped, SyncVectorEnv)
        with pytest.raises(UserError, match=r"OnlySingle-v0 .*does not take env_kwargs=\{'lenght': 1.0\}"):
            make_vec("OnlySingle-v0", 2, env_kwargs={"lenght": 1.0})
    finally:
        del gym.registry["OnlySingle-v0"]


def test_callables_wrappers_render_mode_and_env_kwargs():
    vector_env = make_vec(
        gym.envs.classic_control.PendulumEnv,
        2,
        wrappers=[lambda env: gym.wrappers.TimeLimit(env, 3), gym.wrappers.FlattenObservation],
        render_mode="rgb_array",
        env_kwargs={"g": 1.0},
    )
    assert vector_env.get_attr("g") == (1.0, 1.0)
    vector_env.reset(seed=0)
    truncated = [vector_env.step(vector_env.action_space.sample())[3].all() for _ in range(3)]
    assert truncated == [False, False, True]
    assert len(vector_env.render()) == 2
    assert vector_env.envs[0].spec is None
    vector_env.close()


@BOTH
def test_module_and_id(vectorization, tmp_path, monkeypatch):
    name = f"my_envs_{vectorization}"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            f"""
            import gymnasium as gym
            from gymnasium.envs.classic_control import CartPoleEnv
            class Mine(CartPoleEnv): pass
            gym.register("Mine{vectorization}-v0", entry_point="{name}:Mine", max_episode_steps=2)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    history = run(make_vec(f"{name}:Mine{vectorization}-v0", 2, vectorization=vectorization), 2)
    assert history[2][3].all()


def unfit(**changes):
    return {"env": "CartPole-v1", **changes}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (unfit(num_envs=0), r"num_envs=0: expected an integer of at least 1"),
        (unfit(num_envs=2.0), r"num_envs=2.0: expected an integer"),
        (unfit(vectorization="threads"), r"'threads': expected 'auto', 'sync', 'async' or 'vector_entry_point'"),
        (unfit(autoreset_mode="never"), r"'never': expected one of NEXT_STEP, SAME_STEP, DISABLED"),
        (unfit(env=3), r"expected a Gymnasium id.* got 3"),
        (unfit(env="CartPoleNovel-v1"), r"'CartPoleNovel-v1'.*nearest known ones are CartPoleNoVel-v1, CartPole-v1"),
        (unfit(env="cartpole"), r"'cartpole'.*CartPole-v1"),
        (unfit(env="Zoo/Qwertz-v5"), r"'Zoo/Qwertz-v5'.*module:id"),
        (unfit(env="no.such.module:CartPole-v1"), r"'no.such.module' cannot be imported"),
        (unfit(env_kwargs={"color": 1}), r"CartPole-v1.* does not take env_kwargs=\{'color': 1\}"),
        (unfit(env="TMaze-v0", env_kwargs={"corridor_length": 0}), r"corridor_length=0"),
        (unfit(env=lambda: 3), r"expected a function that makes a gymnasium.Env, got one that makes 3"),
        (unfit(env="Acrobot-v1", vectorization="vector_entry_point"), r"Acrobot-v1 has none"),
        (unfit(env=faulty("raise"), vectorization="vector_entry_point"), r"Faulty has none"),
        (unfit(vectorization="vector_entry_point", wrappers=[gym.wrappers.TimeAwareObservation]), r"wrappers"),
        (unfit(vectorization="vector_entry_point", autoreset_mode="SAME_STEP"), r"SAME_STEP.* CartPole-v1 offers"),
    ],
)
def test_bad_arguments_are_named(arguments, expected):
    with pytest.raises(UserError, match=expected):
        make_vec(**arguments)


def test_the_same_environment_twice():
    env = gym.make("CartPole-v1")
    with pytest.raises(UserError, match="a new environment at each call"):
        make_vec(lambda: env, 2)


def test_what_cannot_be_sent_to_a_worker():
    lock = multiprocessing.Lock()
    with pytest.raises(UserError, match=r"<lambda>: cannot be sent to a worker process"):
        make_vec(lambda: (lock, gym.make("CartPole-v1"))[1], 2, vectorization="async")


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is not None, reason="its absence is what is tested")
@BOTH
def test_a_missing_dependency_says_what_to_install(vectorization):
    with pytest.raises(UserError, match=r"(?s)Ant-v5.*not installed.*pip install .*rl-lnlstm\[mujoco\]"):
        make_vec("Ant-v5", 2, vectorization=vectorization)


@pytest.mark.parametrize(("package", "env_id"), [("ale_py", "ALE/Pong-v5"), ("minigrid", "MiniGrid-Empty-5x5-v0")])
def test_ids_of_well_known_packages_need_no_module_in_front(package, env_id):
    pytest.importorskip(package)
    code = f"from rl_lnlstm.envs import make_vec; make_vec({env_id!r}).close()"
    subprocess.run([sys.executable, "-c", code], check=True)  # nothing has imported the package there


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
    """The processes of a session that are no zombies."""
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
