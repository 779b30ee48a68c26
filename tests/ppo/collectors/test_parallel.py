"""Workers collect the rollouts of one process, bit for bit, whatever happens to them.

The workers run in this process here (`in_process`); `test_ray.py` runs them on Ray.
"""

import functools
import threading

import gymnasium as gym
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import SyncVectorEnv

from rl_lnlstm import PPO, EnvironmentFailure, UserError, WorkerFailure, version
from rl_lnlstm.config import make_config
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.lstm import kernel
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy
from rl_lnlstm.ppo import trainer
from rl_lnlstm.ppo.collectors import crew
from rl_lnlstm.ppo.collectors.local import LocalCollector
from rl_lnlstm.ppo.collectors.parallel import ParallelCollector
from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.seeding import derived_seed
from tests.failing_env import FailingEnv, Failure
from tests.picture_env import Picture
from tests.policies.card_env import CardEnv
from tests.ppo.collectors.in_process import InProcess

NETWORK = {"units": 4, "shared_lstm": True, "head_layers": (), "encoder_layers": ()}
SMALL = {**NETWORK, "num_envs": 4, "num_steps": 8, "seed": 3}
ITERATIONS = 5


class Short(gym.Wrapper):
    """Is truncated early, and tells a number then."""

    def __init__(self, env, limit=3):
        super().__init__(env)
        self.limit = limit

    def reset(self, **options):
        self.count = 0
        return self.env.reset(**options)

    def step(self, action):
        self.count += 1
        observation, reward, terminated, _, info = self.env.step(action)
        return observation, reward, terminated, self.count == self.limit, {**info, "is_success": self.count}


def short():
    return Short(CartPoleEnv())


def failing():
    return FailingEnv({derived_seed(SMALL["seed"], "environments", 2): Failure("raise", 4, 2)})


KINDS = {
    "discrete": (short, {"info_keys": ("is_success",)}),
    "continuous": (lambda: Short(PendulumEnv(), 5), {"sequence_length": 4}),
    "masks": (lambda: CardEnv("info"), {}),
    "vector": ("TMaze-v0", {}),
    "images": (lambda: Picture(short(), 36), {}),
    "failures": (failing, {}),
    "a graph": (lambda: Short(PendulumEnv(), 5), {"std": "gsde", "sde_sample_freq": 3, "previous_reward": True}),
    "a graph with masks": (lambda: CardEnv("info", nvec=[2, 3]), {"num_layers": 2}),
}


def made(env, workers=None, faults=None, **config):
    config = make_config(**{**SMALL, **config})
    return (
        LocalCollector(env, config) if workers is None else ParallelCollector(env, config, InProcess(faults), workers)
    )


POLICIES = {}  # by their spaces: making one takes a second


def policy_for(collector, **options):
    spaces = collector.single_observation_space, collector.single_action_space
    key = str((spaces, options))
    if key not in POLICIES:
        kind = CnnLnLstmPolicy if spaces[0].dtype == np.uint8 else MlpLnLstmPolicy
        POLICIES[key] = kind(*spaces, seed=1, **{**NETWORK, **options})
    return POLICIES[key]


def begun(collector, **options):
    policy = policy_for(collector, **options)
    policy.set_weights([np.full_like(part, 0.1) for part in policy.get_weights()])
    collector.begin(policy)
    return policy


def collected(collector, policy, iterations=range(ITERATIONS), then=lambda iteration: None):
    """Rollouts, each with other weights, as bytes."""
    rollouts = []
    for iteration in iterations:
        rng = np.random.default_rng(iteration)
        policy.set_weights([rng.normal(0, 0.5, part.shape) for part in policy.get_weights()])
        rollout = collector.collect()
        parts = tf.nest.flatten(rollout._replace(episodes=[], episode_steps=()))
        arrays = [(part.dtype, part.shape, part.tobytes()) for part in parts if part is not None]
        rollouts.append((arrays, rollout.episodes, rollout.episode_steps, collector.failures))
        then(iteration)
    return rollouts


def run(env, workers=None, faults=None, then=lambda iteration: None, **config):
    collector = made(env, workers, faults, **config)
    network = {name: config[name] for name in ("std", "previous_reward", "num_layers") if name in config}
    rollouts = collected(collector, begun(collector, **network), then=then)
    collector.close()
    return rollouts


@functools.cache
def alone(kind):
    env, config = KINDS[kind]
    return run(env, **config)


@pytest.mark.parametrize("kind", KINDS)
def test_workers_collect_the_rollouts_of_one_process(kind):
    if kind == "images" and not kernel.available():
        pytest.skip("without the kernel, convolutions round differently for another number of images")
    env, config = KINDS[kind]
    assert run(env, 2, **config) == alone(kind)
    assert sum(len(episodes) for _, episodes, *_ in alone(kind)) > 2
    if kind in ("discrete", "a graph"):
        assert run(env, 4, **config) == run(env, 1, **config) == alone(kind)
    if kind == "failures":
        assert [failures for *_, failures in alone(kind)] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("fault", ["dies before", "dies after", "freezes"])
def test_a_lost_worker_is_replaced_and_nothing_changes(fault, monkeypatch):
    monkeypatch.setattr(crew, "START_SECONDS", 0.1)
    env, config = KINDS["discrete"]
    # The first rollout has no state before it. In the third iteration, both are lost, and one of them twice.
    faults = dict.fromkeys([(0, 0), (2, 2), (0, 3), (0, 4)], fault)
    collector = made(env, 2, faults, worker_timeout=0.1 if fault == "freezes" else None, **config)
    transport = collector._transport
    assert collected(collector, begun(collector)) == alone("discrete")
    assert (transport.started, len(transport.alive)) == (2 + len(faults), 2)
    collector.close()
    assert transport.closed


class WithoutNoise(MlpLnLstmPolicy):
    def step(self, observations, state, episode_starts, action_masks=None):
        return super().step(observations, state, episode_starts, action_masks)


def test_a_step_without_noise_is_refused_where_workers_would_explore_alike():
    config = make_config(env_id="CartPole-v1", **SMALL)
    policy = WithoutNoise(CartPoleEnv().observation_space, CartPoleEnv().action_space, units=4)
    with pytest.raises(UserError, match="step of WithoutNoise takes no noise"):
        LocalCollector("CartPole-v1", config, Share(0, 2, 4)).begin(policy)
    LocalCollector("CartPole-v1", config).begin(policy)


def test_a_worker_moves_to_a_better_place_and_nothing_changes():
    env, config = KINDS["discrete"]
    collector = made(env, 2, **config)

    def notice(iteration):
        if iteration == 2:
            collector._transport.badly_placed = 2

    assert collected(collector, begun(collector), then=notice) == alone("discrete")
    assert collector._transport.started == 3


def test_too_many_lost_workers_in_a_row_end_the_run():
    env, config = KINDS["discrete"]
    often = [(2, 1), (2, 2), (2, 3), (2, 5)]
    with pytest.raises(
        WorkerFailure,
        match=r"worker 1 \(environments 2 to 3\) was lost.*failure number 3 in a row.*max_worker_failures=2",
    ):
        run(env, 2, dict.fromkeys(often, "dies before"), max_worker_failures=2, **config)
    del often[2]  # an iteration in between, in which all answer
    assert run(env, 2, dict.fromkeys(often, "dies before"), max_worker_failures=2, **config) == alone("discrete")


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [("discrete", None, 2), ("discrete", 2, None), ("discrete", 4, 2), ("vector", 2, 2), ("vector", None, 1)],
)
def test_a_state_goes_on_with_another_number_of_workers(kind, first, second):
    """Vector implementations cannot be divided, but go on with the same number."""
    env, config = KINDS[kind]
    one, other = made(env, first, **config), made(env, second, **config)
    before = collected(one, begun(one), range(2))
    begun(other)
    assert other.set_state(one.get_state(), one.take_snapshot()) is None
    assert [*before, *collected(other, policy_for(other), range(2, ITERATIONS))] == alone(kind)


@pytest.mark.parametrize("workers", [None, 2])
def test_a_state_of_another_number_of_environments_cannot_be_restored(workers):
    one, other = made(failing, 2), made(failing, workers, num_envs=6)
    collected(one, begun(one))
    begun(other)
    assert other.set_state(one.get_state(), one.take_snapshot()) == (
        "the checkpoint has 4 environments, this trainer 6"
    )
    got, saved = (collector.get_state()["runner"]["generators"] for collector in (other, one))
    assert got[:4] == saved
    assert other.failures == 1


@pytest.mark.parametrize("first", [None, 1])
def test_the_snapshot_of_a_vector_environment_cannot_be_divided(first):
    one, other = made("TMaze-v0", first), made("TMaze-v0", 2)
    for collector in (one, other):
        begun(collector)
    assert "need the same number of workers" in other.set_state(one.get_state(), one.take_snapshot())


class Locked(CartPoleEnv):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_a_lost_worker_whose_environments_cannot_be_pickled_begins_new_episodes():
    collector = made(lambda: Locked(), 2, {(2, 2): "dies before"})
    with pytest.warns(RunWarning, match=r"a new worker begins new episodes in environments 2 to 3: .*lock"):
        rollouts = collected(collector, begun(collector))
    assert len(rollouts) == ITERATIONS
    with pytest.raises(ValueError, match="lock"):
        collector.take_snapshot()


def test_errors_keep_their_type_and_name_the_environment(caplog):
    collector = made(failing, 2, max_env_failures=0)
    with pytest.raises(EnvironmentFailure, match=r"environment 2 in 0\.\.3\) raised ZeroDivisionError") as raised:
        collected(collector, begun(collector))
    assert "failing_env.py" in str(raised.value.__cause__)
    assert collector._transport.started == 2, "an error is not a lost worker"


def test_what_a_worker_logs_reaches_the_training_process(caplog):
    run(failing, 2)
    assert any("environment 2 in 0..3" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("env", "config", "message"),
    [
        ("CartPole-v1", {"ray": "nowhere"}, "ray must be local, auto or HOST:PORT.*'nowhere'"),
        ("CartPole-v1", {"ray": "local", "workers": 3}, "workers must divide num_envs.*workers=3 and num_envs=4"),
        ("CartPole-v1", {"workers": 2}, "workers is 2, which needs Ray"),
        (CartPoleEnv, {"ray": "local"}, "expected env to be an id or a function.*an environment object"),
        (lambda: SyncVectorEnv([CartPoleEnv]), {"ray": "local"}, "expected env to be an id.*a VectorEnv"),
    ],
    ids=["address", "divisor", "no Ray", "environment object", "VectorEnv"],
)
def test_mistakes_are_named(env, config, message):
    num_envs = 4 if isinstance(env, str) else 1
    with pytest.raises(UserError, match=message):
        PPO("auto", env if isinstance(env, str) else env(), **{**SMALL, "num_envs": num_envs, **config})


def test_what_cannot_be_sent_to_workers_is_named():
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"the environment cannot be sent to workers, TypeError.*lock"):
        made(lambda: lock and CartPoleEnv(), 2)


def test_workers_of_another_version_are_refused(monkeypatch):
    transport = InProcess()
    submit = transport.submit

    def elsewhere(*arguments):
        monkeypatch.undo()
        return submit(*arguments)

    monkeypatch.setattr(version, "__version__", "99")
    transport.submit = elsewhere
    with pytest.raises(UserError, match=r"other versions than the training process: rl_lnlstm 0\.\S+ instead of 99"):
        ParallelCollector(CartPoleEnv, make_config(**SMALL), transport, 2)


def test_environments_with_a_common_generator_are_stepped_one_by_one():
    """Otherwise, the run would depend on the number of workers."""
    with pytest.warns(RunWarning, match="one random generator for all its environments"):
        got = run("CartPole-v1", 2)
    assert got == run("CartPole-v1", vectorization="sync")


def test_a_vector_implementation_stays_if_single_environments_cannot_be_made(request):
    class Limited(CartPoleVectorEnv):
        def __init__(self, num_envs, limit=9):
            super().__init__(num_envs, limit)

    gym.register("OnlyVector-v0", CartPoleEnv, vector_entry_point=Limited)
    request.addfinalizer(lambda: gym.registry.pop("OnlyVector-v0"))
    config = make_config(**SMALL, env_kwargs={"limit": 5})
    collector = ParallelCollector("OnlyVector-v0", config, InProcess(), 2)
    assert collector.single_observation_space == CartPoleEnv().observation_space
    collector.close()


def test_a_run_with_workers_is_the_run_in_one_process(monkeypatch, tmp_path):
    """Weights and metrics; and so is one that goes on from a checkpoint in this process."""
    config = {**SMALL, "num_minibatches": 1, "update_epochs": 1, "jit_compile": False}
    config |= {"normalize_observations": True, "normalize_rewards": True}

    def trained(checkpoint=None, save=False):
        seen = []

        def record(metrics):
            seen.append({name: repr(value) for name, value in metrics.items() if not name.startswith("time/")})
            if save and ppo.iteration == 2:
                ppo.save_checkpoint(tmp_path / "checkpoint")

        with PPO("auto", lambda: CardEnv("info"), **config) as ppo:
            if checkpoint:
                ppo.load_checkpoint(checkpoint)
            ppo.learn(None if checkpoint else 4 * 4 * 8, record)
            assert ppo.policy.uses_action_masks
            return [part.tobytes() for part in ppo.policy.get_weights()], seen

    expected = trained()
    with monkeypatch.context() as patched:
        patched.setattr(trainer, "make_collector", lambda env, config: ParallelCollector(env, config, InProcess(), 2))
        assert trained(save=True) == expected
        with (
            pytest.raises(UserError, match="the training environments are in the workers"),
            PPO("auto", lambda: CardEnv("info"), **config) as ppo,
        ):
            ppo.envs  # noqa: B018
    assert trained(tmp_path / "checkpoint") == (expected[0], expected[1][2:])
