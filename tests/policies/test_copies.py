"""Policies that are copied, pickled, or saved as a class of the user's."""

import copy
import pickle

import cloudpickle
import gymnasium as gym
import keras
import numpy as np
import pytest

from rl_lnlstm import UserError, load_policy
from rl_lnlstm.policies import MlpLnLstmPolicy, MultiInputLnLstmPolicy, RecurrentPolicy
from tests.policies import reference

BOX, DISCRETE = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Discrete(4)
SMALL = {"units": 4, "head_layers": (), "seed": 0}


class Warm(MlpLnLstmPolicy):
    """A subclass with an argument of its own."""

    def __init__(self, *arguments, temperature=1.0, **options):
        super().__init__(*arguments, **options)
        self.temperature = temperature


class Gated(keras.Model):
    def __init__(self, units=3, power=2):
        super().__init__()
        self.one, self.power = keras.layers.Dense(units, "tanh"), power

    def call(self, x):
        return self.one(x) ** self.power


class Described(Gated):
    def get_config(self):
        return {"units": self.one.units, "power": self.power}


POLICIES = {
    "plain": lambda: MlpLnLstmPolicy(BOX, DISCRETE, normalize_observations=True, **SMALL),
    "gsde": lambda: MlpLnLstmPolicy(BOX, gym.spaces.Box(-1, 1, (2,)), std="gsde", **SMALL),
    "nested": lambda: MultiInputLnLstmPolicy(gym.spaces.Dict(a=BOX), DISCRETE, previous_action=True, **SMALL),
    "subclass": lambda: Warm(BOX, DISCRETE, temperature=2.0, **SMALL),
    "sequential encoder": lambda: RecurrentPolicy(
        BOX, DISCRETE, encoder=keras.Sequential([keras.Input([3]), keras.layers.Dense(2)]), **SMALL
    ),
    "subclassed encoder": lambda: RecurrentPolicy(BOX, DISCRETE, Described(2, power=3), **SMALL),
}
COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda policy: pickle.loads(pickle.dumps(policy)),
    "cloudpickle": lambda policy: pickle.loads(cloudpickle.dumps(policy)),
}


def behaviour(policy, steps=4):
    """What it samples, which follows from its weights, its generator and the noise that it holds."""
    observations = np.random.default_rng(0).uniform(-1, 1, (steps, 2, 3)).astype(np.float32)
    state, seen = None, []
    for t in range(steps):
        given = {"a": observations[t]} if isinstance(policy.observation_space, gym.spaces.Dict) else observations[t]
        actions, values, log_probs, state = policy.step(given, state, np.zeros(2, bool))
        seen += [actions, values, log_probs, *state, policy.predict(given, state)[0]]
    return seen


@pytest.mark.parametrize("make_copy", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
def test_a_copy_acts_alike_and_lives_on_its_own(make, make_copy):
    policy = reference.randomise(make())
    behaviour(policy, 1)  # the generator has moved, and noise is held
    other = make_copy(policy)
    assert type(other) is type(policy)
    assert getattr(other, "temperature", None) == getattr(policy, "temperature", None)
    for one, same in zip(behaviour(policy), behaviour(other), strict=True):
        np.testing.assert_array_equal(one, same)
    reference.randomise(other, seed=7)
    assert any((one != new).any() for one, new in zip(policy.get_weights(), other.get_weights(), strict=True))


class Secret(keras.Model):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, x):
        return self.function(x)


def test_a_copy_knows_where_it_was_trained():
    policy = MlpLnLstmPolicy(BOX, DISCRETE, **SMALL)
    policy.env_id, policy.uses_action_masks = "Mine-v0", True
    copied = copy.deepcopy(policy)
    assert (copied.env_id, copied.uses_action_masks) == ("Mine-v0", True)


def test_what_cannot_be_copied_says_what_to_do():
    policy = RecurrentPolicy(BOX, DISCRETE, encoder=Secret(lambda x: 2 * x), **SMALL)
    with pytest.raises(UserError, match=r"encoder: Secret cannot be .*"):
        copy.deepcopy(policy)


@pytest.mark.parametrize("arguments", [{"units": 2}, {"power": 1}])
def test_a_copy_that_would_act_otherwise_is_refused(arguments):
    """Keras does not know the arguments of a model that has no get_config."""
    policy = reference.randomise(RecurrentPolicy(BOX, DISCRETE, encoder=Gated(**arguments), **SMALL))
    with pytest.raises(UserError, match="get_config"):
        copy.deepcopy(policy)


def test_a_copy_whose_actor_would_act_otherwise_is_refused():
    policy = reference.randomise(MlpLnLstmPolicy(BOX, DISCRETE, **{**SMALL, "head_layers": (4,)}))
    policy.network.actor_layers[0].activation = keras.activations.relu  # the critic has a layer of its own
    with pytest.raises(UserError, match="the copy computes something else"):
        copy.deepcopy(policy)


def test_a_class_of_ones_own_is_handed_to_load_policy(tmp_path):
    policy = reference.randomise(Warm(BOX, DISCRETE, temperature=2.0, **SMALL))
    policy.save(tmp_path / "policy")
    with pytest.raises(UserError, match=r"policy is a Warm.*policy_class"):
        load_policy(tmp_path / "policy")
    with pytest.raises(UserError, match="policy is a Warm, but policy_class is MultiInputLnLstmPolicy"):
        load_policy(tmp_path / "policy", policy_class=MultiInputLnLstmPolicy)
    with pytest.raises(UserError, match="policy_class must be a subclass"):
        load_policy(tmp_path / "policy", policy_class=dict)
    loaded = load_policy(tmp_path / "policy", policy_class=Warm)
    assert type(loaded) is Warm
    assert loaded.temperature == 2.0
    for one, same in zip(policy.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)


class Adjustable(MlpLnLstmPolicy):
    """A subclass whose arguments come before the options."""

    def __init__(self, space, action_space, scale=1.0, sizes=(), names=None, function=abs, *rest, **options):
        super().__init__(space, action_space, **options)
        self.own = scale, sizes, names, function


def test_arguments_of_a_class_of_ones_own_are_saved(tmp_path):
    policy = Adjustable(BOX, DISCRETE, np.int64(3), (1, None), names=["a", "b"], function=abs, **SMALL)
    for path in (tmp_path / "policy", tmp_path / "again"):
        policy.save(path)
        policy = load_policy(path, policy_class=Adjustable)
        assert policy.own == (3, (1, None), ["a", "b"], abs)
    assert (tmp_path / "again/policy.json").read_text() == (tmp_path / "policy/policy.json").read_text()
    Warm(BOX, DISCRETE, None, 3, units=4).save(tmp_path / "passed on")


@pytest.mark.parametrize(
    ("name", "arguments", "keywords"),
    [
        ("sizes", (1.0, [(1, 2)]), {}),
        ("names", (), {"names": {"a": 1}}),
        ("scale", (np.ones(2),), {}),
        ("function", (), {"function": max}),
        (r"\*rest", (1.0, (), None, abs, 5), {}),
    ],
)
def test_arguments_that_cannot_be_saved_are_named(name, arguments, keywords, tmp_path):
    policy = Adjustable(BOX, DISCRETE, *arguments, **keywords, **SMALL)
    with pytest.raises(UserError, match=f"Adjustable cannot be saved with {name}="):
        policy.save(tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_options_are_checked_when_they_are_given():
    for name, (value, expected) in {
        "units": (2.5, "units must be an integer"),
        "head_layers": (64, "head_layers must be a sequence"),
        "residual": ("no", "residual must be True or False"),
        "std": ("noise", "std must be one of"),
        "log_std_init": (float("nan"), "log_std_init must be"),
        "activation": ("rélu", "activation must be one of"),
        "unit": (3, r"unknown option 'unit'; did you mean .*units"),
        "encoder_layers": ((3,), "encoder_layers needs a policy that makes its own encoder"),
    }.items():
        with pytest.raises(UserError, match=expected):
            RecurrentPolicy(BOX, DISCRETE, **{name: value})
    policy = MlpLnLstmPolicy(BOX, DISCRETE, units=np.int64(3), head_layers=[np.int32(2)], log_std_init=np.float32(-1))
    assert (policy.options.units, policy.options.head_layers, policy.options.log_std_init) == (3, (2,), -1.0)
    assert type(policy.options.units) is int
    assert "previous_reward (False):" in MlpLnLstmPolicy.__doc__
    with pytest.raises(UserError, match="std='gsde' needs Box actions, but the action space is Discrete"):
        MlpLnLstmPolicy(BOX, DISCRETE, std="gsde")
