"""Seeds for different purposes, and of neighbouring runs, are independent."""

import itertools

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import PPO
from rl_lnlstm.seeding import PURPOSES, derived_seed

SMALL = {"num_envs": 3, "num_steps": 8, "num_minibatches": 1, "units": 2, "jit_compile": False}


def test_seeds_are_reproducible_and_all_different():
    seeds = [
        derived_seed(seed, purpose, *numbers)
        for seed, purpose in itertools.product(range(20), PURPOSES)
        for numbers in [(), *((i,) for i in range(16)), *((i, j) for i in range(4) for j in range(4))]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert derived_seed(3, "policy", 1) == derived_seed(3, "policy", 1)


class Notes(gym.Env):
    """Observes a random number that tells where its generator started."""

    observation_space, action_space = gym.spaces.Box(0, 1, (1,), np.float64), gym.spaces.Discrete(2)
    seen: list = []  # noqa: RUF012

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.seen.append(float(self.np_random.random()))
        return np.array([self.seen[-1]]), {}

    def step(self, action):
        self.t += 1
        return np.zeros(1), 0.0, self.t == 3, False, {}


def starts_of(seed):
    """What training, selection and evaluation of a run started from."""
    Notes.seen = []
    ppo = PPO("auto", Notes, seed=seed, eval_interval=2, n_eval_episodes=4, **SMALL)
    ppo.learn(72)
    during, Notes.seen = set(Notes.seen), []
    ppo.evaluate(6)
    return during, set(Notes.seen)


@pytest.mark.slow
def test_runs_of_neighbouring_seeds_share_no_start():
    everything = [starts for seed in range(4) for starts in starts_of(seed)]
    assert all(len(starts) >= 6 for starts in everything)
    for one, other in itertools.combinations(everything, 2):
        assert not one & other
    assert starts_of(2) == (everything[4], everything[5])
