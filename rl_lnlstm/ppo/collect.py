"""Acting in a vector environment: `RolloutRunner`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import VectorEnv

from rl_lnlstm.envs.autoreset import Episode, Step, Stepper
from rl_lnlstm.ppo.noise import RolloutNoise
from rl_lnlstm.ppo.protocols import ActingPolicy
from rl_lnlstm.ppo.rollout import Rollout, Transition
from rl_lnlstm.spaces import map_arrays


class RolloutRunner:
    """Steps a policy in a vector environment. State and episodes carry over from rollout to rollout.

    Args:
        policy: the policy that acts.
        envs: the environments that it acts in, in any autoreset mode.
        num_steps: steps of each environment in a rollout.
        sequence_length: steps after which the policy's state is recorded again; divides `num_steps`.
        seed: seed of the first reset: an integer, or one for each environment.
        sde_sample_freq: the noise of gSDE is drawn at the start of each rollout, and again after every so many steps.
            -1: only at the start of a rollout. None: the policy does not use gSDE.
        generators: one for each environment, which sample its actions. None, or a policy whose `step` takes no `noise`:
            the policy samples as it does on its own.
    """

    def __init__(
        self,
        policy: ActingPolicy,
        envs: VectorEnv,
        num_steps: int,
        sequence_length: int,
        seed: Any = None,
        sde_sample_freq: int | None = None,
        generators: Sequence[np.random.Generator] | None = None,
    ) -> None:
        self.policy, self.num_steps, self.sequence_length = policy, num_steps, sequence_length
        self._noise_steps = num_steps if sde_sample_freq == -1 else sde_sample_freq
        self._stepper = Stepper(envs, seed)
        self._state = policy.initial_state(envs.num_envs)
        self._noise: RolloutNoise | None = None
        if generators is not None and "noise" in inspect.signature(policy.step).parameters:
            self._noise = RolloutNoise(policy.action_head, generators, num_steps, self._noise_steps)
        self._tells_rewards = getattr(policy, "previous_reward", False)

    def restart(self, seed: Any = None) -> None:
        """Begins new episodes in all environments. Their first step also resets the policy's state."""
        self._stepper.restart(seed)

    def get_state(self) -> dict[str, Any]:
        """Returns all state except the policy and the environments, for `set_state`."""
        return {"state": tuple(self._state), "stepper": self._stepper.get_state(), "generators": self._generators()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from where `get_state` was called. Policy and environments must be as they were then."""
        self._state = type(self._state)(*state["state"])
        self._stepper.set_state(state["stepper"])
        self.continue_sampling(state)

    def continue_sampling(self, state: dict[str, Any]) -> None:
        """Continues the random generators from where `get_state` was called, even with other environments."""
        if self._noise is not None:
            self._noise.set_state(state.get("generators", ()))  # checkpoints of earlier versions have none

    def _generators(self) -> list[dict[str, Any]]:
        return [] if self._noise is None else self._noise.get_state()

    def run(self) -> Rollout:
        """Collects the next rollout."""
        stepper, columns = self._stepper, None
        states: list[Any] = []
        episodes: list[tuple[int, Episode]] = []  # with the step in which they ended
        if self._noise is not None:
            self._noise.draw()
        for t in range(self.num_steps):
            if t % self.sequence_length == 0:
                states.append(self._state)
            if self._noise is None and self._noise_steps is not None and t % self._noise_steps == 0:
                self.policy.reset_noise(len(stepper.episode_starts))
            observations, episode_starts = stepper.observations, stepper.episode_starts
            action_masks = stepper.action_masks
            masks = () if action_masks is None else (action_masks,)
            noise = {} if self._noise is None else {"noise": self._noise.at(t)}
            actions, values, log_probs, self._state = self.policy.step(
                observations, self._state, episode_starts, *masks, **noise
            )
            step = stepper.step(self.policy.clip_actions(actions))
            if self._tells_rewards:
                self._state = self.policy.rewarded(self._state, step.rewards)
            has_final_value, final_values = self._final_values(step)
            transition = Transition(
                observations=observations,
                episode_starts=episode_starts,
                action_masks=action_masks,
                actions=actions,
                values=values,
                log_probs=log_probs,
                rewards=step.rewards,
                terminations=step.terminations,
                truncations=step.truncations,
                valid=step.valid,
                aborted=np.zeros_like(step.valid) if step.aborted is None else step.aborted,
                has_final_value=has_final_value,
                final_values=final_values,
            )
            if columns is None:
                columns = map_arrays(lambda part: np.empty((self.num_steps, *part.shape), part.dtype), transition)
            transition.write_to(columns, t)
            episodes += [(t, episode) for episode in step.episodes]
        assert columns is not None
        return self._rollout(columns, map_arrays(lambda *parts: np.stack(parts), *states), episodes)

    def _final_values(self, step: Step) -> tuple[np.ndarray, np.ndarray]:
        """Finds the truncated episodes whose final observation no later step sees, and computes its value.

        Advantages bootstrap from this value. Returns a bool array that marks these episodes, and the values.
        """
        values = np.zeros(len(step.valid), np.float32)
        truncated = step.truncations & ~step.terminations
        if step.final_observations is None or not truncated.any():
            return np.zeros_like(truncated), values
        no_starts = np.zeros(len(truncated), bool)
        values[truncated] = self.policy.value(step.final_observations, self._state, no_starts)[truncated]
        return truncated, values

    def _rollout(self, steps: Transition, sequence_states: Any, episodes: list[tuple[int, Episode]]) -> Rollout:
        valid, terminations = steps.valid, steps.terminations
        for t, env in np.argwhere(steps.aborted):
            earlier_ends = np.flatnonzero(terminations[:t, env] | steps.truncations[:t, env])
            valid[earlier_ends[-1] + 1 if len(earlier_ends) else 0 : t + 1, env] = False
            terminations[t, env] = True
        stepper = self._stepper
        last_values = self.policy.value(stepper.observations, self._state, stepper.episode_starts)
        following_values = np.concatenate([steps.values[1:], last_values[np.newaxis]])
        return Rollout(
            observations=steps.observations,
            actions=steps.actions,
            log_probs=steps.log_probs,
            values=steps.values,
            rewards=steps.rewards,
            episode_starts=steps.episode_starts,
            valid=valid,
            terminations=terminations,
            episode_ends=terminations | steps.truncations,
            next_values=np.where(steps.has_final_value, steps.final_values, following_values),
            sequence_states=sequence_states,
            episodes=[episode for _, episode in episodes],
            action_masks=steps.action_masks,
            episode_steps=tuple(t for t, _ in episodes),
        )
