"""A run with workers is the run in one process, bit for bit, whatever happens to the workers.

The workers run in this process here (`in_process`); `test_ray.py` runs them on Ray.
"""

import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.vector import SyncVectorEnv

import rl_lnlstm
from rl_lnlstm import PPO, EnvironmentFailure, UserError, WorkerFailure
from rl_lnlstm.config import make_config
from rl_lnlstm.errors import RunWarning
from rl_lnlstm.lstm import kernel
from rl_lnlstm.ppo import trainer
from rl_lnlstm.ppo.collectors import crew
from rl_lnlstm.ppo.collectors.make import make_collector
from rl_lnlstm.ppo.collectors.parallel import ParallelCollector
from rl_lnlstm.seeding import derived_seed
from tests.failing_env import FailingEnv, Failure
from tests.policies.card_env import CardEnv
from tests.ppo.collectors.in_process import InProcess

FRAMES = 5 * 4 * 8
SMALL = {
    **{"num_envs": 4, "num_steps": 8, "num_minibatches": 1, "update_epochs": 1, "units": 4, "seed": 3},
    **{"shared_lstm": True, "head_layers": (), "encoder_layers": (), "jit_compile": False},
}
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}


class Short(gym.Wrapper):
    """Ends early, and tells a number at the end."""

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


def failing():
    fails = {derived_seed(SMALL["seed"], "environments", 2): Failure("raise", 4, 2)}
    return FailingEnv(fails)


KINDS = {
    "discrete": (lambda: Short(CartPoleEnv()), {**NORMALIZED, "info_keys": ("is_success",)}),
    "continuous": (lambda: Short(PendulumEnv(), 5), {"shared_lstm": False, "sequence_length": 4}),
    "masks": (lambda: CardEnv("info"), {}),
    "vector": ("TMaze-v0", {}),
    "failures": (failing, NORMALIZED),
}


@pytest.fixture
def run(monkeypatch):
    """A function that trains with workers, or in this process, and returns weights and metrics."""

    def trained(env, workers=None, faults=None, before=None, then=None, **config):
        if workers is not None:

            def with_workers(env, config):
                transport = InProcess(faults)
                trained.transports.append(transport)
                return ParallelCollector(env, config, transport, workers)

            monkeypatch.setattr(trainer, "make_collector", with_workers)
        seen = []
        with PPO("auto", env, **{**SMALL, **config}) as ppo:
            monkeypatch.setattr(trainer, "make_collector", make_collector)
            if before is not None:
                before(ppo)
            ppo.learn(None if before else FRAMES, lambda m: seen.append(m) or (then and then(ppo)))
            weights = ppo.policy.get_weights()
        untimed = [{name: repr(m[name]) for name in m if not name.startswith("time/")} for m in seen]
        return [part.tobytes() for part in weights], untimed

    trained.transports = []
    return trained


@pytest.mark.skipif(not kernel.available(), reason="graphs round differently for other numbers of environments")
@pytest.mark.parametrize("kind", KINDS)
def test_workers_make_the_run_of_one_process(kind, run):
    env, config = KINDS[kind]
    alone = run(env, **config)
    assert len(alone[1]) >= 5
    assert run(env, 2, **config) == alone
    if kind == "discrete":
        assert run(env, 4, **config) == run(env, 1, **config) == alone
    if kind == "failures":
        assert float(alone[1][-1]["rollout/env_failures"]) == 1


@pytest.mark.parametrize("fault", ["dies before", "dies after", "freezes"])
def test_a_lost_worker_is_replaced_and_nothing_changes(fault, run, monkeypatch):
    monkeypatch.setattr(crew, "START_SECONDS", 600)
    env, config = KINDS["discrete"]
    config = {**config, "worker_timeout": 0.5 if fault == "freezes" else 600}
    alone = run(env, **config)
    # The first call is one without a state; in the third iteration, both are lost, and one of them twice.
    faults = dict.fromkeys([(0, 0), (2, 2), (0, 3), (0, 4)], fault)
    assert run(env, 2, faults, **config) == alone
    assert run.transports[-1].started == 2 + len(faults)
    assert run.transports[-1].closed


def test_a_worker_moves_to_a_better_place_and_nothing_changes(run):
    env, config = KINDS["discrete"]

    def notice(ppo):
        if ppo.iteration == 2:
            run.transports[-1].badly_placed = 2

    assert run(env, 2, then=notice, **config) == run(env, **config)
    assert run.transports[-1].started == 3


def test_too_many_lost_workers_in_a_row_end_the_run(run):
    env, config = KINDS["discrete"]
    often = dict.fromkeys([(2, 1), (2, 2), (2, 3), (2, 5)], "dies before")
    with pytest.raises(
        WorkerFailure,
        match=r"worker 1 \(environments 2 to 3\) was lost.*failure number 3 in a row.*max_worker_failures=2",
    ):
        run(env, 2, often, max_worker_failures=2, **config)
    del often[2, 3]
    run(env, 2, often, max_worker_failures=2, **config)


@pytest.mark.parametrize(("first", "second"), [(None, 2), (2, None), (4, 2)])
def test_a_checkpoint_goes_on_with_another_number_of_workers(first, second, run, tmp_path):
    env, config = KINDS["discrete"]

    def save(ppo):
        if ppo.iteration == 2:
            ppo.save_checkpoint(tmp_path / "checkpoint")

    whole, seen = run(env, first, then=save, **config)
    resumed = run(env, second, before=lambda ppo: ppo.load_checkpoint(tmp_path / "checkpoint"), **config)
    assert resumed == (whole, seen[2:])


@pytest.mark.parametrize("workers", [None, 2])
def test_a_checkpoint_of_another_number_of_environments_begins_new_episodes(workers, run, tmp_path):
    env, config = KINDS["discrete"]
    run(env, 2, then=lambda ppo: ppo.save_checkpoint(tmp_path / "checkpoint"), **config)
    with pytest.warns(RunWarning, match="the checkpoint has 4 environments, this trainer 6"):
        _, seen = run(
            env,
            workers,
            before=lambda ppo: ppo.load_checkpoint(tmp_path / "checkpoint", 2 * FRAMES),
            **config,
            num_envs=6,
        )
    assert seen


class Locked(CartPoleEnv):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_a_lost_worker_whose_environments_cannot_be_pickled_begins_new_episodes(run):
    with pytest.warns(RunWarning, match=r"a new worker begins new episodes in environments 2 to 3: .*lock"):
        _, seen = run(lambda: Locked(), 2, {(2, 2): "dies before"})
    assert len(seen) >= 5


def test_errors_keep_their_type_and_name_the_environment(run):
    with pytest.raises(EnvironmentFailure, match=r"environment 2 in 0\.\.3\).*failure number 1 in a row") as raised:
        run(failing, 2, max_env_failures=0)
    assert "failing_env.py" in str(raised.value.__cause__)
    assert run.transports[-1].started == 2, "an error is not a lost worker"


def test_what_an_environment_logs_reaches_the_training_process(run, caplog):
    run(failing, 2)
    assert any("environment 2 in 0..3" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    ("env", "config", "message"),
    [
        ("CartPole-v1", {"ray": "nowhere"}, "ray must be local, auto or HOST:PORT.*'nowhere'"),
        ("CartPole-v1", {"ray": "local", "workers": 3}, "workers must divide num_envs.*workers=3 and num_envs=4"),
        ("CartPole-v1", {"workers": 2}, "workers is 2, which needs Ray"),
        (CartPoleEnv(), {"ray": "local"}, "expected env to be an id or a function.*an environment object"),
        (SyncVectorEnv([CartPoleEnv] * 4), {"ray": "local"}, "expected env to be an id.*a VectorEnv"),
    ],
    ids=["address", "divisor", "no Ray", "environment object", "VectorEnv"],
)
def test_mistakes_are_named(env, config, message):
    given = {**SMALL, **config}
    if isinstance(env, gym.Env):
        given["num_envs"] = 1
    with pytest.raises(UserError, match=message):
        PPO("auto", env, **given)


def test_what_cannot_be_sent_to_workers_is_named():
    lock = threading.Lock()
    with pytest.raises(UserError, match=r"the environment cannot be sent to workers, TypeError.*lock"):
        ParallelCollector(lambda: lock and CartPoleEnv(), make_config(**SMALL), InProcess(), 2)


def test_workers_of_another_version_are_refused(monkeypatch):
    transport = InProcess()
    monkeypatch.setattr(rl_lnlstm, "__version__", "99")
    submit = transport.submit

    def elsewhere(*arguments):
        monkeypatch.undo()
        return submit(*arguments)

    transport.submit = elsewhere
    with pytest.raises(UserError, match=r"other versions than the training process: rl_lnlstm 0\.\S+ instead of 99"):
        ParallelCollector(CartPoleEnv, make_config(**SMALL), transport, 2)


def test_the_environments_are_elsewhere(run):
    with pytest.raises(UserError, match="the training environments are in the workers"):
        run("TMaze-v0", 2, then=lambda ppo: ppo.envs)


def test_environments_with_a_common_generator_are_stepped_one_by_one(run):
    """Otherwise, the run would depend on the number of workers."""
    with pytest.warns(RunWarning, match="CartPole-v1 has one random generator for all"):
        got = run("CartPole-v1", 2)
    assert got == run("CartPole-v1", vectorization="sync")


def test_rollouts_hold_arrays_that_can_be_changed(run):
    env, _ = KINDS["discrete"]
    collector = ParallelCollector(env, make_config(**SMALL), InProcess(), 2)
    spaces = collector.single_observation_space, collector.single_action_space
    collector.begin(rl_lnlstm.policies.MlpLnLstmPolicy(*spaces, units=4, head_layers=()))
    rollout = collector.collect()
    assert rollout.rewards.flags.writeable
    assert isinstance(rollout.rewards, np.ndarray)
    assert [(t, e.environment) for t, e in zip(rollout.episode_steps, rollout.episodes, strict=True)] == sorted(
        (t, e.environment) for t, e in zip(rollout.episode_steps, rollout.episodes, strict=True)
    )
    assert len(rollout.episodes) == 8
