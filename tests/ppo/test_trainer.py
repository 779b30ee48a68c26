"""The first things that users write: all forms of policies and environments, load, predict, evaluate, close."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import TimeAwareObservation
from gymnasium.wrappers.vector import ClipReward

from rl_lnlstm import PPO, UserError, evaluate, evaluate_policy, load_policy
from rl_lnlstm.envs import HideVelocities, make_vec
from rl_lnlstm.policies import MlpLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.ppo.setup import configuration

SMALL = {"num_steps": 16, "units": 4, "jit_compile": False, "seed": 0, "update_epochs": 1}


class Narrow(MlpLnLstmPolicy):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "units": 7})


class Plain(RecurrentPolicy):
    """Takes few options."""

    def __init__(self, observation_space, action_space, units=5, seed=None):
        super().__init__(observation_space, action_space, units=units, seed=seed)


def small_policy(**options):
    env = gym.make("CartPole-v1")
    return MlpLnLstmPolicy(env.observation_space, env.action_space, **{"units": 4, **options})


def test_a_policy_class_is_used(tmp_path):
    options = {name: value for name, value in SMALL.items() if name != "units"}
    narrow = PPO(Narrow, "CartPole-v1", **options)
    assert type(narrow.policy) is Narrow
    assert narrow.policy.units == narrow.config.units == 7
    assert type(PPO(RecurrentPolicy, "CartPole-v1", **SMALL).policy) is RecurrentPolicy
    plain = PPO(Plain, "CartPole-v1", **SMALL).learn(1)
    assert type(plain.policy) is Plain
    assert plain.policy.units == 4
    plain.save(tmp_path / "plain")
    assert load_policy(tmp_path / "plain", policy_class=Plain).units == 4
    description = json.loads((tmp_path / "plain" / "policy.json").read_text())
    description["arguments"]["activation"] = "relu"
    (tmp_path / "plain" / "policy.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match="saved with activation='relu', and its class now has 'tanh'"):
        load_policy(tmp_path / "plain", policy_class=Plain)


@pytest.mark.parametrize(
    "wrong",
    [42, None, object, int, lambda: None, ["MlpLnLstmPolicy"]],
    ids=["number", "none", "object", "int", "function", "list"],
)
def test_what_is_no_policy_is_refused(wrong):
    with pytest.raises(UserError, match="policy must be"):
        PPO(wrong, "CartPole-v1", **SMALL)


@pytest.mark.parametrize(
    "options",
    [
        {"units": 256},
        {"normalize_observations": True},
        {"use_sde": True},
        {"num_layers": 2},
        {"head_layers": (3,)},
        {"encoder_layers": (3,)},
        {"shared_lstm": False},
        {"std": "network"},
    ],
    ids=str,
)
def test_options_that_contradict_a_given_policy_are_refused_by_name(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match="std" if name == "use_sde" else name):
        PPO(small_policy(), "CartPole-v1", num_steps=16, **options)
    if name != "use_sde":  # which discrete actions do not have
        agreeing = PPO(small_policy(**options), "CartPole-v1", **options)
        assert getattr(agreeing.config, name) == value


def test_options_that_a_class_does_not_take_or_keep_are_refused():
    with pytest.raises(UserError, match=r"^units is 256, but the given policy has 7"):
        PPO(Narrow, "CartPole-v1", units=256)
    with pytest.raises(UserError, match="num_layers: Plain does not take this option"):
        PPO(Plain, "CartPole-v1", num_layers=2)
    for option in ({"std": "gsde"}, {"use_sde": True}):
        with pytest.raises(UserError, match="std: Plain does not take this option"):
            PPO(Plain, "Pendulum-v1", **option)


@pytest.mark.parametrize(
    ("option", "value"), [("vectorization", "async"), ("max_env_failures", 3), ("env_timeout", 5.0)]
)
def test_options_that_a_vector_env_cannot_follow_are_refused(option, value):
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
    with pytest.raises(UserError, match=f"{option} is {value!r}, but"):
        PPO("auto", envs, **SMALL, **{option: value})
    PPO("auto", make_vec("CartPole-v1", 2, max_failures=3), **SMALL, max_env_failures=3)


def test_a_total_that_is_no_number_is_refused_before_anything_is_loaded(tmp_path):
    ppo = PPO("auto", "CartPole-v1", **SMALL).learn(16)
    ppo.save_checkpoint(tmp_path / "checkpoint")
    ppo.learn(16)
    for total in ("200000", 0):
        with pytest.raises(UserError, match="total_timesteps must be an integer of at least 1"):
            ppo.load_checkpoint(tmp_path / "checkpoint", total)
        assert ppo.iteration == 2


def test_the_configuration_is_that_of_the_given_policy():
    policy = small_policy(units=6, shared_lstm=True, normalize_rewards=True)
    config = PPO(policy, "CartPole-v1", num_steps=16).config
    assert (config.units, config.shared_lstm, config.normalize_rewards) == (6, True, True)
    assert config.policy == "MlpLnLstmPolicy"


@pytest.mark.parametrize("num_envs", [1, 3, 5])
def test_any_number_of_environments_works_by_default(num_envs):
    ppo = PPO("auto", "CartPole-v1", num_envs=num_envs, **SMALL).learn(20)
    assert ppo.num_timesteps >= 20


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: gym.make("CartPole-v1", render_mode="rgb_array"), "CartPole-v1"),
        (lambda: gym.make("CartPole-v1", sutton_barto_reward=True), "TimeLimit(CartPole-v1)"),
        (lambda: gym.make("CartPole-v1", max_episode_steps=9), "TimeLimit(CartPole-v1)"),
        (lambda: HideVelocities(gym.make("CartPole-v1"), [1, 3]), "HideVelocities(CartPole-v1)"),
        (lambda: gym.make_vec("CartPole-v1", 2), "CartPole-v1"),
        (lambda: gym.make_vec("CartPole-v1", 2, vectorization_mode="sync"), "CartPole-v1"),
        (lambda: gym.make_vec("CartPole-v1", 2, "sync", wrappers=[TimeAwareObservation]), "SyncVectorEnv(CartPole-v1)"),
        (lambda: gym.make_vec("CartPole-v1", 2, sutton_barto_reward=True), "CartPoleVectorEnv(CartPole-v1)"),
        (lambda: ClipReward(gym.make_vec("CartPole-v1", 2), -1, 1), "ClipReward(CartPole-v1)"),
        (lambda: make_vec("CartPole-v1", 2), "CartPole-v1"),
        (lambda: make_vec("CartPole-v1", 2, vectorization="sync"), "CartPole-v1"),
        (lambda: make_vec("CartPole-v1", 2, wrappers=[TimeAwareObservation]), "GuardedVectorEnv(CartPole-v1)"),
    ],
)
def test_an_environment_is_recorded_as_its_id_only_if_the_id_makes_it_again(make, expected):
    envs = make()
    assert configuration("auto", envs, {}).env_id == expected
    envs.close()


def test_an_environment_object_is_one_environment():
    env = gym.make("CartPole-v1")
    ppo = PPO("auto", env, **SMALL)
    assert (ppo.envs.num_envs, ppo.config.env_id) == (1, "CartPole-v1")
    assert ppo.envs.envs[0].unwrapped is env.unwrapped
    assert ppo.learn(20).num_timesteps >= 20
    ppo.close()
    env.reset()
    env.step(0)  # it is the user's to close
    with pytest.raises(UserError, match="num_envs is 2"):
        PPO("auto", env, num_envs=2, **SMALL)
    with pytest.raises(UserError, match="vectorization is 'async'"):
        PPO("auto", env, vectorization="async", **SMALL)
    with pytest.raises(UserError, match=r"eval_interval.*an environment object"):
        PPO("auto", env, eval_interval=2, **SMALL)
    with pytest.raises(UserError, match="an environment of its own"):
        ppo.evaluate()


def test_saved_loaded_trained_on(tmp_path):
    observation = np.ones(4, np.float32)
    with PPO("auto", "CartPole-v1", **SMALL).learn(20) as ppo:
        ppo.save(tmp_path / "mine")
        expected = ppo.predict(observation, deterministic=True)
    with PPO.load(tmp_path / "mine", env="CartPole-v1", num_steps=16, jit_compile=False) as again:
        got = again.predict(observation, deterministic=True)
        np.testing.assert_array_equal(got[0], expected[0])
        for one, other in zip(got[1], expected[1], strict=True):
            np.testing.assert_array_equal(one, other)
        assert again.learn(20).num_timesteps >= 20
    with pytest.raises(UserError, match="needs an environment"):
        PPO.load(tmp_path / "mine")
    with pytest.raises(UserError, match="observation space"):
        PPO.load(tmp_path / "mine", env="Pendulum-v1")


def test_a_trainer_evaluates_and_is_evaluated():
    ppo = PPO("auto", "CartPole-v1", **SMALL)
    mean, std = ppo.evaluate(4)
    assert mean > 0
    assert (mean, std) == ppo.evaluate(4)
    same = evaluate(ppo, "CartPole-v1", 4, seed=ppo.config.seed)
    assert (same.mean, same.std) == (mean, std)
    assert ppo.evaluate(4, env="CartPole-v1") == (mean, std)
    assert ppo.evaluation(4) == same
    assert evaluate_policy(ppo, "CartPole-v1", 3, seed=1) == evaluate_policy(ppo.policy, "CartPole-v1", 3, seed=1)
    assert ppo.evaluate(2, env=SyncVectorEnv([lambda: gym.make("CartPole-v1")]))[0] > 0


class Closes(gym.Wrapper):
    opened = closed = 0

    def __init__(self, env):
        super().__init__(env)
        Closes.opened += 1

    def close(self):
        Closes.closed += 1
        super().close()


def closing():
    return Closes(gym.make("CartPole-v1"))


def test_what_was_made_is_closed():
    """Environments of training, of selection, and of a trainer that could not be built."""
    Closes.opened = Closes.closed = 0
    with PPO("auto", closing, num_envs=2, eval_interval=1, n_eval_episodes=3, **SMALL):
        pass
    assert Closes.opened == Closes.closed == 5
    env = gym.make("Pendulum-v1")
    policy = MlpLnLstmPolicy(env.observation_space, env.action_space, units=2)
    with pytest.raises(UserError, match="made for observation space"):
        PPO(policy, closing, num_envs=2)
    assert Closes.opened == Closes.closed == 7
    envs = SyncVectorEnv([closing])
    PPO("auto", envs, **SMALL).close()
    assert Closes.opened == Closes.closed + 1


def test_arguments_of_learn(capsys):
    ppo = PPO("auto", "CartPole-v1", num_envs=2, **SMALL)
    ppo.learn(20, callback=None)
    ppo.learn(np.int64(20), callback=[lambda metrics: None])
    for wrong in ("1000", 0, -5, 2.5, True):
        with pytest.raises(UserError, match="total_timesteps must be an integer of at least 1"):
            ppo.learn(wrong)
    for wrong in (3, [print, 3]):
        with pytest.raises(UserError, match="callback must be"):
            ppo.learn(20, callback=wrong)
    capsys.readouterr()
    ppo.learn(20, progress_bar=True)
    assert "frames" in capsys.readouterr().err


def test_load_policy_takes_what_ppo_saves(tmp_path):
    ppo = PPO("auto", "CartPole-v1", **SMALL)
    ppo.save(tmp_path / "mine")
    for one, other in zip(ppo.policy.get_weights(), load_policy(tmp_path / "mine").get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ({"log_interval": 4}, "learn has no argument 'log_interval': use callback"),
        ({"reset_num_timesteps": False}, "each call of learn"),
        ({"tb_log_name": "run"}, "--run-dir of the command train"),
        ({"gamma": 0.9}, "it is an option of PPO"),
        ({"total_steps": 9}, "expected total_timesteps, callback or progress_bar"),
    ],
    ids=str,
)
def test_arguments_of_learn_in_other_libraries_are_answered(argument, answer):
    with pytest.raises(UserError, match=answer), PPO("auto", "CartPole-v1", num_envs=1, **SMALL) as ppo:
        ppo.learn(10, **argument)


def test_a_path_that_is_none_is_named():
    with PPO("auto", "CartPole-v1", num_envs=1, **SMALL) as ppo:
        for call in (ppo.save, ppo.policy.save, ppo.save_checkpoint, ppo.load_checkpoint, load_policy):
            with pytest.raises(UserError, match="path must be that of a folder, got None"):
                call(None)


def test_rollouts_that_only_begin_episodes_are_no_failures():
    class Short(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(2, np.float32), {}

        def step(self, action):
            return np.zeros(2, np.float32), 1.0, True, False, {}

    envs = make_vec(Short, 1, autoreset_mode="NEXT_STEP")
    options = {**SMALL, "num_steps": 1, "num_minibatches": 1, "max_env_failures": 0}
    ppo = PPO("MlpLnLstmPolicy", envs, **options)
    ppo.learn(3)
    assert ppo.num_timesteps == 3 < ppo.iteration
