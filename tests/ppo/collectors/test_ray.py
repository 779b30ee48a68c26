"""Workers on Ray: the same run as in one process, whatever dies; and nothing is left behind."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

from rl_lnlstm import PPO, EnvironmentFailure, UserError

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::FutureWarning")]

SMALL = {
    **{"num_envs": 4, "num_steps": 16, "num_minibatches": 1, "update_epochs": 1, "units": 8, "seed": 3},
    **{"head_layers": (), "encoder_layers": (), "jit_compile": False, "normalize_observations": True},
}
ITERATIONS = 6
ENV = "CartPoleNoVel-v1"


class Slow(gym.Wrapper):
    """Takes its time, so that a worker is hurt while it collects."""

    def step(self, action):
        time.sleep(0.003)
        return self.env.step(action)


def slow():
    return Slow(gym.make(ENV))


@functools.cache
def alone():
    return trained()


def trained(env=slow, each=lambda ppo: None, **config):
    seen = []
    with PPO("auto", env, **{**SMALL, **config}) as ppo:
        ppo.learn(ITERATIONS * ppo.config.num_envs * 16 - 1, lambda metrics: each(ppo) or seen.append(metrics))
        weights = ppo.policy.get_weights()
    untimed = [{name: repr(m[name]) for name in m if not name.startswith("time/")} for m in seen]
    return [part.tobytes() for part in weights], untimed


def processes(word):
    """The numbers of the processes whose command line has this word."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if word in command:
                found.add(int(folder.name))
    return found


def folder_of(ppo):
    """The folder of the local cluster. It is in the command line of each of its processes, other than workers."""
    return ppo._collector._transport._cluster._folder.path


def worker_processes(ppo):
    return [ray.get(worker.where)[1] for worker in ppo._collector._transport._actors]


def gone(pids, seconds=30):
    """Whether all these processes have ended, or soon do."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.2)
    return False


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wounds(how, worker):
    """A callback that hurts a worker in the middle of the third iteration."""

    def each(ppo):
        if ppo.iteration == 2:
            pid = worker_processes(ppo)[worker]
            threading.Timer(0.05, os.kill, (pid, how)).start()

    return each


@pytest.mark.parametrize("workers", [1, 4])
def test_local_workers_make_the_run_of_one_process(workers):
    assert trained(ray="local", workers=workers) == alone()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_a_lost_worker_changes_nothing(how):
    assert trained(ray="local", workers=2, worker_timeout=8, each=wounds(how, 1)) == alone()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster():
    """A cluster of three nodes, all on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.more = [made.add_node(num_cpus=1) for _ in range(2)]
    yield made
    made.shutdown()


def test_a_removed_node_changes_nothing_and_a_new_one_is_used(cluster):
    nodes = []

    def each(ppo):
        nodes.append({ray.get(worker.where)[0] for worker in ppo._collector._transport._actors})
        if ppo.iteration == 2:
            cluster.remove_node(cluster.more.pop(), allow_graceful=False)
        if ppo.iteration == 4:
            cluster.more.append(cluster.add_node(num_cpus=1))

    # There is a CPU for each worker. On two nodes, two workers share one.
    config = {"num_envs": 6, "ray": cluster.address, "workers": 3}
    assert trained(each=each, **config) == trained(num_envs=6)
    assert [len(found) for found in (nodes[1], nodes[3], nodes[5])] == [3, 2, 3]
    assert nodes[5] - nodes[1], "the new node is used"


def test_a_cluster_is_joined_by_its_address_only(cluster):
    folders = set()
    assert trained(ray="local", workers=2, each=lambda ppo: folders.add(folder_of(ppo))) == alone()
    (folder,) = folders
    assert not processes(folder)
    assert not Path(folder).exists()
    with pytest.raises(UserError, match=r"workers is 4, but the cluster \S+ has 3 CPUs: give at most 3 workers"):
        PPO("auto", ENV, **SMALL, ray=cluster.address, workers=4)
    assert not ray.is_initialized()


class Broken(CartPoleEnv):
    def step(self, action):
        raise RuntimeError("it is broken")


def test_errors_keep_their_type_and_name_the_environment():
    with pytest.raises(EnvironmentFailure, match=r"environment 0 in 0\.\.3\).*it is broken"):
        trained(Broken, ray="local", workers=2, max_env_failures=0)
    with pytest.raises(UserError, match="env_kwargs"):
        trained("CartPoleNoVel-v1", env_kwargs={"color": "red"}, ray="local", workers=2)
    assert not ray.is_initialized()


def test_addresses_that_do_not_answer_are_named():
    with pytest.raises(UserError, match=r"nothing answers at 127\.0\.0\.1:1 .*ray start --head"):
        PPO("auto", ENV, **SMALL, ray="127.0.0.1:1")
    with pytest.raises(UserError, match=r"workers is 1000.*this machine has .* CPUs: give at most"):
        PPO("auto", ENV, **{**SMALL, "num_envs": 1000}, ray="local", workers=1000)
    assert not ray.is_initialized()


SCRIPT = """
import gymnasium as gym
from rl_lnlstm import PPO
from tests.ppo.collectors.test_ray import SMALL, folder_of, worker_processes

class Mine(gym.Wrapper):
    pass

def tell(metrics):
    if ppo.iteration == 2:
        print(folder_of(ppo), *worker_processes(ppo), flush=True)

if __name__ == "__main__":
    with PPO("auto", lambda: Mine(gym.make("CartPole-v1")), **SMALL, ray="local", workers=2) as ppo:
        ppo.learn(100_000_000, tell)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_is_left_when_the_training_process_ends(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        folder, *workers = process.stdout.readline().split()
        started = processes(folder) | {int(pid) for pid in workers}
        assert len(started) > 4, "workers, raylet, store of the cluster's state, monitors"
        process.send_signal(how)
        process.wait(60)
    finally:
        process.kill()
    assert gone(started)
    assert how is not signal.SIGINT or not Path(folder).exists(), "of the others, the logs are left"
    shutil.rmtree(folder, ignore_errors=True)
