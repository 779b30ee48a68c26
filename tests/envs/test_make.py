"""`make_vec`: which vector environment it makes, and what its arguments may be."""

import contextlib
import functools
import importlib.util
import multiprocessing
import subprocess
import sys
import textwrap
import types

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lnlstm.envs import TMazeVectorEnv, make_vec
from rl_lnlstm.envs.foreign_envs import ExistingEnv
from rl_lnlstm.errors import EnvironmentFailure, UserError
from tests.envs.faulty_env import BOTH, faulty, run


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


class TakesNumberOnly(CartPoleVectorEnv):
    def __init__(self, num_envs):
        super().__init__(num_envs)


@pytest.mark.parametrize(
    ("registration", "expected"),
    [
        ({}, TakesNumberOnly),
        ({"max_episode_steps": 9}, SyncVectorEnv),
        ({"kwargs": {"length": 1.0}}, SyncVectorEnv),
        ({"kwargs": {"num_envs": 2}}, TakesNumberOnly),
        ({"additional_wrappers": (gym.wrappers.FlattenObservation.wrapper_spec(),)}, SyncVectorEnv),
    ],
    ids=["nothing", "time limit", "argument", "number", "wrappers"],
)
def test_auto_knows_what_gymnasium_adds_from_the_registration(registration, expected):
    gym.register(
        "Added-v0",
        entry_point=lambda length=0.5, num_envs=0: gym.envs.classic_control.CartPoleEnv(),
        vector_entry_point=TakesNumberOnly,
        **registration,
    )
    try:
        with contextlib.closing(make_vec("Added-v0", 2)) as vector_env:
            assert isinstance(vector_env.unwrapped, expected)
    finally:
        del gym.registry["Added-v0"]


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


class DifferentSpaces:
    """A function object that makes environments which do not fit together, also if each is made in another process."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self):
        try:
            self.folder.mkdir()
        except FileExistsError:
            return gym.make("Acrobot-v1")
        return gym.make("CartPole-v1")


@BOTH
def test_environments_must_have_the_same_spaces(vectorization, tmp_path):
    with pytest.raises(UserError, match=r"all environments must have the same spaces"):
        make_vec(DifferentSpaces(tmp_path / "made"), 2, vectorization=vectorization)


@pytest.mark.parametrize("hand_in", [lambda made: made, lambda made: functools.partial(made, length=2)])
def test_a_failure_names_the_class(hand_in):
    class Breaks(gym.Env):
        observation_space, action_space = gym.spaces.Discrete(2), gym.spaces.Discrete(2)

        def __init__(self, length=1): ...

        def reset(self, *, seed=None, options=None):
            raise ValueError("broken")

    with pytest.raises(EnvironmentFailure, match=r"^Breaks \(environment 0.*broken"):
        make_vec(hand_in(Breaks), 2).reset()
    with pytest.raises(EnvironmentFailure, match=r"^Breaks .*broken"):
        make_vec(ExistingEnv(hand_in(Breaks)()), 1).reset()


def test_a_mistake_in_a_constructor_is_not_taken_for_a_keyword_argument():
    class Mistaken(gym.Env):
        def __init__(self):
            (lambda: None)(no_such_argument=1)

    with pytest.raises(EnvironmentFailure, match=r"Mistaken.* could not be made, TypeError"):
        make_vec(Mistaken, 1)


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


def test_ids_that_a_worker_cannot_have_do_not_matter_to_others():
    lock = multiprocessing.Lock()
    unknown = types.ModuleType("unknown_there")
    exec("import gymnasium as gym\ndef make(): return gym.make('CartPole-v1')", vars(unknown))
    sys.modules["unknown_there"] = unknown
    gym.register("CannotBeSent-v0", entry_point=lambda: (lock, gym.make("CartPole-v1"))[1])
    gym.register("CannotBeImported-v0", entry_point=unknown.make)
    try:
        make_vec("CartPole-v1", 1, vectorization="async").close()
        with pytest.raises(UserError, match=r"CannotBeSent-v0: cannot be sent to a worker process"):
            make_vec("CannotBeSent-v0", 1, vectorization="async")
    finally:
        del gym.registry["CannotBeSent-v0"], gym.registry["CannotBeImported-v0"], sys.modules["unknown_there"]


def test_an_id_that_is_a_module_without_a_specification(monkeypatch):
    monkeypatch.setitem(sys.modules, "made_by_hand", types.ModuleType("made_by_hand"))
    with pytest.raises(UserError, match="unknown environment id 'made_by_hand'"):
        make_vec("made_by_hand", 1)


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is not None, reason="its absence is what is tested")
@BOTH
def test_a_missing_dependency_says_what_to_install(vectorization):
    with pytest.raises(UserError, match=r"(?s)Ant-v5.*not installed.*pip install .*rl-lnlstm\[mujoco\]"):
        make_vec("Ant-v5", 2, vectorization=vectorization)


@pytest.mark.peers
@pytest.mark.parametrize(
    ("package", "env_id"),
    [("ale_py", "ALE/Pong-v5"), ("minigrid", "MiniGrid-Empty-5x5-v0"), ("minigrid", "BabyAI-GoToRedBallGrey-v0")],
)
def test_ids_of_well_known_packages_need_no_module_in_front(package, env_id):
    pytest.importorskip(package)
    code = f"from rl_lnlstm.envs import make_vec; make_vec({env_id!r}).close()"
    subprocess.run([sys.executable, "-c", code], check=True)  # nothing has imported the package there
