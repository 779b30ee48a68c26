"""`GuardedVectorEnv`: checks and copies everything that goes into a vector environment and comes out of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from rl_lnlstm.envs import snapshot
from rl_lnlstm.envs.action_masks import MaskEntry, warn_of_mask_entry
from rl_lnlstm.envs.call_counter import attributes_without_counters, count_calls, counters_inside
from rl_lnlstm.envs.checks import (
    as_elements,
    checked_ends,
    checked_observation,
    checked_parts,
    checked_rewards,
    not_finite,
    unpacked,
    wrong_values,
)
from rl_lnlstm.envs.env_maker import RestartingSyncVectorEnv
from rl_lnlstm.envs.faults import (
    ABORTED,
    FAILURES,
    FAULT,
    Fault,
    Numbering,
    close_or_warn,
    describe_exception,
    forget,
    reraise_of_signal_handler,
    user_frames,
)
from rl_lnlstm.envs.final_observations import FinalObservations
from rl_lnlstm.envs.foreign_envs import CopyingWrapper, clear_async_pipes, infos_as_dict, prepare_foreign_vector_env
from rl_lnlstm.envs.learning_wrappers import refuse_learning_vector_wrappers
from rl_lnlstm.envs.scores import VECTOR_SCORE, insert_vector_score_wrapper, warn_of_vector_scores
from rl_lnlstm.envs.workers import WorkerVectorEnv
from rl_lnlstm.errors import EnvironmentFailure, UserError
from rl_lnlstm.seeding import integer_seed

log = logging.getLogger(__name__)

STEPS_TO_RECOVER = 100


# Longer than most classes: checking, counting and replacing share the same counters, and read better together.
class GuardedVectorEnv(VectorWrapper):
    """Checks and copies data, names environment and step of each failure, and replaces environments that failed.

    See `make_vec`. Values are checked here for all environments at once, because this is fastest.

    Args:
        env: the vector environment.
        name: the name of the environments in messages.
        max_failures, info_keys, mask_key, numbering: as for `make_vec`.

    Attributes:
        failures: number of failures so far.
        info_keys: the argument.
        mask_entry: the entry of the observation that is the action mask, or None.
        numbering: the numbers of the environments in messages.
    """

    _STATE = ("failures", "_steps", "_ended", "_seeds", "_restarts", "_in_a_row", "_failed_at")

    def __init__(
        self,
        env: VectorEnv,
        name: str,
        max_failures: int = 0,
        info_keys: tuple[str, ...] = (),
        mask_key: str | None = None,
        numbering: Numbering | None = None,
    ) -> None:
        for attribute in ("single_observation_space", "single_action_space"):
            space = getattr(env, attribute, None)
            if not isinstance(space, gym.Space):
                raise UserError(f"{name}: {attribute} must be a gymnasium.Space, got {space!r:.100}")
        super().__init__(env)
        self.name, self.info_keys, self.failures = name, info_keys, 0
        self.numbering = numbering or Numbering(0, env.num_envs)
        self._made_here = isinstance(env, RestartingSyncVectorEnv | WorkerVectorEnv)  # each environment is in a `Guard`
        self._max_failures = max_failures if self._made_here else 0
        self._mode = env.metadata.get("autoreset_mode")
        self._inner_spaces = env.single_observation_space, env.single_action_space
        self._checked_parts = list(checked_parts(env.single_observation_space))
        self._batch = (env.num_envs,)
        if not self._made_here:
            refuse_learning_vector_wrappers(env, name)
            warn_of_vector_scores(env, name)
            prepare_foreign_vector_env(env.unwrapped)
        self._score = None if self._made_here else insert_vector_score_wrapper(env)
        may_share = not self._made_here and not isinstance(env.unwrapped, SyncVectorEnv)
        self._final = FinalObservations(env.single_observation_space, name, may_share)
        self._counter, self._inner_counters = count_calls(env.unwrapped), counters_inside(env.unwrapped)
        self.mask_entry: MaskEntry | None = None
        if mask_key is None:
            warn_of_mask_entry(*self._inner_spaces, name)
        else:
            self.mask_entry = MaskEntry(mask_key, *self._inner_spaces)
            self.single_observation_space = self.mask_entry.other_entries
            self.observation_space = batch_space(self.mask_entry.other_entries, env.num_envs)
        self._steps, self._all_fail_at_once = 0, False
        self._ended: Any = np.zeros((2, env.num_envs), bool)  # terminations and truncations of the last step
        self._seeds: list[int | None] = [None] * env.num_envs
        # For each environment: number of replacements, failures in a row, and the step of the last failure.
        self._restarts, self._in_a_row, self._failed_at = np.zeros((3, env.num_envs), int)

    def __getattr__(self, attribute: str) -> Any:
        # VectorWrapper does not pass on `envs`, `call`, `get_attr` and similar attributes.
        if attribute.startswith("_") or attribute == "env":
            raise AttributeError(attribute)
        return getattr(self.env, attribute)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({snapshot.RENAMED_ATTRIBUTES.get(name, name): value for name, value in state.items()})

    def __del__(self) -> None:
        """Leaves the environments open, because other code may use them. (Gymnasium 1.1 closes them here.)"""

    @property
    def num_calls(self) -> int:
        """A count that grows whenever any code steps or resets the environments, if that can be noticed.

        All calls of the vector environment are noticed, and in a `SyncVectorEnv` also those of single environments.
        Those of an environment object are noticed until a restored snapshot takes its place.
        """
        inside = getattr(self.env.unwrapped, "envs", ())
        calls = self._counter.count + sum(env.calls for env in inside if type(env) is CopyingWrapper)
        calls += sum(counter.count for counter in self._inner_counters)
        if isinstance(self.env, WorkerVectorEnv):
            self.env.clear_pipes()
            calls += self.env.unreset
        return calls

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As Gymnasium's; see `make_vec` for what is checked and what failures do."""
        self._steps += 1
        try:
            sent = as_elements(self._inner_spaces[1], actions)
        except Exception as error:
            raise UserError(
                f"{self.name}: expected actions of {self._inner_spaces[1]}, {type(error).__name__}: {error}"
            ) from error
        if self._score is not None:
            self._score.begin()
        try:
            result = self._checked(self.env.step(sent))
        except FAILURES as error:
            self._raise_named(error, "at step")
        observations, rewards, _, _, infos = result
        faults = self._faults(observations, infos)
        final_faults = self._final_faults(rewards, infos)
        if faults or final_faults:
            result = self._survive(result, faults, final_faults)
        self._ended = result[2:4]
        return (self._without_mask(result[0], infos, "at step"), *result[1:])

    def _checked(self, answer: Any) -> Any:
        """Checks the result of `step`, and copies it to new arrays of the right shapes and dtypes."""
        observations, rewards, terminations, truncations, infos = unpacked(answer, 5, "step")
        observations = checked_observation(self._inner_spaces[0], observations, self._batch)
        (num_envs,) = self._batch
        rewards = checked_rewards(rewards, num_envs)
        terminations = checked_ends(terminations, num_envs, "terminations")
        truncations = checked_ends(truncations, num_envs, "truncations")
        infos = infos_as_dict(self.env.unwrapped, infos)
        if self._mode is AutoresetMode.SAME_STEP and (ends := terminations | truncations).any():
            infos = {**infos, "final_obs": self._final.read(infos, ends, observations), "_final_obs": ends}
        if self._score is not None:
            infos = {**infos, VECTOR_SCORE: self._score.rewards}
        return observations, rewards, terminations, truncations, infos

    def _without_mask(self, observations: Any, infos: dict[str, Any], when: str) -> Any:
        try:
            return observations if self.mask_entry is None else self.mask_entry.moved(observations, infos)
        except Fault as fault:
            self._raise_named(fault, when)

    def _survive(self, result: Any, faults: dict[int, Fault], final_faults: dict[int, Fault]) -> Any:
        """Replaces the environments that failed, and returns what `step` returns instead of `result`."""
        observations, rewards, terminations, truncations, infos = result
        aborted = ~self._began(terminations | truncations)
        aborted[list(final_faults)] = True
        faults = {**faults, **final_faults}
        self._all_fail_at_once = self._steps == 1 and 1 < len(faults) == self.num_envs
        aborted &= np.isin(np.arange(self.num_envs), list(faults))
        for index, fault in sorted(faults.items()):
            if aborted[index]:
                forget(infos, index)
            observations = self._restart(index, fault, infos, "at step")
        if aborted.any():
            infos[ABORTED] = aborted
        kept = ~aborted
        return observations, np.where(kept, rewards, 0.0), terminations & kept, truncations & kept, infos

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """As Gymnasium's; see `make_vec` for what is checked and what failures do."""
        if seed is not None:
            self._seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        try:
            clear_async_pipes(self.env.unwrapped)
            observations, infos = unpacked(self.env.reset(seed=seed, options=options), 2, "reset")
            observations = checked_observation(self._inner_spaces[0], observations, self._batch)
            infos = infos_as_dict(self.env.unwrapped, infos)
        except FAILURES as error:
            self._raise_named(error, "in the reset after step")
        for index, fault in sorted(self._faults(observations, infos).items()):
            observations = self._restart(index, fault, infos, "in the reset after step")
        self._ended = np.zeros((2, self.num_envs), bool)
        return self._without_mask(observations, infos, "in the reset after step"), infos

    def close(self, **kwargs: Any) -> None:
        """Closes the environments. An error is a warning, so that an evaluation does not lose its results."""
        close_or_warn(super().close, self.name, **kwargs)

    def get_state(self) -> dict[str, Any]:
        """Returns the counters, for `set_state`. The environments themselves are in `take_snapshot`."""
        return {name: getattr(self, name) for name in self._STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restores the counters from `get_state`."""
        for name in self._STATE:
            setattr(self, name, state[name])

    def take_snapshot(self) -> list[bytes]:
        """See `rl_lnlstm.envs.take_snapshot`."""
        if not self._made_here:
            return [snapshot.to_bytes(attributes_without_counters(self.env))]
        parts = self._called("take_snapshot")
        if getattr(self.env, "unreset", False):
            raise ValueError("an interrupt ended a worker process")
        for part in parts:
            if isinstance(part, str):
                raise ValueError(part)
        return parts

    def restore_snapshot(self, parts: Sequence[bytes]) -> None:
        """See `rl_lnlstm.envs.restore_snapshot`."""
        expected = self.num_envs if self._made_here else 1
        if len(parts) != expected:
            raise ValueError(f"expected {expected} snapshots, got {len(parts)}")
        if not self._made_here:
            attributes = snapshot.from_bytes(parts[0])
            if not isinstance(attributes, dict):
                raise ValueError("it is of single environments, and not of a vector environment")
            vars(self.env).clear()
            vars(self.env).update(attributes)
            self._counter, self._score = count_calls(self.env.unwrapped), insert_vector_score_wrapper(self.env)
            return
        self.env.reset()  # forgets which episodes ended
        self.env.set_attr("to_restore", list(parts))  # type: ignore[attr-defined]
        problems = self._called("restore_snapshot")
        self._inner_counters = counters_inside(self.env.unwrapped)
        for problem in problems:
            if problem is not None:
                raise ValueError(problem)

    def _called(self, method: str) -> list[Any]:
        """Calls a method of every guard. A failure becomes a ValueError, because a run can go on without snapshots."""
        try:
            return list(self.env.call(method))  # type: ignore[attr-defined]
        except Exception as error:
            named = isinstance(error, EnvironmentFailure)
            raise ValueError(str(error) if named else f"{type(error).__name__}: {error}") from error

    def _began(self, ends: np.ndarray) -> np.ndarray:
        """Which environments were reset in the last step."""
        if self._mode is AutoresetMode.NEXT_STEP:
            return np.logical_or(*self._ended)
        return ends if self._mode is AutoresetMode.SAME_STEP else np.zeros_like(ends)

    def _faults(self, observations: Any, infos: dict[str, Any]) -> dict[int, Fault]:
        faults = wrong_values(self._checked_parts, observations)
        if FAULT in infos:
            faults_by_env, mask = infos.pop(FAULT), infos.pop(f"_{FAULT}")
            faults.update({int(index): faults_by_env[index] for index in np.flatnonzero(mask)})
        return faults

    def _final_faults(self, rewards: np.ndarray, infos: dict[str, Any]) -> dict[int, Fault]:
        """Faults in the final observations of a step, which count even if the reset afterwards succeeded."""
        faults = not_finite(rewards, "reward")
        if self._mode is AutoresetMode.SAME_STEP and "_final_obs" in infos:
            for index in np.flatnonzero(infos["_final_obs"]):
                for fault in wrong_values(self._checked_parts, infos["final_obs"][index], single=True).values():
                    faults.setdefault(int(index), fault)
        return faults

    def _restart(self, index: int, fault: Fault | None, infos: dict[str, Any], when: str) -> Any:
        """Replaces an environment, until one works or too many have failed. Returns the observations of all."""
        while fault is not None:
            self._count(index, fault, when)
            self._restarts[index] += 1
            seed = self._seeds[index]
            if seed is not None:
                seed = integer_seed(np.random.SeedSequence((int(seed), int(self._restarts[index]))))
            try:
                observations, info = self.env.restart(index, seed)  # type: ignore[attr-defined]
                fault = info.pop(FAULT, None) or wrong_values(self._checked_parts, observations).get(index)
            except (EnvironmentFailure, UserError) as error:
                fault = Fault(f"failed again: {error}", error.__cause__)
        self.env._add_info(infos, info, index)
        return observations

    def _count(self, index: int, fault: Fault, when: str) -> None:
        """Logs a failure, or raises it if there were too many, or if a new environment would fail in the same way."""
        if self._steps - self._failed_at[index] >= STEPS_TO_RECOVER:
            self._in_a_row[index] = 0
        self._in_a_row[index] += 1
        self._failed_at[index] = self._steps
        self.failures += 1
        message = f"{self._name_of(index)} {fault} ({when} {self._steps})"
        if not fault.lasting:
            if self._all_fail_at_once:
                message += ", and so does every environment in its first step"
            elif self._in_a_row[index] <= self._max_failures:
                frames = user_frames(fault.__cause__) if self.failures == 1 else ""
                outcome = "a new environment takes its place, and the aborted episode is left out"
                log.warning("%s; %s%s", message, outcome, frames and f"\n{frames}")
                return
            elif self._max_failures:
                message += (
                    f", failure number {self._in_a_row[index]} in a row, of which {self._max_failures} are allowed"
                )
        raise EnvironmentFailure(message) from fault.__cause__

    def _name_of(self, index: int | None) -> str:
        return self.name if index is None else self.numbering.named(self.name, index)

    def _raise_named(self, error: BaseException, when: str) -> NoReturn:
        reraise_of_signal_handler(error)
        if isinstance(error, UserError):
            raise error
        if isinstance(error, Fault):
            name = self._name_of(error.index)
            raise EnvironmentFailure(f"{name} {error} ({when} {self._steps})") from error.__cause__
        raise EnvironmentFailure(f"{self.name} {describe_exception(error)} ({when} {self._steps})") from error


def guarded(env: VectorEnv) -> GuardedVectorEnv:
    """Puts a guard around a vector environment, unless it has one."""
    return env if isinstance(env, GuardedVectorEnv) else GuardedVectorEnv(env, type(env.unwrapped).__name__)
