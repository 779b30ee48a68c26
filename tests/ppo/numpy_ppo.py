"""Recurrent PPO in float64 NumPy, an independent reference."""

import numpy as np

from tests.policies import reference
from tests.ppo.tiny_ppo import LOSSES
from tests.reference import central_differences


class NumpyPPO:
    """Recurrent PPO as in the papers, with full batches. Invalid transitions are removed instead of weighted with 0."""

    def __init__(self, ppo):
        self.policy, self.config = ppo.policy, ppo.config
        self.moment, self.square, self.steps = 0.0, 0.0, 0  # Adam's
        self.running, self.sums = np.zeros(ppo.config.num_envs), []  # discounted sums of rewards, and all so far
        self.gradient_norms = []

    def flat_weights(self):
        """The current weights of the policy, in one float64 vector."""
        return np.concatenate([weights.ravel() for weights in reference.weights_of(self.policy).values()])

    def unflat(self, flat):
        weights = reference.weights_of(self.policy)
        parts = np.split(flat, np.cumsum([each.size for each in weights.values()])[:-1])
        return {name: part.reshape(weights[name].shape) for name, part in zip(weights, parts, strict=True)}

    def rewards(self, rollout):
        """The rewards to learn from."""
        config, rewards = self.config, rollout.rewards.astype(np.float64)
        if config.normalize_rewards:
            for t, env in np.ndindex(rewards.shape):
                if rollout.valid[t, env]:
                    self.running[env] = config.gamma * self.running[env] + rewards[t, env]
                    self.sums.append(self.running[env])
                    self.running[env] *= not rollout.episode_ends[t, env]
            rewards = np.clip(rewards / np.sqrt(np.var(self.sums) + 1e-8), -10, 10)
        return rewards

    def advantages(self, rollout, rewards, values, ratios):
        """Sums of discounted temporal differences within episodes, NaN where nothing happened.

        They are generalised advantage estimates if all `ratios` are 1. Otherwise each later difference counts as much
        as the actions that led to it are still as probable, as in V-trace.
        """
        config = self.config
        advantages = np.full(rewards.shape, np.nan)
        for start, env in np.argwhere(rollout.valid):
            advantages[start, env], weight = 0.0, 1.0
            for t in range(start, len(rewards)):
                end = rollout.episode_ends[t, env]
                following = rollout.next_values[t, env] if end or t == len(rewards) - 1 else values[t + 1, env]
                target = rewards[t, env] + config.gamma * following * (not rollout.terminations[t, env])
                if t > start:
                    weight *= config.gamma * config.gae_lambda * min(ratios[t, env], 1)
                advantages[start, env] += weight * (target - values[t, env])
                if end:
                    break
        return advantages

    def outputs(self, flat, rollout):
        """Log-probabilities, entropies and values of the rollout with these weights."""
        length = self.config.bptt_steps
        log_probs, entropies, values = np.empty((3, *rollout.rewards.shape))
        for piece in range(len(rollout.rewards) // length):
            steps = slice(piece * length, (piece + 1) * length)
            run = reference.run(
                self.policy,
                rollout.observations[steps].swapaxes(0, 1),
                1.0 - rollout.episode_starts[steps].T,
                [part[piece] for part in rollout.sequence_states],
                self.unflat(flat),
            )
            actions = rollout.actions[steps].swapaxes(0, 1)
            if run.log_std is None:
                actions = actions - self.policy.action_space.start
            log_probs[steps], entropies[steps] = run.log_probs(actions).T, run.entropies().T
            values[steps] = run.values.T
        return log_probs, entropies, values

    def losses(self, flat, rollout, advantages, returns, clip):
        config = self.config
        log_probs, entropies, values = self.outputs(flat, rollout)
        happened = rollout.valid
        advantage, targets = advantages[happened], returns[happened]
        if config.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_ratio = (log_probs - rollout.log_probs)[happened]
        ratio = np.exp(log_ratio)
        objective = np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)
        errors = (values[happened] - targets) ** 2
        if config.clip_vloss:
            old = rollout.values[happened]
            clipped = np.clip(values[happened], old - clip, old + clip)
            errors = np.maximum(errors, (clipped - targets) ** 2)
        policy_loss, value_loss, entropy_loss = -objective.mean(), errors.mean() / 2, -entropies[happened].mean()
        return {
            "loss": policy_loss + config.vf_coef * value_loss + config.ent_coef * entropy_loss,
            "policy_gradient_loss": policy_loss,
            "value_loss": value_loss,
            "entropy_loss": entropy_loss,
            "approx_kl": (ratio - 1 - log_ratio).mean(),
            "clip_fraction": (np.abs(ratio - 1) > clip).mean(),
        }

    def update(self, weights, rollout, learning_rate, clip):
        """All epochs: the means of the losses over the steps taken or refused, the new weights, and the returns."""
        config, rewards, history = self.config, self.rewards(rollout), []
        advantages = self.advantages(rollout, rewards, rollout.values, np.ones_like(rewards))
        returns = first_returns = advantages + rollout.values

        def loss(weights):
            return self.losses(weights, rollout, advantages, returns, clip)["loss"]

        for _ in range(config.update_epochs):
            if config.vtrace:
                log_probs, _, values = self.outputs(weights, rollout)
                ratios = np.exp(log_probs - rollout.log_probs)
                advantages = self.advantages(rollout, rewards, values, ratios)
                returns = values + advantages
            history.append(self.losses(weights, rollout, advantages, returns, clip))
            if config.target_kl is not None and history[-1]["approx_kl"] > 1.5 * config.target_kl:
                break
            gradient = central_differences(loss, weights)
            self.gradient_norms.append(np.linalg.norm(gradient))
            gradient *= min(1.0, config.max_grad_norm / self.gradient_norms[-1])
            weights = weights - self.adam(gradient, learning_rate)
        means = {name: np.mean([losses[name] for losses in history]) for name in LOSSES}
        return means, weights, first_returns[rollout.valid]

    def adam(self, gradient, learning_rate):
        """Kingma and Ba (2015), section 2, in the efficient order of its last paragraph."""
        self.steps += 1
        self.moment = 0.9 * self.moment + 0.1 * gradient
        self.square = 0.999 * self.square + 0.001 * gradient**2
        rate = learning_rate * np.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        return rate * self.moment / (np.sqrt(self.square) + 1e-5)
