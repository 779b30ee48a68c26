"""Saved policies: loading gives the same policy, names damage, and executes nothing."""

import json
import pickle
import subprocess
import sys

import gymnasium as gym
import keras
import numpy as np
import pytest

from rl_lnlstm import PPO, UserError, load_policy
from rl_lnlstm.policies import MlpLnLstmPolicy, RecurrentPolicy

BOX = gym.spaces.Box(-np.inf, np.inf, (3,))
ACTIONS = {
    "Discrete": gym.spaces.Discrete(5, start=-2),
    "Box": gym.spaces.Box(np.array([-1, -2]), np.array([1, 3]), dtype=np.float32),
}


def small_policy(action_space=ACTIONS["Discrete"], **arguments):
    return MlpLnLstmPolicy(BOX, action_space, units=4, encoder_layers=(5,), seed=1, **arguments)


def behaviour(policy):
    """Actions and state over an episode with a reset in it."""
    state, seen = None, []
    for step, observation in enumerate(np.random.default_rng(0).normal(size=(6, 2, 3))):
        actions, state = policy.predict(observation, state, [step == 3, False], deterministic=True)
        seen += [actions, *state]
    return seen


@pytest.mark.parametrize("action_space", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("shared_lstm", [True, False])
def test_the_same_policy_comes_back(action_space, shared_lstm, tmp_path):
    policy = small_policy(action_space, shared_lstm=shared_lstm, normalize_observations=True, normalize_rewards=True)
    policy.observation_statistics.update(np.random.default_rng(1).normal(5, 3, size=(50, 3)))
    policy.return_statistics.update(np.arange(9.0))
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert type(loaded) is MlpLnLstmPolicy
    assert (loaded.observation_space, loaded.action_space) == (BOX, action_space)
    for one, other in zip(behaviour(policy), behaviour(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    assert loaded.return_statistics.count.numpy() == 9
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again/policy.json").read_text() == (tmp_path / "policy/policy.json").read_text()


def test_normalisation_that_training_learnt_is_saved(tmp_path):
    options = {"num_steps": 16, "num_minibatches": 1, "units": 4, "jit_compile": False}
    ppo = PPO("MlpLnLstmPolicy", "Pendulum-v1", normalize_observations=True, normalize_rewards=True, **options)
    ppo.learn(300).save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.observation_statistics.count.numpy() == ppo.num_timesteps
    assert loaded.return_statistics.variance.numpy() == ppo.policy.return_statistics.variance.numpy() != 1


@pytest.mark.slow
def test_it_loads_in_a_process_of_its_own(tmp_path):
    policy = small_policy()
    policy.save(tmp_path / "policy")
    code = (
        "import sys, numpy as np, rl_lnlstm\n"
        "policy = rl_lnlstm.load_policy(sys.argv[1])\n"
        "print(policy.predict(np.ones((2, 3)), deterministic=True)[1][1].tolist())\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "policy")]
    printed = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(json.loads(printed), policy.predict(np.ones((2, 3)))[1][1], rtol=1e-6)


def test_an_encoder_of_ones_own_is_handed_in_again(tmp_path):
    def encoder():
        return keras.Sequential([keras.Input([3]), keras.layers.Dense(6, "gelu")])

    policy = RecurrentPolicy(BOX, ACTIONS["Discrete"], encoder=encoder(), units=4)
    policy.save(tmp_path / "policy")
    with pytest.raises(UserError, match="encoder of its own"):
        load_policy(tmp_path / "policy")
    for one, other in zip(behaviour(policy), behaviour(load_policy(tmp_path / "policy", encoder())), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match=r"float32 \(4, 6\)|float32 \(3, 6\)|weights do not match"):
        load_policy(tmp_path / "policy", keras.Sequential([keras.Input([3]), keras.layers.Dense(7)]))


class Unbuilt(keras.Model):
    """An encoder that is built by its first call."""

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(6, "gelu")

    def call(self, inputs):
        return self.inner(inputs)


class Nameless(keras.layers.Layer):
    """An encoder with a weight that Keras names by a counter of the process."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, inputs):
        return self.scale * inputs


@pytest.mark.parametrize("encoder", [Unbuilt, lambda: keras.Sequential([keras.layers.Dense(6)]), Nameless])
def test_an_encoder_that_is_not_built_yet_is_loaded(encoder, tmp_path):
    policy = RecurrentPolicy(BOX, ACTIONS["Discrete"], encoder=encoder(), units=4)
    policy.set_weights([weight + 0.1 for weight in policy.get_weights()])
    policy.save(tmp_path / "policy")
    for one, other in zip(behaviour(policy), behaviour(load_policy(tmp_path / "policy", encoder())), strict=True):
        np.testing.assert_array_equal(one, other)


class Fixed(RecurrentPolicy):
    """Sets an option itself, and has an argument of its own."""

    def __init__(self, observation_space, action_space, horizon=3, **options):
        super().__init__(observation_space, action_space, units=9, **options)
        self.horizon = horizon


def test_a_class_that_sets_an_option_itself_is_loaded(tmp_path):
    policy = Fixed(BOX, ACTIONS["Discrete"], horizon=1_000_000, num_layers=2)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy", policy_class=Fixed)
    assert (loaded.units, loaded.horizon, loaded.options) == (9, 1_000_000, policy.options)
    for one, other in zip(behaviour(policy), behaviour(loaded), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="units is 4, but the given policy has 9"):
        PPO(Fixed, "CartPole-v1", units=4, jit_compile=False)
    assert PPO(Fixed, "CartPole-v1", num_layers=2, jit_compile=False).policy.options.num_layers == 2


def test_a_policy_with_many_critic_keys_is_loaded(tmp_path):
    space = gym.spaces.Dict({name: gym.spaces.Discrete(2) for name in "abcdefghijklmnopqrst"})
    policy = RecurrentPolicy(space, ACTIONS["Discrete"], units=4, critic_keys=tuple("bcdefghijklmnopqrst"))
    policy.save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy").options == policy.options


def test_saving_replaces_a_policy_and_nothing_else(tmp_path):
    small_policy().save(tmp_path / "policy")
    small_policy(ACTIONS["Box"]).save(tmp_path / "policy")
    assert load_policy(tmp_path / "policy").action_space == ACTIONS["Box"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy"]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/important.txt").write_text("mine")
    with pytest.raises(UserError, match="notes"):
        small_policy().save(tmp_path / "notes")
    assert (tmp_path / "notes/important.txt").read_text() == "mine"


def test_a_run_without_a_finished_policy_gives_the_best_one(tmp_path):
    small_policy().save(tmp_path / "checkpoints" / "best")
    assert load_policy(tmp_path).units == 4


@pytest.mark.parametrize("file", ["policy.json", "weights.npz"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "garbage"])
def test_damage_is_a_user_error(file, damage, tmp_path):
    small_policy().save(tmp_path / "policy")
    path = tmp_path / "policy" / file
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 0xFF]) + content[half + 1 :]
        changed = {"empty": b"", "truncated": content[:half], "flipped": flipped, "garbage": b"\x00garbage" * 50}
        path.write_bytes(changed[damage])
    with pytest.raises(UserError, match="polic"):
        load_policy(tmp_path / "policy")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_pickle_among_the_weights_is_not_loaded(tmp_path):
    small_policy().save(tmp_path / "policy")
    weights = dict(np.load(tmp_path / "policy/weights.npz"))
    name = next(iter(weights))
    weights[name] = np.array([Bomb(str(tmp_path / "executed"))], object)
    np.savez(tmp_path / "policy/weights.npz", **weights)
    with pytest.raises(UserError, match=name.split(".")[1]):
        load_policy(tmp_path / "policy")
    (tmp_path / "policy/weights.npz").write_bytes(pickle.dumps(Bomb(str(tmp_path / "executed"))))
    with pytest.raises(UserError):
        load_policy(tmp_path / "policy")
    assert not (tmp_path / "executed").exists()


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    small_policy().save(tmp_path / "policy")
    weights = dict(np.load(tmp_path / "policy/weights.npz"))
    name = next(name for name in weights if name.endswith("recurrent_kernel"))
    weights[name] = weights[name][:, :-1]
    np.savez(tmp_path / "policy/weights.npz", **weights)
    with pytest.raises(UserError, match=r"recurrent_kernel must be float32 \(4, 16\), got float32 \(4, 15\)"):
        load_policy(tmp_path / "policy")
