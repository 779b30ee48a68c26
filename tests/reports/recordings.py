"""Policies with random weights, and episodes that they acted in."""

import functools

from rl_lnlstm import record_episodes
from rl_lnlstm.policies.factory import policy_for
from tests.any_space import AnyEnv
from tests.policies.reference import randomise


def policy(observation_space, action_space, **options):
    made = policy_for(observation_space)(observation_space, action_space, units=4, seed=0, **options)
    return randomise(made, scale=0.5)


def environment(policy, length=6):
    return functools.partial(AnyEnv, policy.observation_space, policy.action_space, length)


def recorded(policy, length=6, **options):
    (episode,) = record_episodes(policy, environment(policy, length), 1, seed=0, **options)
    return episode
