"""Evaluation during training keeps the best policy, and does not change the training."""

import numpy as np
import pytest

from rl_lnlstm import PPO, UserError, evaluate, load_policy
from rl_lnlstm.envs import make_vec

SMALL = {
    **{"num_envs": 2, "num_steps": 32, "num_minibatches": 1, "units": 8, "jit_compile": False, "seed": 0},
    **{"shared_lstm": True, "head_layers": ()},  # fewer weights, so that tracing takes less time
}


def train(**config):
    ppo = PPO("MlpLnLstmPolicy", "CartPole-v1", **SMALL, learning_rate=0.01, **config)
    seen = []
    ppo.learn(64 * 9, lambda metrics: seen.append((metrics, ppo.policy.get_weights())))
    return ppo, seen


def test_the_policy_that_evaluated_best_is_kept(tmp_path):
    ppo, seen = train(eval_interval=2, n_eval_episodes=3)
    scores = [metrics.get("eval/mean_reward") for metrics, _ in seen]
    evaluated = [i for i in range(len(seen)) if i % 2 == 1 or i == len(seen) - 1]
    assert [i for i, score in enumerate(scores) if score is not None] == evaluated, "only where it evaluated"
    best = max(evaluated, key=lambda i: (scores[i], i))
    assert len({scores[i] for i in evaluated}) > 1  # or there was nothing to choose
    for one, other in zip(ppo.policy.get_weights(), seen[-1][1], strict=True):
        np.testing.assert_array_equal(one, other, "training goes on with the weights of the last iteration")
    with ppo.best_weights():
        kept = ppo.policy.get_weights()
    last, chosen = (evaluate(policy, "CartPole-v1", 5, seed=0).returns for policy in (ppo.policy, ppo.best_policy))
    assert evaluate(ppo, "CartPole-v1", 5, seed=0).returns == chosen != last
    ppo.save(tmp_path / "best")
    for weights in (kept, load_policy(tmp_path / "best").get_weights()):
        for one, other in zip(weights, seen[best][1], strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_best_policy_is_a_copy():
    ppo, _ = train(eval_interval=4, n_eval_episodes=1)
    with ppo.best_weights():
        expected = [weights.copy() for weights in ppo.policy.get_weights()]
    best = ppo.best_policy
    assert best is not ppo.policy
    ppo.policy.set_weights([np.zeros_like(weights) for weights in expected])
    for one, other in zip(best.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert ppo.best_policy is best


def test_evaluating_does_not_change_training():
    _, plain = train()
    _, evaluated = train(eval_interval=3, n_eval_episodes=2)
    for (metrics, weights), (others, same) in zip(plain, evaluated, strict=True):
        assert "eval/mean_reward" not in metrics
        assert metrics["train/loss"] == others["train/loss"]
        for one, other in zip(weights, same, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_vector_env_cannot_be_made_again():
    with pytest.raises(UserError, match=r"eval_interval is 5.*got a VectorEnv"):
        PPO("MlpLnLstmPolicy", make_vec("CartPole-v1", 2), **SMALL, eval_interval=5)


@pytest.mark.parametrize(("option", "value"), [("eval_interval", -1), ("eval_interval", 1.5), ("n_eval_episodes", 0)])
def test_options_out_of_range(option, value):
    with pytest.raises(UserError, match=f"{option} must be"):
        PPO("MlpLnLstmPolicy", "CartPole-v1", **{option: value})
