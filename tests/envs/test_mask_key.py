"""Action masks that are an entry of the observation."""

import functools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lnlstm import PPO, EvalCallback, UserError, evaluate, evaluate_policy, memory_use, record_episodes
from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.action_masks import mask_sizes
from rl_lnlstm.envs.autoreset import Stepper
from rl_lnlstm.errors import RunWarning
from tests.envs.masked_env import Cards, Switches, SwitchesWithMethod

TINY = {
    "units": 4,
    "num_steps": 16,
    "sequence_length": 8,
    "num_minibatches": 1,
    "update_epochs": 1,
    "jit_compile": False,
}
MODES = list(AutoresetMode)


def first_legal(masks, action_space):
    components = len(mask_sizes(action_space))
    return masks.reshape(len(masks), components, -1).argmax(-1).reshape(len(masks), *action_space.shape)


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
@pytest.mark.parametrize("vectorization", ["sync", "async", "handed in"])
@pytest.mark.parametrize("space", [gym.spaces.Discrete(4), gym.spaces.MultiBinary([2, 2])], ids=["discrete", "binary"])
def test_an_entry_of_the_observation_is_taken_as_the_mask(mode, vectorization, space):
    if vectorization == "handed in":
        envs = make_vec(SyncVectorEnv([lambda: Cards(space)] * 2, autoreset_mode=mode), mask_key="action_mask")
    else:
        envs = make_vec(
            functools.partial(Cards, space), 2, vectorization=vectorization, autoreset_mode=mode, mask_key="action_mask"
        )
    try:
        assert list(envs.single_observation_space) == ["observation"]
        stepper = Stepper(envs, 0)
        for _ in range(20):
            assert envs.observation_space.contains(stepper.observations)
            running = ~stepper._resetting
            expected = stepper.observations["observation"][running] == 1
            np.testing.assert_array_equal(stepper.action_masks[running], expected)
            step = stepper.step(first_legal(stepper.action_masks, space))
            assert step.aborted is None
    finally:
        envs.close()


def test_a_trainer_learns_with_the_mask_in_the_observation():
    ppo = PPO("auto", Cards, num_envs=2, mask_key="action_mask", **TINY)
    ppo.learn(64)
    assert ppo.envs.failures == 0
    arguments = {"seed": 0, "mask_key": "action_mask"}
    assert evaluate(ppo.policy, Cards, 3, **arguments).returns == [3.0] * 3
    assert evaluate_policy(ppo.policy, Cards(), 3, **arguments) == (3.0, 0.0)
    assert evaluate_policy(ppo.policy, SyncVectorEnv([Cards] * 2), 3, **arguments) == (3.0, 0.0)
    for episode in record_episodes(ppo.policy, Cards, 3, **arguments):
        assert episode["action_masks"].shape == (3, 4)
    assert memory_use(ppo.policy, Cards, 3, cuts=[1], **arguments).score.mean == 3
    assert ppo.evaluate(3, env=Cards()) == (3.0, 0.0)
    evaluation = EvalCallback(Cards, 1, 3, mask_key="action_mask")
    ppo.learn(32, callback=evaluation)
    assert evaluation.best_mean == 3


def test_a_mask_that_nobody_asked_for_is_warned_of():
    with pytest.warns(RunWarning, match=r"the entry 'action_mask' .*mask_key='action_mask'"):
        make_vec(Cards)


@pytest.mark.parametrize(
    ("env", "key", "message"),
    [
        (Cards, "mask", "no such entry"),
        ("CartPole-v1", "action_mask", "no such entry"),
        (Cards, "observation", None),
        (lambda: Cards(gym.spaces.Discrete(4), "m"), "m", None),
        (lambda: gym.wrappers.FilterObservation(Cards(), ["action_mask"]), "action_mask", "no other entry"),
        (lambda: gym.wrappers.RescaleAction, "action_mask", "expected a function that makes"),
    ],
)
def test_a_mask_key_has_to_name_a_mask(env, key, message):
    if message is None:
        make_vec(env, mask_key=key)
        return
    with pytest.raises(UserError, match=message):
        make_vec(env, mask_key=key)


@pytest.mark.parametrize("tells", ["info", "method"])
@pytest.mark.parametrize("shape", [(6,), (3, 2)])
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_masks_of_multi_binary_actions(tells, shape, vectorization):
    """Component after component, each with its value 0 and then its value 1, as sb3-contrib's."""

    kind = Switches if tells == "info" else SwitchesWithMethod
    envs = make_vec(functools.partial(kind, shape, tells == "info"), 2, vectorization=vectorization)
    try:
        stepper = Stepper(envs, 0)
        for _ in range(20):
            assert stepper.action_masks.shape == (2, 6)
            assert stepper.step(first_legal(stepper.action_masks, Switches.action_space)).valid.all()
    finally:
        envs.close()
