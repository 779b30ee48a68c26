"""Acting is reproduced: what a runner collected is what `evaluate_actions` computes again, without an update."""

import numpy as np

from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.ppo.rollout import cut_sequences

ROLLOUTS = 2


def assert_reproduced(policy, envs, num_steps, sequence_length, sde_sample_freq=None, rollouts=ROLLOUTS):
    """Collects rollouts, between which weights and statistics change as in an update, and returns them with sequences.

    All probabilities and values are the same, so the ratio of PPO is 1.
    """
    runner = RolloutRunner(policy, envs, num_steps, sequence_length, 0, sde_sample_freq)
    collected = []
    for _ in range(rollouts):
        rollout = runner.run()
        unused = np.zeros_like(rollout.values)
        sequences = cut_sequences(rollout, unused, unused, sequence_length)
        log_probs, entropies, values = evaluated(policy, sequences)
        np.testing.assert_allclose(log_probs, sequences.log_probs, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(values, sequences.values, atol=1e-5, rtol=1e-5)
        assert np.isfinite(entropies).all()
        collected.append((rollout, sequences))
        for variable in policy.trainable_variables:
            variable.assign(0.95 * variable)
        policy.update_statistics(rollout.observations, rollout.valid)
    return collected


def evaluated(policy, sequences, actions=None):
    """Log-probabilities, entropies and values of sequences; `actions` in place of theirs if given."""
    given = {} if sequences.action_masks is None else {"action_masks": sequences.action_masks}
    if policy.previous_reward:
        given["rewards"] = sequences.rewards
    actions = sequences.actions if actions is None else actions
    return policy.evaluate_actions(sequences.observations, actions, sequences.state, sequences.episode_starts, **given)
