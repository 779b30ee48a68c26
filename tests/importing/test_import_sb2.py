"""Agents of Stable-Baselines 2 compute here what they computed there, and can be trained on."""

import json

import gymnasium as gym
import numpy as np
import pytest

import rl_lnlstm
from rl_lnlstm import UserError, import_sb2, load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy
from tests.importing.sb2_agent import computed, random_agent, vecnormalize, write_zip

BOX = gym.spaces.Box(-np.inf, np.inf, (3,))
IMAGE = gym.spaces.Box(0, 255, (48, 52, 2), np.uint8)
TORQUE = gym.spaces.Box(-2.0, np.array([2.0, 3.5], np.float32), (2,))

CASES = {
    "Box to Discrete": {"observation_space": BOX, "action_space": gym.spaces.Discrete(4)},
    "Discrete to Box": {"observation_space": gym.spaces.Discrete(5), "action_space": TORQUE},
    "MultiDiscrete to MultiDiscrete": {
        "observation_space": gym.spaces.MultiDiscrete([3, 2]),
        "action_space": gym.spaces.MultiDiscrete([2, 4, 3]),
    },
    "MultiBinary to MultiBinary": {
        "observation_space": gym.spaces.MultiBinary(4),
        "action_space": gym.spaces.MultiBinary(3),
    },
    "matrix to Discrete": {
        "observation_space": gym.spaces.Box(-1, 1, (2, 3), np.float64),
        "action_space": gym.spaces.Discrete(2),
    },
    "bytes to Discrete": {
        "observation_space": gym.spaces.Box(0, 255, (6,), np.uint8),
        "action_space": gym.spaces.Discrete(2),
    },
    "bytes, no layers": {
        "observation_space": gym.spaces.Box(0, 255, (6,), np.uint8),
        "action_space": gym.spaces.Discrete(2),
        "layers": (),
    },
    "relu": {
        "observation_space": BOX,
        "action_space": gym.spaces.Discrete(4),
        "layers": (7,),
        "activation": "relu",
    },
    "net_arch": {
        "observation_space": BOX,
        "action_space": TORQUE,
        "net_arch": [8, "lstm", 9, {"pi": [5, 4], "vf": [6, 3]}],
    },
    "net_arch of the LSTM alone": {
        "observation_space": BOX,
        "action_space": gym.spaces.Discrete(2),
        "net_arch": ["lstm", {"pi": [5], "vf": [5]}],
    },
    "image": {"observation_space": IMAGE, "action_space": gym.spaces.Discrete(3), "image": True},
}


ATOL = 5e-6


def sequences(space, time=12, batch=3, seed=1):
    """Observations [time, batch, *shape] and ends of episodes [time, batch]."""
    rng = np.random.default_rng(seed)
    space.seed(seed)
    observations = np.stack([np.stack([space.sample() for _ in range(batch)]) for _ in range(time)])
    dones = (rng.random((time, batch)) < 0.3).astype(np.float64)
    dones[0] = 1
    return observations, dones


def assert_equal_outputs(policy, agent, moments=None):
    observations, dones = sequences(agent.observation_space)
    expected = computed(agent, observations, dones, moments)
    state = policy.initial_state(dones.shape[1])
    units = state.h.shape[-1]
    for t, starts in enumerate(dones.astype(bool)):
        values = policy.value(observations[t], state, starts)
        distribution = policy.distribution(observations[t], state, starts)
        logits = parameters(distribution, agent.action_space)
        np.testing.assert_allclose(logits, expected.logits[t], atol=ATOL, err_msg=f"step {t}")
        np.testing.assert_allclose(values, expected.values[t], atol=ATOL)
        _, _, _, state = policy.step(observations[t], state, starts)
        np.testing.assert_allclose(np.concatenate([state.c, state.h], -1), expected.states[t], atol=ATOL)
        # Go on from the original's state. Otherwise each step would multiply the rounding errors of those before.
        state = type(state)(expected.states[t][:, units:], expected.states[t][:, :units])
    return distribution


def parameters(distribution, space):
    """The logits, or the mean, as the original's head gives them."""
    inner = distribution._distribution
    if isinstance(space, gym.spaces.Box):
        return np.asarray(inner.mean)
    logits = np.asarray(inner.logits)
    if isinstance(space, gym.spaces.MultiDiscrete):
        return np.concatenate([logits[:, i, :n] for i, n in enumerate(space.nvec)], -1)
    return logits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_the_imported_policy_gives_the_outputs_of_the_original(case, tmp_path):
    agent = random_agent(**CASES[case])
    policy = import_sb2(write_zip(tmp_path / "agent.zip", agent))
    assert type(policy) is (CnnLnLstmPolicy if case == "image" else MlpLnLstmPolicy)
    for space in ("observation_space", "action_space"):
        ours, theirs = getattr(policy, space), getattr(agent, space)
        assert ours == theirs or isinstance(theirs, gym.spaces.MultiDiscrete)  # its dtype is not in the file
    distribution = assert_equal_outputs(policy, agent)
    if isinstance(agent.action_space, gym.spaces.Box):
        std = agent.parameters["model/pi/logstd:0"][0]
        np.testing.assert_allclose(np.asarray(distribution._distribution.log_std).ravel(), std, rtol=1e-6)
        action = np.array([[-7.0, 7.0]], np.float32)
        np.testing.assert_array_equal(policy.clip_actions(action), [[-2.0, 3.5]])
    assert not (tmp_path / "opened").exists(), "a pickle in data was opened"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_the_statistics_of_a_vecnormalize_become_part_of_the_policy(protocol, tmp_path):
    agent = random_agent(BOX, gym.spaces.Discrete(4))
    mean, variance = np.array([0.5, -3.0, 20.0]), np.array([0.01, 2.0, 300.0])
    newer = gym.spaces.Box(-1, 1, (3,), seed=0)  # with another kind of generator
    (tmp_path / "vec.pkl").write_bytes(vecnormalize(mean, variance, protocol=protocol, another_space=newer))
    policy = import_sb2(write_zip(tmp_path / "agent.zip", agent), vecnormalize=tmp_path / "vec.pkl")
    assert_equal_outputs(policy, agent, (mean, variance))
    observed, returns = policy.observation_statistics, policy.return_statistics
    assert (float(observed.count), float(returns.count)) == (1234.5, 1234.5)
    np.testing.assert_array_equal(observed.mean, mean)
    np.testing.assert_array_equal(observed.variance, variance)
    assert float(returns.variance) == 2.0


def test_what_a_vecnormalize_does_not_normalise_is_not_normalised(tmp_path):
    agent = random_agent(BOX, gym.spaces.Discrete(4))
    content = vecnormalize(np.zeros(3), np.ones(3), norm_obs=False, clip_obs=5.0)
    (tmp_path / "vec.pkl").write_bytes(content)
    policy = import_sb2(write_zip(tmp_path / "agent.zip", agent), vecnormalize=tmp_path / "vec.pkl")
    assert policy.observation_statistics is None
    assert policy.return_statistics is not None


@pytest.fixture(scope="module")
def cart_pole(tmp_path_factory):
    """An agent for CartPole-v1, its zip, and the run directory that the command makes of it."""
    folder = tmp_path_factory.mktemp("cart_pole")
    env = gym.make("CartPole-v1")
    agent = random_agent(env.observation_space, env.action_space, net_arch=[8, "lstm", {"pi": [3], "vf": [6]}])
    zipped, run = write_zip(folder / "agent.zip", agent), folder / "run"
    assert main(["import-sb2", str(zipped), str(run), "--env-id", "CartPole-v1"]) == 0
    return agent, zipped, run


def test_the_run_directory_can_be_loaded_and_evaluated(cart_pole, capsys):
    agent, _, run = cart_pole
    policy = load_policy(run)
    assert policy.env_id == "CartPole-v1"
    assert_equal_outputs(policy, agent)
    assert main(["evaluate", str(run), "--episodes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["env_id"] == "CartPole-v1"


def test_the_next_command_names_what_a_file_may_not(cart_pole, capsys, monkeypatch):
    monkeypatch.setattr("rl_lnlstm.commands.import_sb2.imported", lambda *_, **__: load_policy(cart_pole[2]))
    command = ["import-sb2", "agent.zip", "run", "--env-id", "mine:My-v0", "--wrappers", "mine:Wrapper"]
    assert main(command) == 0
    expected = "next: rl-lnlstm evaluate run --env-id mine:My-v0 --wrappers mine:Wrapper"
    assert capsys.readouterr().err.splitlines()[-1] == expected


def test_training_continues_from_the_imported_policy(cart_pole):
    _, _, run = cart_pole
    policy = load_policy(run)
    before = policy.get_weights()
    options = {"num_envs": 2, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "jit_compile": False}
    with rl_lnlstm.PPO(policy, "CartPole-v1", **options) as ppo:
        ppo.learn(32)
    assert ppo.policy is policy
    assert any(not np.array_equal(old, new) for old, new in zip(before, policy.get_weights(), strict=True))
    assert all(np.isfinite(weight).all() for weight in policy.get_weights())
    # The units that pad the narrower branch stay 0, so the network is still the original's.
    (layer,) = policy.network.actor_layers
    assert layer.kernel.shape[1] == 6
    assert not np.asarray(layer.kernel)[:, 3:].any()
    assert not np.asarray(policy.action_head.projection.kernel)[3:].any()


def test_wrappers_of_the_environment_are_kept(tmp_path):
    space = gym.spaces.Box(-np.inf, np.inf, (5,))
    agent = random_agent(space, gym.spaces.Discrete(2))
    zipped = write_zip(tmp_path / "agent.zip", agent)
    command = ["import-sb2", str(zipped), str(tmp_path / "run"), "--env-id", "CartPole-v1", "--wrappers"]
    assert main([*command, "TimeAwareObservation"]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "1"]) == 0


def test_images_of_an_environment_may_have_their_channels_first(tmp_path):
    agent = random_agent(IMAGE, gym.spaces.Discrete(3), image=True)
    space = gym.spaces.Box(0, 255, (2, 48, 52), np.uint8)
    policy = import_sb2(write_zip(tmp_path / "agent.zip", agent), observation_space=space)
    observations, dones = sequences(IMAGE, time=1)
    expected = computed(agent, observations, dones)
    moved = np.moveaxis(observations[0], -1, 1)
    values = policy.value(moved, policy.initial_state(3), dones[0].astype(bool))
    np.testing.assert_allclose(values, expected.values[0], atol=1e-5)


REFUSED = {
    "another environment": (
        {"env_id": "Acrobot-v1"},
        {},
        r"the environment has observation space Box.*but the agent was",
    ),
    "another action space": (
        {"action_space": gym.spaces.Discrete(3)},
        {},
        r"the agent has 4 outputs, but the action space is Discrete\(3\)",
    ),
    "continuous actions": (
        {"action_space": gym.spaces.Box(-1, 1, (4,))},
        {},
        r"the agent has no standard deviation of actions, but the action space is Box",
    ),
    "another observation space": (
        {"observation_space": gym.spaces.MultiBinary(9)},
        {},
        r"the agent takes 3 numbers, but the observation space is MultiBinary\(9\)",
    ),
    "a deeper branch": ({}, {"net_arch": ["lstm", {"pi": [4], "vf": [4, 4]}]}, r"branches of different depth"),
    "an unknown activation": ({}, {"activation": "leaky"}, r"activation must be one of .*got 'leaky'.*--activation"),
    "a run directory that is not free": ({"run_dir": "."}, {}, r"already holds a run or other files"),
    "no environment": ({"env_id": "NoSuchEnv-v0"}, {}, r"NoSuchEnv"),
    "an array as argument": ({"env_kwargs": {"x": np.ones(2)}}, {}, r"env_kwargs must be a dictionary"),
    "no file": ({"vecnormalize": "nothing.pkl"}, {}, r"nothing.pkl"),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_what_cannot_be_imported_is_named(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, network, message = REFUSED[case]
    path = write_zip(tmp_path / "agent.zip", random_agent(BOX, gym.spaces.Discrete(4), units=4, **network))
    with pytest.raises(UserError, match=message):
        import_sb2(path, **{"run_dir": tmp_path / "run", **arguments})
    assert not (tmp_path / "run").exists()


def test_sizes_that_the_file_does_not_tell_come_from_the_weights(tmp_path):
    agent = random_agent(gym.spaces.Discrete(5), gym.spaces.MultiBinary(3), units=4)
    kinds = {"observation_space": "Discrete", "action_space": "MultiBinary"}
    data = {name: {":type:": f"<class 'gym.spaces.{kind}'>", ":serialized:": ""} for name, kind in kinds.items()}
    policy = import_sb2(write_zip(tmp_path / "agent.zip", agent, data=data))
    assert (policy.observation_space, policy.action_space) == (agent.observation_space, agent.action_space)


def test_without_a_word_about_actions_an_environment_is_needed(tmp_path):
    agent = random_agent(BOX, gym.spaces.Discrete(4), units=4)
    path = write_zip(tmp_path / "agent.zip", agent, data={})
    with pytest.raises(UserError, match="Discrete, MultiDiscrete or MultiBinary actions: name --env-id"):
        import_sb2(path)
    assert import_sb2(path, action_space=gym.spaces.MultiDiscrete([2, 2])).observation_space == BOX
