"""Behaviour cloning: the loss against an independent calculation, and what a policy acts like afterwards."""

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from gymnasium import spaces

from rl_lnlstm import PPO, UserError, evaluate, pad_episodes, pretrain, record_episodes
from rl_lnlstm.evaluation.record import save_episode
from rl_lnlstm.policies import MlpLnLstmPolicy, MultiInputLnLstmPolicy, policy_for
from rl_lnlstm.ppo.demonstrations import batch_of_pieces, demonstrations, pieces_of
from rl_lnlstm.spaces import map_leaves
from tests.any_space import OBSERVATION_SPACES, AnyEnv
from tests.policies import reference

SMALL = {"units": 8, "head_layers": (8,), "encoder_layers": (8,), "seed": 0}
FAST = {"jit_compile": False, "batch_size": 4}
MAZE = {"corridor_length": 3}
MIXED = spaces.Dict(
    go=spaces.Discrete(3, start=-1),
    arm=spaces.Tuple([spaces.Box(-2, 6, (2,)), spaces.MultiBinary(2)]),
    hand=spaces.MultiDiscrete([2, 3], start=[1, 0]),
)


def maze():
    return gym.make("TMaze-v0", **MAZE)


class Guide:
    """Knows the way through the maze. It has no recurrent state of this package."""

    observation_space, action_space = maze().observation_space, maze().action_space

    def predict(self, observation, state=None, episode_start=None, deterministic=False):
        cue = np.zeros(len(observation), int) if state is None else state
        cue = np.where(observation[:, 0] > 0, 1, np.where(observation[:, 1] > 0, 2, cue))
        return np.where(observation[:, 3] > 0, cue, 0), cue


def student(**options):
    return MlpLnLstmPolicy(Guide.observation_space, Guide.action_space, **{**SMALL, **options})


@pytest.fixture(scope="module")
def guided():
    return record_episodes(Guide(), maze, 30, seed=0)


def test_cloning_alone_finds_the_way_and_remembers_the_cue(guided):
    policy = student()
    result = pretrain(policy, guided, learning_rate=3e-3, n_epochs=300, patience=100, **FAST)
    assert (result.n_episodes, result.n_validation_episodes, result.n_frames) == (27, 3, 27 * 4)
    assert result.accuracy == result.validation_accuracy == 1.0
    assert result.validation_loss == result.epochs[result.best_epoch - 1].validation_loss
    assert result.validation_loss == min(epoch.validation_loss for epoch in result.epochs)
    assert len(result.epochs) <= result.best_epoch + 100
    assert result.explained_variance > 0.5
    assert evaluate(policy, maze, 20, seed=1).returns == [1.0] * 20


def test_the_loss_is_the_mean_negative_log_likelihood_whatever_the_length_of_sequences(guided):
    for sequence_length in (3, 100):
        policy = reference.randomise(student(previous_action=True, previous_reward=True), scale=0.4)
        # One step with a tiny learning rate changes nothing that can be seen.
        result = pretrain(
            policy, guided, learning_rate=1e-12, n_epochs=1, sequence_length=sequence_length, **FAST, vf_coef=0
        )
        batch = pad_episodes(guided)
        log_probs, _, values = policy.evaluate_actions(
            batch.observations, batch.actions, None, batch.episode_starts, rewards=batch.rewards.astype(np.float32)
        )
        whole = -(result.loss * result.n_frames + result.validation_loss * 3 * 4)
        np.testing.assert_allclose(tf.reduce_sum(log_probs), whole, rtol=1e-5)
        mean = -tf.reduce_sum(log_probs) / batch.mask.sum()
        np.testing.assert_allclose(result.epochs[0].loss, mean, rtol=0.05)  # of the episodes learnt from
        assert values.shape == batch.rewards.shape


def test_the_same_seed_gives_the_same_weights(guided):
    weights = []
    for seed in (0, 0, 1):
        policy = student(normalize_observations=True)
        pretrain(policy, guided, seed=seed, n_epochs=3, **FAST)
        weights.append(policy.get_weights())
    assert all(np.array_equal(*pair) for pair in zip(*weights[:2], strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(*weights[1:], strict=True))


def test_statistics_are_those_of_the_episodes_learnt_from(guided):
    policy = student(normalize_observations=True, normalize_rewards=True)
    pretrain(policy, guided, n_epochs=1, validation_fraction=0, **FAST)
    seen = np.concatenate([episode["observations"] for episode in guided])
    np.testing.assert_allclose(policy.observation_statistics.mean, seen.mean(0), atol=1e-6)
    np.testing.assert_allclose(policy.observation_statistics.variance, seen.var(0), atol=1e-6)
    assert float(policy.return_statistics.count.numpy()) == len(seen)


@pytest.mark.slow
def test_values_learn_discounted_returns_and_bootstrap_truncated_episodes():
    class Endless(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

        def __init__(self, terminates):
            self.terminates = terminates

        def reset(self, *, seed=None, options=None):
            self.steps = 0
            return np.zeros(1, np.float32), {}

        def step(self, action):
            self.steps += 1
            ends = self.steps == 8
            return np.full(1, self.steps / 8, np.float32), 1.0, ends and self.terminates, ends, {}

    for terminates in (True, False):
        policy = MlpLnLstmPolicy(spaces.Box(-1, 1, (1,)), spaces.Discrete(2), **SMALL)
        episodes = record_episodes(policy, lambda terminates=terminates: Endless(terminates), 10, seed=0)
        pretrain(policy, episodes, gamma=0.5, n_epochs=150, learning_rate=1e-2, **FAST)
        batch = pad_episodes(episodes)
        _, _, values = policy.evaluate_actions(batch.observations, batch.actions, None, batch.episode_starts)
        expected = 2.0 - 0.5 ** np.arange(7, -1, -1) if terminates else np.full(8, 2.0)
        np.testing.assert_allclose(values[0], expected, atol=0.15)


@pytest.mark.many_cases
@pytest.mark.parametrize("kind", ["nested", "bytes", "tuple", "image"])
def test_every_space_is_learnt(kind):
    def make():
        return AnyEnv(OBSERVATION_SPACES[kind], MIXED, length=4)

    policy_class = policy_for(OBSERVATION_SPACES[kind])
    expert, learner = (
        policy_class(OBSERVATION_SPACES[kind], MIXED, units=4, normalize_observations=True, seed=seed)
        for seed in (0, 1)
    )
    episodes = record_episodes(expert, make, 5, deterministic=False, seed=0)
    result = pretrain(learner, episodes, n_epochs=2, sequence_length=3, batch_size=2, jit_compile=False)
    assert np.isfinite([result.loss, result.validation_loss, result.epochs[0].loss]).all()
    assert 0 <= result.accuracy <= 1


@pytest.mark.slow
@pytest.mark.parametrize("std", ["free", "network", "gsde"])
def test_continuous_actions_are_imitated_in_their_own_scale(std):
    actions = spaces.Box(np.array([-2, 0], np.float32), np.array([2, 5], np.float32))

    class Line:
        observation_space, action_space = spaces.Box(-1, 1, (3,)), actions

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.stack([2 * observation[:, 0], 2.5 + 2 * observation[:, 1]], -1).astype(np.float32), None

    episodes = record_episodes(Line(), lambda: AnyEnv(spaces.Box(-1, 1, (3,)), actions, length=8), 40, seed=0)
    policy = MlpLnLstmPolicy(Line.observation_space, actions, std=std, **SMALL)
    result = pretrain(policy, episodes, n_epochs=60, learning_rate=1e-2, **FAST)
    assert result.accuracy is None
    observations = np.random.default_rng(0).uniform(-0.9, 0.9, (50, 3)).astype(np.float32)
    got, _ = policy.predict(observations, episode_start=np.ones(50, bool), deterministic=True)
    assert np.abs(got - Line().predict(observations)[0]).mean() < 0.3


def test_sampled_actions_are_clipped_to_the_recorded_ones():
    policy = MlpLnLstmPolicy(spaces.Box(-1, 1, (3,)), MIXED, **SMALL)
    recorded = map_leaves(lambda leaf, part: part, MIXED, spaces.Dict(MIXED.spaces).sample())
    again = policy.clip_actions(policy.scale_actions(recorded))
    map_leaves(lambda _, one, other: np.testing.assert_allclose(one, other, atol=1e-6), MIXED, recorded, again)


def test_pieces_hold_each_step_once_and_padding_is_not_valid(guided):
    found = demonstrations(student(), guided)
    pieces = pieces_of(found, range(5), 3)
    batch = batch_of_pieces(found, [*pieces, None], 3)
    assert batch.valid.sum() == sum(episode.length for episode in found[:5])
    assert not batch.valid[-1].any()
    assert batch.episode_starts[:-1].sum() == 5
    steps = np.concatenate([row[valid > 0] for row, valid in zip(batch.observations, batch.valid, strict=True)])
    np.testing.assert_array_equal(steps, np.concatenate([episode["observations"] for episode in guided[:5]]))


def test_action_masks_and_critic_entries_are_used():
    space = spaces.Dict(seen=spaces.Box(-1, 1, (2,)), state=spaces.Box(-1, 1, (2,)))
    options = {**SMALL, "critic_keys": ("state",), "shared_lstm": False}
    policy = MultiInputLnLstmPolicy(space, spaces.Discrete(3), **options)
    episodes = record_episodes(policy, lambda: AnyEnv(space), 6, deterministic=False, seed=0)
    for episode in episodes:
        episode["action_masks"] = np.eye(3, dtype=bool)[episode["actions"]] | np.eye(3, dtype=bool)[0]
    encoder = policy.network.critic_encoder
    before = encoder.get_weights()
    result = pretrain(policy, episodes, n_epochs=2, **FAST)
    assert np.isfinite(result.loss)
    assert policy.uses_action_masks
    assert any(np.any(one != other) for one, other in zip(encoder.get_weights(), before, strict=True))
    short = [{name: array for name, array in episode.items() if "state" not in name} for episode in episodes]
    with pytest.raises(UserError, match="episode 0 has no observations/state, which the policy needs"):
        pretrain(policy, short)
    step = int(np.flatnonzero(episodes[1]["actions"])[0])
    episodes[1]["action_masks"][step] = [True, False, False]
    with pytest.raises(UserError, match=f"episode 1: the action of step {step} is illegal"):
        pretrain(policy, episodes, **FAST)
    del episodes[2]["action_masks"]
    with pytest.raises(UserError, match="episode 2 has no action_masks, but episode 0 has"):
        pretrain(policy, episodes)


def changed(episodes, name, value):
    return [episodes[0], {**episodes[1], name: value}]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: [], "there are no episodes to learn from"),
        (lambda e: changed(e, "actions", np.array([0, 0, 0, 3])), r"episode 1: got 3 in actions of step 3, expected 0"),
        (lambda e: changed(e, "actions", np.zeros((4, 2), int)), r"episode 1: got actions of shape \[4, 2\], expected"),
        (
            lambda e: changed(e, "observations", np.full((4, 4), np.nan)),
            r"episode 1: got nan in observations of step 0",
        ),
        (lambda e: changed(e, "observations", np.zeros((4, 3))), r"episode 1: got observations of shape \[4, 3\]"),
        (lambda e: changed(e, "rewards", np.full(4, np.inf)), r"episode 1: rewards must be finite"),
        (lambda e: changed(e, "rewards", np.zeros(3)), r"episode 1: its arrays must have the same number of steps"),
        (lambda e: [{"actions": np.zeros(3)}], r"episode 0 is not one of record_episodes: it has no rewards"),
        (lambda e: [{n: a for n, a in e[0].items() if n != "final_observation"}], r"has no final_observation, which"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(guided, make, message):
    with pytest.raises(UserError, match=message):
        pretrain(student(), make(guided))


def test_actions_outside_of_the_bounds_and_wrong_options_are_refused(guided):
    policy = MlpLnLstmPolicy(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,)), **SMALL)
    (episode,) = record_episodes(policy, lambda: AnyEnv(policy.observation_space, policy.action_space), 1, seed=0)
    episode["actions"][2] = 1.5
    with pytest.raises(UserError, match=r"episode 0: got action 1.5, which is outside of Box\(-1.0, 1.0"):
        pretrain(policy, [episode])
    with pytest.raises(UserError, match="batch_size must be an integer of at least 1, got 0"):
        pretrain(policy, [episode], batch_size=0)
    with pytest.raises(UserError, match="policy must be a RecurrentPolicy or a PPO, got Guide"):
        pretrain(Guide(), guided)


def test_a_folder_holds_episodes(guided, tmp_path):
    for number, episode in enumerate(guided):
        save_episode(episode, tmp_path / f"episode-{number:05d}.npz")
    policies = student(), student()
    for policy, episodes in zip(policies, (guided, tmp_path), strict=True):
        pretrain(policy, episodes, n_epochs=1, **FAST)
    assert all(np.array_equal(*pair) for pair in zip(*(one.get_weights() for one in policies), strict=True))
    (tmp_path / "episode-00003.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match=r"episode-00003.npz is not a recorded episode"):
        pretrain(student(), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no episodes"):
        pretrain(student(), tmp_path / "empty")


@pytest.mark.slow
def test_ppo_goes_on_from_there(guided):
    options = {
        "num_envs": 8,
        "num_steps": 32,
        "update_epochs": 4,
        "gamma": 0.9,
        "learning_rate": 2e-4,
        "normalize_rewards": False,
        **SMALL,
    }
    with PPO("auto", maze, jit_compile=False, **options) as ppo:
        pretrain(ppo, guided, learning_rate=3e-3, n_epochs=300, patience=100, **FAST)
        metrics = []
        ppo.learn(1280, callback=metrics.append)
        assert min(one["rollout/ep_rew_mean"] for one in metrics) > 0.9
        assert ppo.evaluate(20)[0] == 1.0


def test_training_stops_when_the_callback_says_so_and_needs_no_validation(guided):
    epochs = []
    alone = pretrain(student(), guided[:1], n_epochs=9, callback=lambda e: epochs.append(e) or e.number < 3, **FAST)
    assert alone.epochs == epochs
    assert (alone.validation_loss, alone.validation_accuracy, alone.best_epoch) == (None, None, 3)
