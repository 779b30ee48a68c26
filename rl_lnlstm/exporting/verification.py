"""Compares an exported policy with the policy: the same observations for many steps, with resets."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rl_lnlstm.envs.action_masks import mask_sizes
from rl_lnlstm.errors import RunFailure
from rl_lnlstm.exporting import player
from rl_lnlstm.exporting.actions import parameters
from rl_lnlstm.exporting.graph import Graph
from rl_lnlstm.exporting.signature import exported_state_size, named_leaves
from rl_lnlstm.policies.encoder_check import random_observations
from rl_lnlstm.policies.normalization import RunningStatistics
from rl_lnlstm.spaces import centre_and_half_range, flatten, map_leaves

STEPS = 1000
RESET = 0.02  # the probability that an episode starts
POOL = 50  # batches of observations, which are repeated
TIE = 1e-5  # rounding can swap actions whose scores differ by less

Arrays = dict[str, np.ndarray]


class ComparedStep(NamedTuple):
    """One step of the policy."""

    arguments: tuple[Any, ...]  # as `RecurrentPolicy.step` takes them, with the noise before the action masks
    inputs: Arrays  # of the exported policy, `[batch, ...]`
    outputs: Arrays


def largest_difference(
    policy: Any, graph: Graph, file_format: str, path: Path, batch: int, steps: int = STEPS
) -> float:
    """The largest difference between an exported policy and the policy.

    Both run for `steps` steps with `batch` episodes. Each call of the exported policy starts from the policy's state,
    because differences of rounding add up in the state of some policies. For numbers above 1 the difference is
    relative, for continuous actions it is relative to the range between their bounds. Discrete actions count as equal
    if rounding can swap them; otherwise a wrong one counts as 1.

    Raises:
        RunFailure: the exported policy does not run.
    """
    rollout = _rollout(policy, {port.kind for port in graph.ports}, batch, steps)
    inputs = {}
    for port in graph.ports:
        steps_of_input = rollout[:POOL] if port.kind == "observation" else rollout
        inputs[port.name] = np.stack([step.inputs[port.name] for step in steps_of_input]).astype(port.dtype)
    got = _played(file_format, path, inputs, graph.sequence)
    differences = [_parameters_difference(policy, rollout[0], got)]
    ranges = {
        f"{kind}{name.removeprefix('action')}": centre_and_half_range(leaf)[1]
        for kind in ("action", "sampled_action")
        for name, leaf in named_leaves("action", policy.action_space)
        if isinstance(leaf, gym.spaces.Box)
    }
    for name in rollout[0].outputs:
        expected = np.stack([step.outputs[name] for step in rollout])
        if graph.sequence and name in ("next_h", "next_c"):
            expected = expected[np.cumsum(player.lengths(steps)) - 1]
        if expected.dtype.kind == "f":
            differences.append(_difference(got[name], expected, ranges.get(name, 1.0)))
            continue
        wrong = np.flatnonzero((got[name] != expected).reshape(steps, -1).any(1))
        differences += [0.0 if _is_tie(policy, rollout[t], name, got[name][t]) else 1.0 for t in wrong]
    return float(np.max(differences))  # unlike max, it gives NaN if there is one


def _rollout(policy: Any, kinds: set[str], batch: int, steps: int) -> list[ComparedStep]:
    """Runs the policy, which takes its sampled actions."""
    rng = np.random.default_rng(0)
    pool = [_observations(policy, batch, rng) for _ in range(POOL)]
    names = [name for name, _ in named_leaves("observation", policy.actor_observation_space)]
    size = exported_state_size(policy)
    state, rewards = policy.initial_state(batch), np.zeros(batch, np.float32)
    taken = {
        name: np.zeros((batch, *(leaf.shape or ())), leaf.dtype)
        for name, leaf in named_leaves("previous_action", policy.action_space)
    }
    rollout = []
    for t in range(steps):
        observations = pool[t % POOL]
        starts = (rng.random(batch) < RESET) | (t == 0)
        noise = policy.action_head.noise(rng, batch)
        masks = _masks(policy.action_space, batch, rng) if "action_mask" in kinds else None
        inputs = {**dict(zip(names, flatten(policy.actor_observation_space, observations), strict=True)), **taken}
        h, c = (part[:, :size] for part in state[:2])
        inputs.update({"h": h, "c": c, "episode_start": starts, "noise": noise})
        inputs.update({"previous_reward": rewards, "action_mask": masks})
        arguments = observations, state, starts, noise, masks
        best, _ = policy.predict(observations, state, starts, deterministic=True, action_masks=masks)
        actions, values, _, state = policy._actor.act(*arguments)
        actions = policy.clip_actions(actions)
        outputs = {
            **_by_name(policy, "action", best),
            **_by_name(policy, "sampled_action", actions),
            **({} if policy.is_asymmetric else {"value": values}),
            **{"next_h": state[0][:, :size], "next_c": state[1][:, :size]},
        }
        rollout.append(ComparedStep(arguments, inputs, outputs))
        taken = _by_name(policy, "previous_action", actions)
        rewards = rng.normal(size=batch).astype(np.float32)
        state = policy.rewarded(state, rewards)
    return rollout


def _observations(policy: Any, batch: int, rng: np.random.Generator) -> Any:
    """Random observations; where the policy normalises them, of the distribution that it has seen."""

    def seen(leaf: Any, statistics: RunningStatistics | None, values: np.ndarray) -> np.ndarray:
        if statistics is None or not float(statistics.count.numpy()):
            return values
        normal = rng.normal(statistics.mean.numpy(), np.sqrt(statistics.variance.numpy()), values.shape)
        return np.clip(normal, leaf.low, leaf.high).astype(leaf.dtype)

    observations = random_observations(policy.actor_observation_space, batch, rng)
    return map_leaves(seen, policy.actor_observation_space, policy.observation_statistics, observations)


def _masks(space: gym.Space, batch: int, rng: np.random.Generator) -> np.ndarray:
    """Random action masks that allow at least one value of each component."""
    masks, sizes = [], mask_sizes(space)
    assert sizes is not None  # there is an input for masks
    for size in sizes:
        mask = rng.random((batch, size)) < 0.5
        mask[np.arange(batch), rng.integers(size, size=batch)] = True
        masks.append(mask)
    return np.concatenate(masks, 1)


def _by_name(policy: Any, kind: str, actions: Any) -> Arrays:
    names = [name for name, _ in named_leaves(kind, policy.action_space)]
    return dict(zip(names, map(np.asarray, flatten(policy.action_space, actions)), strict=True))


def _played(file_format: str, path: Path, inputs: Arrays, sequence: bool) -> Arrays:
    """The outputs of the exported policy, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        given, outputs = Path(folder, "inputs.npz"), Path(folder, "outputs.npz")
        np.savez(given, **inputs)  # type: ignore[arg-type]
        shape = "sequence" if sequence else "step"
        command = [sys.executable, player.__file__, file_format, str(path), str(given), str(outputs), shape]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
            raise RunFailure(f"the exported policy does not run, and was not written: {lines[-1]}")
        with np.load(outputs) as arrays:
            return dict(arrays)


def _difference(got: np.ndarray, expected: np.ndarray, scale: Any = 1.0) -> float:
    rounding = np.spacing(np.abs(expected)) if expected.dtype == np.float16 else 0.0
    # The logits of illegal actions are -inf; TFLite has the lowest float32 instead.
    largest = np.finfo(np.float32).max
    got, expected = (np.clip(part.astype(np.float64), -largest, largest) for part in (got, expected))
    difference = np.maximum(0, np.abs(got - expected) - rounding)
    return float(np.max(difference / np.maximum(np.maximum(1, scale), np.abs(expected)), initial=0))


def _parameters_difference(policy: Any, step: ComparedStep, got: Arrays) -> float:
    """The difference of the distribution's parameters in the first step."""
    observations, state, starts, _, masks = step.arguments
    distribution = policy.distribution(observations, state, starts, masks)
    expected = parameters(distribution.parameters, policy.action_head)
    return float(np.max([_difference(got[name][0], np.asarray(value)) for name, value in expected.items()]))


def _is_tie(policy: Any, step: ComparedStep, name: str, got: np.ndarray) -> bool:
    """Whether a tiny change of the noise makes the policy act as the exported one did."""
    observations, state, starts, noise, masks = step.arguments
    kind = "sampled_action" if name.startswith("sampled_action") else "action"
    noise = noise if kind == "sampled_action" else np.zeros_like(noise)
    left, rng = got != step.outputs[name], np.random.default_rng(0)
    for _ in range(30):
        changed = noise + TIE * rng.standard_normal(noise.shape, np.float32)
        actions = policy._actor.act(observations, state, starts, changed, masks)[0]
        left &= got != _by_name(policy, kind, policy.clip_actions(actions))[name]
    return not left.any()
