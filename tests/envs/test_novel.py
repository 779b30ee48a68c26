import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from rl_lnlstm.envs import HideVelocities
from rl_lnlstm.envs.tasks.novel import register_novel
from rl_lnlstm.errors import UserError

NOVEL = {
    "CartPoleNoVel-v1": ("CartPole-v1", [1, 3]),
    "PendulumNoVel-v1": ("Pendulum-v1", [2]),
    "MountainCarContinuousNoVel-v0": ("MountainCarContinuous-v0", [1]),
    "LunarLanderNoVel-v3": ("LunarLander-v3", [2, 3, 5]),
}
IDS = [pytest.param(env_id, marks=[pytest.mark.peers] if "Lunar" in env_id else []) for env_id in NOVEL]  # needs Box2D


@pytest.mark.parametrize("env_id", IDS)
def test_hides_exactly_the_velocities_and_leaves_the_dynamics(env_id):
    original_id, hidden = NOVEL[env_id]
    novel, original = gym.make(env_id), gym.make(original_id)
    assert novel.observation_space == original.observation_space
    assert novel.action_space == original.action_space
    for attribute in ("max_episode_steps", "reward_threshold", "nondeterministic"):
        assert getattr(gym.spec(env_id), attribute) == getattr(gym.spec(original_id), attribute)
    novel.action_space.seed(1)
    velocities = []
    for seed in (0, 1):
        ours, theirs = novel.reset(seed=seed), original.reset(seed=seed)
        while True:
            assert (ours[0][hidden] == 0).all()
            assert ours[0].dtype == theirs[0].dtype
            velocities.append(theirs[0][hidden])
            np.testing.assert_equal(np.delete(ours[0], hidden), np.delete(theirs[0], hidden))
            assert ours[1:] == theirs[1:]
            if len(ours) > 2 and (ours[2] or ours[3]):
                break
            action = novel.action_space.sample()
            ours, theirs = novel.step(action), original.step(action)
    assert (np.std(velocities, axis=0) > 0).all()


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_accepts_it(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded velocities and of being wrapped
        check_env(gym.make(env_id))
        check_env(gym.make(env_id).unwrapped)


@pytest.mark.parametrize("env_id", IDS)
def test_its_spec_makes_it_again(env_id):
    spec = gym.make(env_id).spec
    assert spec.id == env_id
    for copy in (spec, pickle.loads(pickle.dumps(spec)), EnvSpec.from_json(spec.to_json()), gym.spec(env_id)):
        env = gym.make(copy)
        env.action_space.seed(0)
        env.reset(seed=0)
        observation = env.step(env.action_space.sample())[0]
        assert (observation[NOVEL[env_id][1]] == 0).all()


@pytest.mark.parametrize("env_id", IDS)
def test_gym_make_vec_and_rendering(env_id):
    vector_env = gym.make_vec(env_id, 2, render_mode="rgb_array")
    vector_env.reset(seed=0)
    vector_env.action_space.seed(0)
    observations = vector_env.step(vector_env.action_space.sample())[0]
    assert (observations[:, NOVEL[env_id][1]] == 0).all()
    assert vector_env.render()[0].ndim == 3
    vector_env.close()


def test_registering_again_changes_nothing():
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_novel()
    assert gym.registry == before


def test_hide_velocities_of_another_environment():
    env = HideVelocities(gym.make("Acrobot-v1"), indices=[4, 5])
    env.reset(seed=0)
    assert (env.step(0)[0] != 0).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("env_id", "indices", "expected"),
    [
        ("CartPole-v1", [4], r"indices=\[4\].*0\.\.3"),
        ("CartPole-v1", [-1], r"indices=\[-1\].*0\.\.3"),
        ("FrozenLake-v1", [0], r"Box of rank 1, got Discrete\(16\)"),
    ],
)
def test_bad_arguments_are_named(env_id, indices, expected):
    with pytest.raises(UserError, match=expected):
        HideVelocities(gym.make(env_id), indices)
