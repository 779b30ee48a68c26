"""A recurrent PPO in JAX in the manner of PureJaxRL (Lu et al., 2022): environment, rollout and updates in one program.

    python benchmarks/jax_ppo.py '{"num_envs": 8, "iterations": 20}'

The only package that it needs is `jax`. `peers.py` makes an environment for it, runs it, and reads its line of JSON.
An iteration has 128 steps of CartPole, with or without velocities, 4 epochs, and 4 minibatches of sequences of 64. An
episode that reaches the time limit counts as terminated, as in PureJaxRL.

Four things make it faster than a direct translation of the formulas:

- The whole training is one compiled loop. Its number of iterations is an argument, so it compiles once.
- All random numbers of a rollout are drawn in one call, and its values are computed together after it.
- In training, the input's part of the gates is one product of matrices for all steps.
- The gradient of the LSTM is written by hand (`jax_lstm.py`): that of the weights is one product of matrices for all
  steps.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax_lstm import LSTMState, lstm_step, unroll
from peer_run import Clock, Task, main

HEAD_UNITS = 64
RANDOM = "rbg"  # compiles in a fifth of the time of JAX's default


@dataclasses.dataclass(frozen=True)
class Options(Task):
    """What the other peers have no need of. They are arguments of compiled functions, and a change compiles again."""

    velocities: bool = True
    """whether the policy observes velocities"""
    target: float | None = None
    """stop at this score"""
    evaluate_every: int = 4
    """iterations from one evaluation to the next, if there is a target"""
    episodes: int = 20
    """deterministic episodes, whose mean return is the score"""
    reward: float = 0.05
    """of a step: gives values whose gradients are not always clipped"""
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_coef: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5


# The environment ------------------------------------------------------------------------------------------------------


class Env(NamedTuple):
    physics: Array  # [4, num_envs]: position, velocity, angle, angular velocity
    steps: Array  # [num_envs], of the current episode


def env_step(env: Env, action: Array, start: Array) -> tuple[Env, Array]:
    """A step of Gymnasium's CartPole-v1, and whether it was an episode's last. The next one has the physics `start`."""
    _, x_dot, theta, theta_dot = env.physics
    force = jnp.where(action == 1, 10.0, -10.0)
    cosine, sine = jnp.cos(theta), jnp.sin(theta)
    push = (force + 0.05 * theta_dot**2 * sine) / 1.1
    theta_acceleration = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
    acceleration = push - 0.05 * theta_acceleration * cosine / 1.1
    physics = env.physics + 0.02 * jnp.stack([x_dot, acceleration, theta_dot, theta_acceleration])
    steps = env.steps + 1
    done = (jnp.abs(physics[0]) > 2.4) | (jnp.abs(physics[2]) > 12 * jnp.pi / 180) | (steps >= 500)
    return Env(jnp.where(done, start, physics), jnp.where(done, 0, steps)), done


def observe(env: Env, velocities: bool) -> Array:
    """Observations `[num_envs, 5 or 3]`: parts of the greatest position and angle, and a constant for the bias."""
    scaled = env.physics / jnp.array([[2.4], [2.4], [0.21], [0.21]])
    return jnp.concatenate([scaled if velocities else scaled[::2], jnp.ones_like(scaled[:1])]).T


# The network ----------------------------------------------------------------------------------------------------------


def initial_weights(options: Options) -> dict[str, Array]:
    rng = np.random.default_rng(options.seed)

    def orthogonal(rows: int, columns: int, scale: float) -> np.ndarray:
        q, _ = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns)), np.float32))
        return scale * (q if rows >= columns else q.T)

    units, inputs = options.units, 4 if options.velocities else 2
    bias = np.repeat(np.float32([[0, 1, 0, 0]]), units, axis=1)  # 1 for the forget gate
    return {
        "kernel": np.concatenate([orthogonal(inputs, 4 * units, 1.0), bias]),
        "recurrent_kernel": orthogonal(units, 4 * units, 1.0),
        **{
            f"{head}_{name}": weight
            for head, outputs, scale in (("actor", 2, 0.01), ("critic", 1, 1.0))
            for name, weight in {
                "kernel_0": orthogonal(units, HEAD_UNITS, 2**0.5),
                "bias_0": np.zeros(HEAD_UNITS, np.float32),
                "kernel_1": orthogonal(HEAD_UNITS, HEAD_UNITS, 2**0.5),
                "bias_1": np.zeros(HEAD_UNITS, np.float32),
                "kernel_2": orthogonal(HEAD_UNITS, outputs, scale),
                "bias_2": np.zeros(outputs, np.float32),
            }.items()
        },
    }


def head(weights: dict[str, Array], name: str, x: Array) -> Array:
    """The outputs `[rows, outputs]` of a head, of inputs `[rows, units]`."""
    x = jnp.tanh(x @ weights[f"{name}_kernel_0"] + weights[f"{name}_bias_0"])
    x = jnp.tanh(x @ weights[f"{name}_kernel_1"] + weights[f"{name}_bias_1"])
    return x @ weights[f"{name}_kernel_2"] + weights[f"{name}_bias_2"]


# The algorithm --------------------------------------------------------------------------------------------------------


class Rollout(NamedTuple):
    """Arrays `[num_steps, num_envs, ...]`."""

    observations: Array
    starts: Array  # 1 where an observation is the first of its episode
    actions: Array
    log_probs: Array
    dones: Array


class Acting(NamedTuple):
    """What one step of the rollout hands to the next one."""

    env: Env
    starts: Array
    lstm: LSTMState


def act(weights: dict[str, Array], acting: Acting, options: Options) -> tuple[LSTMState, Array]:
    """The state of the LSTM after the current observation, and the observation."""
    observations = observe(acting.env, options.velocities)
    projected = observations @ weights["kernel"]
    return lstm_step(acting.lstm.reset(acting.starts), projected, weights["recurrent_kernel"])[0], observations


class Collected(NamedTuple):
    acting: Acting  # after the rollout
    rollout: Rollout
    states: LSTMState  # [num_steps, num_envs, units], before each step
    values: Array  # [num_steps + 1, num_envs], the last of them those of the observations after the rollout


def collect(weights: dict[str, Array], acting: Acting, key: Array, options: Options) -> Collected:
    random = jax.random.uniform(key, (options.num_steps, 5, options.num_envs))

    def step(acting: Acting, random_t: Array) -> tuple[Acting, tuple[Rollout, LSTMState]]:
        uniform_t, physics_t = random_t[0], 0.1 * random_t[1:] - 0.05
        state, observations = act(weights, acting, options)
        log_probs = jax.nn.log_softmax(head(weights, "actor", state.h))
        actions = (uniform_t < jnp.exp(log_probs[:, 1])).astype(jnp.int32)
        chosen = jnp.where(actions == 1, log_probs[:, 1], log_probs[:, 0])
        env, dones = env_step(acting.env, actions, physics_t)
        after = Acting(env, dones.astype(jnp.float32), state)
        return after, (Rollout(observations, acting.starts, actions, chosen, after.starts), acting.lstm)

    acting, (rollout, states) = lax.scan(step, acting, random)
    last, _ = act(weights, acting, options)
    outputs = jnp.concatenate([states.h[1:], acting.lstm.h[None], last.h[None]])
    values = head(weights, "critic", outputs.reshape(-1, options.units)).reshape(outputs.shape[:2])
    return Collected(acting, rollout, states, values)


def advantages_of(rollout: Rollout, values: Array, options: Options) -> Array:
    """Generalised advantages (Schulman et al., 2016). All steps have the same reward."""
    going_on = 1.0 - rollout.dones
    deltas = options.reward + options.gamma * going_on * values[1:] - values[:-1]

    def step(advantage: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, decay = inputs
        advantage = delta + decay * advantage
        return advantage, advantage

    decays = options.gamma * options.gae_lambda * going_on
    return lax.scan(step, jnp.zeros_like(deltas[0]), (deltas, decays), reverse=True, unroll=4)[1]


class Sequences(NamedTuple):
    """Arrays `[sequence_length, sequences, ...]`, and the state before the first step."""

    rollout: Rollout
    advantages: Array
    returns: Array
    lstm: LSTMState


def sequences_of(collected: Collected, options: Options) -> Sequences:
    advantages = advantages_of(collected.rollout, collected.values, options)
    length = options.sequence_length

    def cut(array: Array) -> Array:
        pieces = array.reshape(-1, length, *array.shape[1:])
        return pieces.swapaxes(0, 1).reshape(length, -1, *array.shape[2:])

    arrays = jax.tree.map(cut, (collected.rollout, advantages, advantages + collected.values[:-1]))
    return Sequences(*arrays, jax.tree.map(lambda array: array[::length].reshape(-1, options.units), collected.states))


def loss_of(weights: dict[str, Array], batch: Sequences, options: Options) -> Array:
    """The clipped loss of PPO (Schulman et al., 2017)."""
    rollout = batch.rollout
    outputs = unroll(weights["kernel"], weights["recurrent_kernel"], rollout.observations, rollout.starts, batch.lstm)
    rows = outputs.reshape(-1, options.units)  # products of matrices with three axes are slower
    log_probs = jax.nn.log_softmax(head(weights, "actor", rows))
    values = head(weights, "critic", rows)[:, 0]
    chosen = jnp.where(rollout.actions.ravel() == 1, log_probs[:, 1], log_probs[:, 0])
    ratio = jnp.exp(chosen - rollout.log_probs.ravel())
    advantages = ((batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)).ravel()
    clipped = jnp.clip(ratio, 1 - options.clip_coef, 1 + options.clip_coef)
    policy_loss = -jnp.minimum(ratio * advantages, clipped * advantages).mean()
    value_loss = 0.5 * jnp.square(values - batch.returns.ravel()).mean()
    entropy = -(jnp.exp(log_probs) * log_probs).sum(-1).mean()
    return policy_loss + options.vf_coef * value_loss - options.ent_coef * entropy


class Adam(NamedTuple):
    mean: dict[str, Array]
    variance: dict[str, Array]
    steps: Array


def adam_step(weights: dict[str, Array], adam: Adam, gradients: dict[str, Array], options: Options) -> Any:
    """Weights and Adam's state (Kingma and Ba, 2015) after a step, with the gradients' norm clipped."""
    norm = jnp.sqrt(sum(jnp.vdot(gradient, gradient) for gradient in gradients.values()))
    scale = jnp.minimum(1.0, options.max_grad_norm / (norm + 1e-6))
    steps = adam.steps + 1
    rate = options.learning_rate * jnp.sqrt(1 - 0.999**steps) / (1 - 0.9**steps)
    mean = {name: 0.9 * m + 0.1 * scale * gradients[name] for name, m in adam.mean.items()}
    variance = {name: 0.999 * v + 0.001 * (scale * gradients[name]) ** 2 for name, v in adam.variance.items()}
    weights = {name: w - rate * mean[name] / (jnp.sqrt(variance[name]) + 1e-5) for name, w in weights.items()}
    return weights, Adam(mean, variance, steps)


class Training(NamedTuple):
    weights: dict[str, Array]
    adam: Adam
    acting: Acting
    key: Array
    iterations: Array
    score: Array  # of the last evaluation


def iteration(training: Training, options: Options) -> Training:
    key, key_of_rollout, key_of_order = jax.random.split(training.key, 3)
    collected = collect(training.weights, training.acting, key_of_rollout, options)
    sequences = sequences_of(collected, options)
    count = len(sequences.lstm.h)
    order = jax.random.uniform(key_of_order, (options.update_epochs, count)).argsort(axis=1)

    def gradient_step(learning: Any, chosen: Array) -> tuple[Any, None]:
        weights, adam = learning
        taken = jax.tree.map(lambda array: array[:, chosen], sequences._replace(lstm=None))
        batch = taken._replace(lstm=jax.tree.map(lambda array: array[chosen], sequences.lstm))
        return adam_step(weights, adam, jax.grad(loss_of)(weights, batch, options), options), None

    minibatches = order.reshape(options.update_epochs * options.num_minibatches, -1)
    (weights, adam), _ = lax.scan(gradient_step, (training.weights, training.adam), minibatches)
    return Training(weights, adam, collected.acting, key, training.iterations + 1, training.score)


def score_of(weights: dict[str, Array], options: Options) -> Array:
    """The mean return of deterministic episodes, all with the same initial physics."""
    physics = jax.random.uniform(jax.random.key(1, impl=RANDOM), (4, options.episodes), minval=-0.05, maxval=0.05)
    zeros = jnp.zeros(options.episodes)
    state = LSTMState(*jnp.zeros((2, options.episodes, options.units)))

    class Playing(NamedTuple):
        acting: Acting
        alive: Array
        returns: Array

    def step(playing: Playing) -> Playing:
        state, _ = act(weights, playing.acting, options)
        actions = head(weights, "actor", state.h).argmax(-1)
        env, dones = env_step(playing.acting.env, actions, physics)
        acting = Acting(env, zeros, state)
        return Playing(acting, playing.alive & ~dones, playing.returns + playing.alive)

    playing = Playing(Acting(Env(physics, zeros.astype(int)), zeros, state), zeros == 0, zeros)
    return lax.while_loop(lambda playing: playing.alive.any(), step, playing).returns.mean()


@partial(jax.jit, static_argnames="options", donate_argnames="training")
def train(training: Training, iterations: Array, options: Options) -> Training:
    """Trains until there were so many iterations in all, or until the score reaches the target."""

    def step(training: Training) -> Training:
        training = iteration(training, options)
        if options.target is None:
            return training
        due = training.iterations % options.evaluate_every == 0
        score = lax.cond(due, lambda: score_of(training.weights, options), lambda: training.score)
        return training._replace(score=score)

    def going_on(training: Training) -> Array:
        more = training.iterations < iterations
        return more if options.target is None else more & (training.score < options.target)

    return lax.while_loop(going_on, step, training)


def start(options: Options) -> Training:
    weights = initial_weights(options)
    rng = np.random.default_rng((options.seed, 1))
    physics = rng.uniform(-0.05, 0.05, (4, options.num_envs)).astype(np.float32)
    state = LSTMState(*np.zeros((2, options.num_envs, options.units), np.float32))
    acting = Acting(Env(physics, np.zeros(options.num_envs, np.int32)), np.ones(options.num_envs, np.float32), state)
    adam = Adam(*({name: np.zeros_like(w) for name, w in weights.items()} for _ in range(2)), np.int32(0))
    return jax.device_put(
        Training(weights, adam, acting, jax.random.key(options.seed, impl=RANDOM), np.int32(0), np.float32(0))
    )


def run(options: Options) -> dict[str, float]:
    training, clock = start(options), Clock(options)
    for iterations in (options.warmup, options.iterations):
        training = jax.block_until_ready(train(training, iterations, options))
        clock.iterated(int(training.iterations) - clock.iterations)
    return {**clock.result(), "score": float(training.score)}


if __name__ == "__main__":
    main(run, Options)
