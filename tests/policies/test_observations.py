"""Every kind of observation, from the environment to a saved policy, in every autoreset mode."""

import copy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl_lnlstm import PPO, evaluate_policy, load_policy
from rl_lnlstm.envs import make_vec
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy, MultiInputLnLstmPolicy, policy_for
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.spaces import flatten, leaves, map_leaves
from tests.any_space import OBSERVATION_SPACES, AnyEnv
from tests.policies.acting import assert_reproduced, evaluated
from tests.policies.scripted_env import MODES, SCRIPTS, ScriptedEnv, scripted_envs
from tests.ppo.tiny_ppo import iterate

TINY = {
    **{"num_envs": 2, "num_steps": 8, "num_minibatches": 1, "update_epochs": 1, "seed": 0, "jit_compile": False},
    **{"units": 4, "encoder_layers": (16,), "head_layers": (), "learning_rate": 0.01},
}
SUITABLE = {
    **dict.fromkeys(OBSERVATION_SPACES, MlpLnLstmPolicy),
    **dict.fromkeys(["image", "channels first", "grayscale", "stacked", "stacked colours"], CnnLnLstmPolicy),
    **dict.fromkeys(["symbols", "image of floats"], CnnLnLstmPolicy),
    **dict.fromkeys(["tuple", "nested"], MultiInputLnLstmPolicy),
}
ACTIONS = spaces.Dict(a=spaces.MultiDiscrete([2, 3], start=[0, 1]), b=spaces.Box(-1, 1, (2,)), c=spaces.MultiBinary(2))


def train(envs, **config):
    ppo = PPO("auto", envs, **{**TINY, **config})
    return ppo, iterate(ppo, 2)


SIZES = {"units": 4, "encoder_layers": (16,), "head_layers": (), "seed": 0}


@pytest.mark.parametrize("kind", OBSERVATION_SPACES)
def test_every_space_is_learnt_saves_loads_and_evaluates(kind, tmp_path):
    space = OBSERVATION_SPACES[kind]
    envs = make_vec(lambda: AnyEnv(copy.deepcopy(space)), 2)
    assert policy_for(space) is SUITABLE[kind]
    policy = SUITABLE[kind](space, envs.single_action_space, normalize_observations=True, **SIZES)
    for _, sequences in assert_reproduced(policy, envs, 8, 8):
        for leaf, part in zip(leaves(space), flatten(space, sequences.observations), strict=True):
            assert part.dtype == leaf.dtype  # bytes stay bytes
            assert part.shape == (2, 8, *leaf.shape)

    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert loaded.observation_space == space
    space.seed(0)
    samples = [space.sample() for _ in range(5)]
    batch = map_leaves(lambda _, *parts: np.stack(parts), space, *samples)
    actions, (h, _) = loaded.predict(batch, deterministic=True)
    np.testing.assert_array_equal(h, policy.predict(batch)[1][0])
    assert np.ptp(h, 0).max() > 1e-6  # it sees them
    for sample, action, row in zip(samples, actions, h, strict=True):
        single, (alone, _) = loaded.predict(sample, deterministic=True)
        assert single == action
        np.testing.assert_allclose(alone[0], row, atol=1e-6)
    mean, _ = evaluate_policy(loaded, lambda: AnyEnv(copy.deepcopy(space)), 2)
    assert np.isfinite(mean)


class NestedScripted(ScriptedEnv):
    """The observations of `ScriptedEnv`, divided among the leaves of a nested space."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        box = self.observation_space
        self.observation_space = spaces.Dict(
            z=spaces.Box(box.low[:1], box.high[:1]), a=spaces.Tuple([spaces.Box(box.low[1:], box.high[1:])])
        )

    def nested(self, observation):
        return {"a": (observation[1:],), "z": observation[:1]}  # not in the space's order

    def reset(self, **options):
        observation, info = super().reset(**options)
        return self.nested(observation), info

    def step(self, action):
        observation, *rest = super().step(action)
        return self.nested(observation), *rest


class FinalInBatches(gym.vector.VectorWrapper):
    """As some vector environments of others: final observations as a batch rather than as objects."""

    def step(self, actions):
        *result, infos = self.env.step(actions)
        if "final_obs" in infos:
            space = self.env.single_observation_space
            blank = map_leaves(lambda leaf: np.full(leaf.shape, np.nan), space)
            finals = [blank if final is None else final for final in infos["final_obs"]]
            infos = {**infos, "final_obs": map_leaves(lambda _, *parts: np.stack(parts), space, *finals)}
        return *result, infos


@pytest.mark.parametrize("mode", MODES, ids=[mode.name for mode in MODES])
@pytest.mark.parametrize("copy_arrays", [True, False])
def test_nested_observations_are_the_flat_ones(mode, copy_arrays):
    """In every mode: columns, values and the values of final observations, of a policy that flattens."""

    class Flattened(MlpLnLstmPolicy):
        """Of nested observations, what the policy makes of flat ones."""

        def step(self, observations, *rest):
            return super().step(flat(observations), *rest)

        def value(self, observations, *rest):
            return super().value(flat(observations), *rest)

    def flat(observations):
        return np.concatenate([observations["z"], observations["a"][0]], 1)

    makers = [lambda n=n, s=s: NestedScripted(s, None, 1.0, n) for n, s in enumerate(SCRIPTS)]
    nested_envs = [SyncVectorEnv(makers, autoreset_mode=mode, copy=copy_arrays)]
    if mode is AutoresetMode.SAME_STEP:
        nested_envs.append(FinalInBatches(SyncVectorEnv(makers, autoreset_mode=mode, copy=copy_arrays)))
    arguments = (spaces.Box(-100, 100, (4,)), spaces.Discrete(3))
    expected = RolloutRunner(MlpLnLstmPolicy(*arguments, units=4, seed=1), scripted_envs(mode), 12, 6, seed=0).run()
    for envs in nested_envs:
        got = RolloutRunner(Flattened(*arguments, units=4, seed=1), envs, 12, 6, seed=0).run()
        assert list(got.observations) == list(envs.single_observation_space)
        joined = np.concatenate([got.observations["z"], got.observations["a"][0]], -1)
        np.testing.assert_array_equal(joined, expected.observations)
        for name in ("actions", "rewards", "valid", "episode_starts"):
            np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
        for name in ("values", "next_values"):  # a policy that overrides `step` acts by its graph
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-6, err_msg=name)


BOTH = {"previous_action": True, "previous_reward": True, "num_layers": 2, "residual": True, "shared_lstm": False}


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        (AutoresetMode.NEXT_STEP, {"previous_action": True}),
        (AutoresetMode.SAME_STEP, {"previous_reward": True, "sequence_length": 2}),
        *((mode, BOTH) for mode in MODES),
    ],
    ids=["action", "reward", *(f"both, deep, {mode.name}" for mode in MODES)],
)
def test_what_the_lstm_saw_is_reproduced(mode, config, tmp_path):
    """Previous actions and rewards too, across sequences and rollouts and at episodes' starts."""
    space, options = OBSERVATION_SPACES["nested"], dict(config)
    length = options.pop("sequence_length", 8)
    makers = [lambda n=n: AnyEnv(copy.deepcopy(space), ACTIONS, n) for n in (1, 3, 5, 20)]
    policy = MultiInputLnLstmPolicy(space, ACTIONS, **SIZES, **options)
    worst = []

    for _, sequences in assert_reproduced(policy, SyncVectorEnv(makers, autoreset_mode=mode), 8, length):
        assert np.isfinite(sequences.log_probs).all()
        wrong = map_leaves(lambda _, part: part[::-1], ACTIONS, sequences.actions)
        values = [evaluated(policy, sequences, actions)[2].numpy() for actions in (None, wrong)]
        worst.append(np.abs(values[0] - values[1]).max())
    assert (min(worst) > 1e-6) == policy.options.previous_action  # what was done before decides what is seen
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    for name, value in options.items():
        assert getattr(loaded.options, name) == value
    mean, _ = evaluate_policy(loaded, makers[2], 2, seed=0)
    again, _ = evaluate_policy(policy, makers[2], 2, seed=0)
    assert mean == again


def test_ppo_trains_on_nested_observations():
    """Before an update's first step, acting is reproduced."""
    space = OBSERVATION_SPACES["nested"]
    ppo, metrics = train(lambda: AnyEnv(copy.deepcopy(space), ACTIONS), normalize_observations=True, **BOTH)
    assert type(ppo.policy) is MultiInputLnLstmPolicy
    for of_one in metrics:
        assert abs(of_one["train/approx_kl"]) < 1e-9
        assert of_one["train/clip_fraction"] == 0


@pytest.mark.peers
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_ales_own_vector_environment(mode):
    """Its final observations come as a batch; episodes of 60 frames are truncated after 15 steps."""
    pytest.importorskip("ale_py")
    options = {"vectorization": "vector_entry_point", "env_kwargs": {"max_num_frames_per_episode": 60}}
    ppo, metrics = train(make_vec("ale_py:ALE/Pong-v5", 2, autoreset_mode=mode, **options), num_steps=32)
    assert type(ppo.policy) is CnnLnLstmPolicy
    assert metrics[-1]["rollout/ep_len_mean"] == 15
    assert abs(metrics[-1]["train/approx_kl"]) < 1e-9
