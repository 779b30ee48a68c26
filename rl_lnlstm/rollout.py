"""Acting in a vector environment: `RolloutRunner` and the `Rollout` it returns."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.errors import UserError
from rl_lnlstm.recurrence import State


class ActingPolicy(Protocol):
    """What acting needs of a policy."""

    def initial_state(self, batch_size: int) -> State:
        """The state before an episode."""

    def step(
        self, observations: np.ndarray, state: State, episode_starts: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, State]:
        """Actions, values, log-probabilities and the new state."""

    def value(self, observations: np.ndarray, state: State, episode_starts: np.ndarray) -> np.ndarray:
        """The values of observations."""

    def legal_actions(self, actions: np.ndarray) -> np.ndarray:
        """What to send to the environments."""


class Episode(NamedTuple):
    """An episode that ended: its return and its length in frames."""

    ret: float
    length: int


class Rollout(NamedTuple):
    """What `num_envs` environments produced in `num_steps` steps; arrays are `[num_steps, num_envs, ...]`.

    Where `valid` is false the step only reset its environment (autoreset mode NEXT_STEP): the transition never
    happened, and must not enter losses, advantages or statistics.
    """

    observations: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    episode_starts: np.ndarray  # bool: the observation is an episode's first, the state was reset before it
    valid: np.ndarray  # bool
    terminations: np.ndarray  # bool: what the step led to is terminal
    episode_ends: np.ndarray  # bool: terminated or truncated
    next_values: np.ndarray  # of what the step led to, in the same episode, with the state of that moment
    sequence_states: State  # before every `sequence_length`-th step, each [sequences per environment, num_envs, units]
    episodes: list[Episode]  # those that ended, in order


class _Transition(NamedTuple):
    """One step of all environments, each `[num_envs]`; the fields are `Rollout`'s."""

    rewards: np.ndarray
    terminations: np.ndarray
    episode_ends: np.ndarray
    valid: np.ndarray
    final_values: np.ndarray  # of final observations that no later step will see; NaN elsewhere


class RolloutRunner:
    """Steps a policy in a vector environment, in any autoreset mode, carrying state and episodes over.

    Args:
        policy: what acts.
        envs: what it acts in.
        num_steps: steps in a rollout.
        sequence_length: steps after which the state is recorded anew; divides `num_steps`.
        seed: of the first reset.
    """

    def __init__(
        self, policy: ActingPolicy, envs: VectorEnv, num_steps: int, sequence_length: int, seed: int | None = None
    ) -> None:
        self.policy, self.envs = policy, envs
        self.num_steps, self.sequence_length = num_steps, sequence_length
        self._mode = autoreset_mode(envs)
        self._observations, _ = envs.reset(seed=seed)
        self._state = policy.initial_state(envs.num_envs)
        self._episode_starts = np.ones(envs.num_envs, bool)
        self._resetting = np.zeros(envs.num_envs, bool)
        self._returns, self._lengths = np.zeros(envs.num_envs), np.zeros(envs.num_envs, int)

    def run(self) -> Rollout:
        """The next rollout."""
        columns: list[np.ndarray] = []
        states: list[State] = []
        episodes: list[Episode] = []
        for t in range(self.num_steps):
            if t % self.sequence_length == 0:
                states.append(self._state)
            before = self._observations, self._episode_starts
            actions, values, log_probs, self._state = self.policy.step(before[0], self._state, before[1])
            transition = self._step(actions)
            episodes += self._ended_episodes(transition)
            step = (*before, actions, values, log_probs, *transition)
            if t == 0:
                columns = [np.empty((self.num_steps, *part.shape), part.dtype) for part in step]
            for column, part in zip(columns, step, strict=True):
                column[t] = part

        observations, episode_starts, actions, values, log_probs, *outcome, final_values = columns
        last = self.policy.value(self._observations, self._state, self._episode_starts)
        next_values = np.concatenate([values[1:], last[np.newaxis]])
        next_values = np.where(np.isnan(final_values), next_values, final_values)
        rewards, terminations, episode_ends, valid = outcome
        return Rollout(
            observations=observations,
            actions=actions,
            log_probs=log_probs,
            values=values,
            rewards=rewards,
            episode_starts=episode_starts,
            valid=valid,
            terminations=terminations,
            episode_ends=episode_ends,
            next_values=next_values,
            sequence_states=State(*(np.stack(part) for part in zip(*states, strict=True))),
            episodes=episodes,
        )

    def _step(self, actions: np.ndarray) -> _Transition:
        observations, rewards, terminations, truncations, infos = self.envs.step(self.policy.legal_actions(actions))
        ends = terminations | truncations
        valid = ~self._resetting
        final_values = np.full(len(ends), np.nan, np.float32)
        if self._mode is AutoresetMode.NEXT_STEP:
            # The next step sees the final observation with the state of that moment: its value is the bootstrap.
            self._episode_starts, self._resetting = self._resetting, ends
        else:
            final_observations = observations
            if self._mode is AutoresetMode.DISABLED:
                if ends.any():
                    final_observations = np.copy(observations)
                    observations, _ = self.envs.reset(options={"reset_mask": ends})
            elif ends.any():
                final_observations = np.copy(observations)
                for index in np.flatnonzero(ends):
                    final_observations[index] = infos["final_obs"][index]
            bootstraps = truncations & ~terminations
            if bootstraps.any():
                unreset = np.zeros(len(ends), bool)
                final_values[bootstraps] = self.policy.value(final_observations, self._state, unreset)[bootstraps]
            self._episode_starts = ends
        self._observations = observations
        return _Transition(rewards, terminations, ends, valid, final_values)

    def _ended_episodes(self, transition: _Transition) -> list[Episode]:
        self._returns += transition.rewards * transition.valid
        self._lengths += transition.valid
        ended = np.flatnonzero(transition.episode_ends)
        episodes = [Episode(float(self._returns[index]), int(self._lengths[index])) for index in ended]
        self._returns[ended], self._lengths[ended] = 0.0, 0
        return episodes


def autoreset_mode(envs: VectorEnv) -> AutoresetMode:
    """The mode that `envs` states in its metadata.

    Raises:
        UserError: it states none.
    """
    mode = envs.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"the vector environment's metadata['autoreset_mode'] must be one of gymnasium.vector.AutoresetMode, got {mode!r}"
        )
    return mode
