"""Acting in a vector environment: `RolloutRunner` and the `Rollout` it returns."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs.autoreset import Episode, Step, Stepper


class ActingPolicy(Protocol):
    """What acting needs of a policy."""

    def initial_state(self, batch_size: int) -> Any:
        """The state before an episode: a NamedTuple of arrays `[batch_size, width]`."""

    def step(
        self, observations: Any, state: Any, episode_starts: np.ndarray, *action_masks: np.ndarray
    ) -> tuple[Any, np.ndarray, np.ndarray, Any]:
        """Actions, values, log-probabilities and the new state; masks come from environments that have them."""

    def rewarded(self, state: Any, rewards: np.ndarray) -> Any:
        """The state, after the environments answered with rewards; called if `previous_reward` is there and true."""

    def value(self, observations: Any, state: Any, episode_starts: np.ndarray) -> np.ndarray:
        """The values of observations."""

    def clip_actions(self, actions: Any) -> Any:
        """What to send to the environments."""

    def reset_noise(self, batch_size: int) -> None:
        """Draws held noise anew; only called with a `sde_sample_freq`."""


class Rollout(NamedTuple):
    """What `num_envs` environments produced in `num_steps` steps; arrays are `[num_steps, num_envs, ...]`.

    Observations and actions are structures of arrays where their spaces are `Dict` or `Tuple`.

    Where `valid` is false the transition must not enter losses, advantages or statistics. It never happened, because
    the step only reset its environment (autoreset mode NEXT_STEP); or it is of an episode in which the environment
    failed. Such an episode ends where it was broken off, and no earlier step sees past that.
    """

    observations: Any
    actions: Any
    log_probs: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    episode_starts: np.ndarray  # bool: the observation is an episode's first, the state was reset before it
    valid: np.ndarray  # bool
    terminations: np.ndarray  # bool: what the step led to is terminal, or nothing that can be valued
    episode_ends: np.ndarray  # bool: terminated, truncated or broken off
    next_values: np.ndarray  # of what the step led to, in the same episode, with the state of that moment
    sequence_states: Any  # before every `sequence_length`-th step, each [sequences per environment, num_envs, width]
    episodes: list[Episode]  # those that ended, in order
    action_masks: np.ndarray | None = None  # bool: which actions were legal; None if environments do not say so


class RolloutRunner:
    """Steps a policy in a vector environment, carrying state and episodes over from rollout to rollout.

    Args:
        policy: what acts.
        envs: what it acts in, in any autoreset mode.
        num_steps: steps in a rollout.
        sequence_length: steps after which the state is recorded anew; divides `num_steps`.
        seed: of the first reset.
        sde_sample_freq: steps after which the policy's held noise is drawn anew, counted from a rollout's start, where
            it always is; -1 for there only. None: the policy holds none.
    """

    def __init__(
        self,
        policy: ActingPolicy,
        envs: VectorEnv,
        num_steps: int,
        sequence_length: int,
        seed: int | None = None,
        sde_sample_freq: int | None = None,
    ) -> None:
        self.policy, self.num_steps, self.sequence_length = policy, num_steps, sequence_length
        self._noise_steps = num_steps if sde_sample_freq == -1 else sde_sample_freq
        self._stepper = Stepper(envs, seed)
        self._state = policy.initial_state(envs.num_envs)
        self._tells_rewards = getattr(policy, "previous_reward", False)

    def restart(self, seed: int | None = None) -> None:
        """Begins new episodes in all environments, which also resets the policy's state."""
        self._stepper.restart(seed)

    def get_state(self) -> dict[str, Any]:
        """All but the policy and the environments, for `set_state` when these are what they are now."""
        return {"state": tuple(self._state), "stepper": self._stepper.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from where `get_state` was called."""
        self._state = type(self._state)(*state["state"])
        self._stepper.set_state(state["stepper"])

    def run(self) -> Rollout:
        """The next rollout."""
        stepper = self._stepper
        row: tuple[Any, ...] = ()
        columns: list[np.ndarray] = []
        states: list[Any] = []
        episodes: list[Episode] = []
        aborted: list[tuple[int, int]] = []
        for t in range(self.num_steps):
            if t % self.sequence_length == 0:
                states.append(self._state)
            if self._noise_steps is not None and t % self._noise_steps == 0:
                self.policy.reset_noise(len(stepper.episode_starts))
            observations, episode_starts = copy.deepcopy(stepper.observations), stepper.episode_starts
            masks = () if stepper.action_masks is None else (stepper.action_masks,)
            actions, *outputs, self._state = self.policy.step(observations, self._state, episode_starts, *masks)
            acted = observations, episode_starts, actions, masks, *outputs
            step = stepper.step(self.policy.clip_actions(actions))
            if self._tells_rewards:
                self._state = self.policy.rewarded(self._state, step.rewards)
            episodes += step.episodes
            row = (*acted, step.rewards, step.terminations, step.truncations, step.valid, self._final_values(step))
            parts = tf.nest.flatten(row)
            if t == 0:
                columns = [np.empty((self.num_steps, *part.shape), part.dtype) for part in parts]
            for column, part in zip(columns, parts, strict=True):
                column[t] = part
            if step.aborted is not None:
                aborted += [(t, int(env)) for env in np.flatnonzero(step.aborted)]

        *acted_columns, rewards, terminations, truncations, valid, final_values = tf.nest.pack_sequence_as(row, columns)
        observations, episode_starts, actions, masks, values, log_probs = acted_columns
        for t, env in aborted:
            earlier_ends = np.flatnonzero(terminations[:t, env] | truncations[:t, env])
            valid[earlier_ends[-1] + 1 if len(earlier_ends) else 0 : t + 1, env] = False
            terminations[t, env] = True
        last_values = self.policy.value(stepper.observations, self._state, stepper.episode_starts)
        following_values = np.concatenate([values[1:], last_values[np.newaxis]])
        return Rollout(
            observations=observations,
            actions=actions,
            log_probs=log_probs,
            values=values,
            rewards=rewards,
            episode_starts=episode_starts,
            valid=valid,
            terminations=terminations,
            episode_ends=terminations | truncations,
            next_values=np.where(np.isnan(final_values), following_values, final_values),
            sequence_states=tf.nest.map_structure(lambda *parts: np.stack(parts), *states),
            episodes=episodes,
            action_masks=masks[0] if masks else None,
        )

    def _final_values(self, step: Step) -> np.ndarray:
        """The values to bootstrap truncated episodes from where the next step will not see them; elsewhere NaN."""
        values = np.full(len(step.valid), np.nan, np.float32)
        truncated = step.truncations & ~step.terminations
        if step.final_observations is not None and truncated.any():
            no_starts = np.zeros(len(truncated), bool)
            values[truncated] = self.policy.value(step.final_observations, self._state, no_starts)[truncated]
        return values
