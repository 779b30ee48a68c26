"""With its recurrent state, the policy solves a task that it provably cannot solve without."""

import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import PPO, evaluate_policy
from rl_lnlstm.envs import make_vec
from rl_lnlstm.policies import MlpLnLstmPolicy


class Memoryless(MlpLnLstmPolicy):
    """The same policy, which takes every observation for an episode's first one: its state is always reset."""

    def step(self, observations, state, episode_starts, *masks):
        return super().step(observations, state, np.ones_like(episode_starts), *masks)

    def value(self, observations, state, episode_starts):
        return super().value(observations, state, np.ones_like(episode_starts))

    def evaluate_actions(self, observations, actions, state, episode_starts, *rest, **named):
        starts = tf.ones_like(episode_starts)
        return super().evaluate_actions(observations, actions, state, starts, *rest, **named)

    def predict(self, observation, state=None, episode_start=None, *rest, **named):
        return super().predict(observation, None, None, *rest, **named)


TASKS = {  # arguments of the task, what training needs, best return, chance
    "TMaze-v0": ({"corridor_length": 3}, {"ent_coef": 0.01}, 1.0, 0.0),
    "RepeatPrevious-v0": (
        {"delay": 1, "num_symbols": 3, "episode_length": 9},
        {"gamma": 0.0, "update_epochs": 10},
        1.0,
        1 / 3,
    ),
}


@pytest.mark.many_cases
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("policy_class", [MlpLnLstmPolicy, Memoryless])
def test_memory_tasks_need_the_state(task, policy_class):
    env_kwargs, options, best, chance = TASKS[task]
    envs = make_vec(task, 16, vectorization="vector_entry_point", env_kwargs=env_kwargs)
    policy = policy_class(envs.single_observation_space, envs.single_action_space, units=32, seed=0)
    ppo = PPO(policy, envs, num_steps=32, learning_rate=3e-3, seed=0, jit_compile=False, **options)
    ppo.learn(20_000)
    mean, _ = evaluate_policy(policy, envs, 200, deterministic=False, seed=1)
    if policy_class is Memoryless:
        assert mean < chance + 0.15 * (best - chance)
    else:
        assert mean > 0.95 * best
