"""Action masks that allow nothing, have another shape, or come and go: the environment is named."""

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import EnvironmentFailure, UserError
from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.action_masks import ActionMasks
from rl_lnlstm.envs.autoreset import Stepper
from tests.policies.card_env import CARDS, NVEC, CardEnv, cards


def faulty(mask, **arguments):
    return lambda: CardEnv(faulty=mask, length=50, **arguments)


def play(env):
    stepper = Stepper(make_vec(env, 2), 0)
    for _ in range(6):
        stepper.step(stepper.action_masks.argmax(1) + 2)


@pytest.mark.parametrize("tells", ["info", "method"])
def test_a_mask_that_allows_nothing_names_the_environment(tells):
    with pytest.raises(EnvironmentFailure, match=r"<lambda> \(environment 0 in 0..1\) allows no action.*at step 3"):
        play(faulty(np.zeros(CARDS, bool), tells=tells))


def test_a_mask_of_another_shape_names_the_environment():
    message = r"<lambda> \(environment 0 in 0..1\) gave an action mask of shape \[7\], expected \[6\] \(at step 3\)"
    with pytest.raises(EnvironmentFailure, match=message):
        play(faulty(np.ones(CARDS + 1, bool), tells="method"))


def test_every_component_needs_a_value():
    env = faulty(np.array([1, 0, 0, 0, 1, 0, 0, 1], bool), nvec=NVEC)
    stepper = Stepper(make_vec(env, 2), 0)

    def play():
        for _ in range(6):
            masks = np.split(stepper.action_masks, [3, 4], axis=1)
            stepper.step(np.stack([mask.argmax(1) for mask in masks], -1) + stepper.envs.single_action_space.start)

    with pytest.raises(EnvironmentFailure, match=r"allows no action: its action mask is \[1 0 0 0 1 0 0 1\]"):
        play()


class Late(CardEnv):
    """Tells its mask in steps only; or, `early`, in the first reset only."""

    def __init__(self, early):
        super().__init__()
        self.early = early

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return observation, info if self.early else {}

    def step(self, action):
        *result, info = super().step(action)
        return *result, {} if self.early else info


@pytest.mark.parametrize(
    ("early", "message"),
    [
        (False, "gave info['action_mask'] in a step, but not in the reset"),
        (True, "gave no info['action_mask'], but did"),
    ],
)
def test_masks_that_come_or_go(early, message):
    stepper = Stepper(make_vec(lambda: Late(early), 2), 0)
    with pytest.raises(EnvironmentFailure) as caught:
        stepper.step(np.full(2, 2))
    assert message in str(caught.value)
    assert "<lambda>" in str(caught.value)


def test_a_method_that_raises_names_the_environment():
    class Raising(CardEnv):
        def action_masks(self):
            raise OSError("no cards")

    with pytest.raises(EnvironmentFailure, match=r"Raising raised OSError in action_masks\(\): no cards"):
        Stepper(make_vec(Raising, 2))


def test_masks_for_other_actions_are_refused():
    class Continuous(CardEnv):
        def __init__(self):
            super().__init__()
            self.action_space = gym.spaces.Box(-1, 1, (2,))

    with pytest.raises(
        UserError, match="Continuous gives action masks, which are for Discrete, MultiDiscrete and MultiBinary"
    ):
        Stepper(make_vec(Continuous, 2))


def test_components_masks_may_come_as_a_tuple():
    envs = make_vec(cards(nvec=NVEC), 2)
    whole = np.array([[1, 0, 1, 1, 0, 0, 1, 0]] * 2, bool)
    given = np.empty(2, object)
    given[:] = [tuple(np.split(mask, [3, 4])) for mask in whole]
    infos = {"action_mask": given, "_action_mask": np.ones(2, bool)}
    masks = ActionMasks.find(envs, infos).read((infos, np.ones(2, bool)))
    np.testing.assert_array_equal(masks, whole)


@pytest.mark.parametrize("mask", [np.array([0.0, -np.inf, 0.0]), [0, 1, 2], ["1", "0", "1"], [[1], [1, 0]]])
def test_a_mask_of_other_values_than_true_and_false_is_refused(mask):
    """A mask that is added to logits has 0 where an action is legal."""

    class Tells(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {"action_mask": mask}

    with pytest.raises(EnvironmentFailure, match="action mask"):
        Stepper(make_vec(Tells, 2), 0)


def test_an_entry_of_the_observation_that_is_no_mask_is_refused():
    class Adds(gym.Env):
        observation_space = gym.spaces.Dict(seen=gym.spaces.Box(-1, 1, (1,)), action_mask=gym.spaces.Box(-1e9, 0, (2,)))
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"seen": np.zeros(1, np.float32), "action_mask": np.array([0, -1e9], np.float32)}, {}

    with pytest.raises(EnvironmentFailure, match="Adds gave an action mask with values other than"):
        Stepper(make_vec(Adds, 2, mask_key="action_mask"), 0)
