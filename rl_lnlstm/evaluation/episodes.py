"""The loop that runs whole episodes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv

from rl_lnlstm.envs.autoreset import Episode, Stepper
from rl_lnlstm.envs.faults import environment_name
from rl_lnlstm.envs.foreign_envs import clear_async_pipes
from rl_lnlstm.errors import EnvironmentFailure, UserError, warn
from rl_lnlstm.evaluation.plans import InOrder, Plan
from rl_lnlstm.evaluation.record import STATE, EpisodeArrays, Outcome, Recorder
from rl_lnlstm.evaluation.video import FrameRecorder, rgb
from rl_lnlstm.option_types import Count, checked
from rl_lnlstm.policies.critic_entries import accepts, lacks_critic_entries
from rl_lnlstm.spaces import map_leaves

MAX_ABORTED = 100  # aborted episodes in a row; without a limit, an environment that always fails would run forever
MAX_SHOWN_ACTIONS = 4  # number of actions listed on a picture
MAX_STEPS = 10_000  # limit of an episode's steps, if the environment has no time limit


class PredictingPolicy(Protocol):
    """The method of a policy that evaluation needs. Policies of Stable-Baselines3 have it too."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[Any, Any]:
        """Returns actions and the new state. Arguments `action_masks` and `rng` are optional."""


class EvaluatedEpisode(NamedTuple):
    """A whole episode.

    Attributes:
        number: its number in the evaluation, from 0.
        seed: the seed that its environment was reset with; None if environments cannot be seeded one by one.
        episode_return: sum of its rewards, undiscounted.
        length: in frames.
        cut: whether the limit of steps cut it.
        arrays: the recorded arrays; empty if it was not recorded.
    """

    number: int
    seed: int | None
    episode_return: float
    length: int
    cut: bool
    arrays: EpisodeArrays


class EpisodeRunner:
    """Runs the episodes of a plan, and yields each one when it ends.

    Args:
        policy: the policy that acts.
        envs: the environments to act in.
        plan: which episodes to run.
        deterministic: take the most probable actions; otherwise sample.
        max_steps: limit of an episode's steps; None for `MAX_STEPS` if the environment has no time limit of its own.
        record: whether to record the episodes as arrays.
        video: records pictures; None for no videos. The plan must be `InOrder`.

    Raises:
        UserError: the environments have other spaces than the policy.
        EnvironmentFailure: an environment failed more often than it may.
    """

    def __init__(
        self,
        policy: Any,
        envs: VectorEnv,
        plan: Plan,
        deterministic: bool = True,
        max_steps: int | None = None,
        record: bool = False,
        video: FrameRecorder | None = None,
    ) -> None:
        check_spaces(policy, envs)
        checked("max_steps", max_steps, Count | None)
        self.envs, self.plan, self.video = envs, plan, video
        self._has_time_limit = has_time_limit(envs)
        self._limit = max_steps or (None if self._has_time_limit else MAX_STEPS)
        self._recorder = (
            Recorder(envs.single_observation_space, envs.single_action_space, envs.num_envs) if record else None
        )
        if video is not None and isinstance(plan, InOrder):
            plan.before_reset = self._before_reset
        self._stepper = plan.start(envs)
        self._actor = _Actor(policy, self._stepper, plan, deterministic)
        self._aborted = np.zeros(envs.num_envs, int)  # in a row

    def __iter__(self) -> Iterator[EvaluatedEpisode]:
        while (self.plan.numbers >= 0).any() or self.plan.begin_again(self._stepper):
            yield from self._advance()

    def _advance(self) -> Iterator[EvaluatedEpisode]:
        """Steps all environments once, and yields the episodes that ended."""
        numbers, seeds = self.plan.numbers.copy(), list(self.plan.seeds)
        running = numbers >= 0
        if self.video is not None:
            self._add_pictures(running, self.video)
        before = {} if self._recorder is None else self._actor.inputs()
        actions = self._actor.act()
        step = self._stepper.step(actions)
        self._actor.rewarded(step.rewards)
        if self._recorder is not None:
            self._recorder.add(step.valid & running, {**before, "actions": actions, "rewards": step.rewards})
        if step.aborted is not None and step.aborted.any():
            self._abort(step.aborted)
        final = self._stepper.observations if step.final_observations is None else step.final_observations
        for episode in step.episodes:
            index = episode.environment
            if running[index]:
                outcome = Outcome(bool(step.terminations[index]), bool(step.truncations[index]))
                yield self._finished(episode, int(numbers[index]), seeds[index], final, outcome)
                self.plan.ended(index)
            self._aborted[index] = 0
        if self._limit is not None:
            yield from self._cut((self._stepper.lengths >= self._limit) & (self.plan.numbers >= 0))

    def _finished(
        self, episode: Episode, number: int, seed: int | None, final: Any, outcome: Outcome, cut: bool = False
    ) -> EvaluatedEpisode:
        if self.video is not None:
            self.video.end(number, episode.episode_return)
        recorder = self._recorder
        arrays = {} if recorder is None else recorder.take(episode.environment, final, outcome)
        if arrays and seed is not None:
            arrays["seed"] = np.asarray(seed)
        return EvaluatedEpisode(number, seed, episode.episode_return, episode.length, cut, arrays)

    def _cut(self, rows: np.ndarray) -> Iterator[EvaluatedEpisode]:
        """Ends the episodes that have reached the limit of steps."""
        if not rows.any():
            return
        cause = (
            "max_steps (--max-steps) is less than the environment's time limit"
            if self._has_time_limit
            else "its environment has no time limit, which you can add with gymnasium.wrappers.TimeLimit (--wrappers "
            "'TimeLimit(1000)'); max_steps (--max-steps) allows longer episodes"
        )
        name = environment_name(self.envs)
        warn(f"an episode of {name} did not end within {self._limit:,} steps and was cut there: {cause}")
        lengths, returns = self._stepper.lengths, self._stepper.returns
        self._add_last_pictures(rows, lengths)
        for index in np.flatnonzero(rows).tolist():
            episode = Episode(index, float(returns[index]), int(lengths[index]))
            number, seed = int(self.plan.numbers[index]), self.plan.seeds[index]
            yield self._finished(episode, number, seed, self._stepper.observations, Outcome(False, True), cut=True)
            self.plan.ended(index)
            self._aborted[index] = 0
        self.plan.give_up(self._stepper, rows, again=False)

    def _abort(self, rows: np.ndarray) -> None:
        """Leaves out the episodes in which the environment failed."""
        self._aborted += rows
        if self._recorder is not None:
            self._recorder.drop(rows)
        for index in np.flatnonzero(rows).tolist():
            if self.video is not None and self.plan.numbers[index] >= 0:
                self.video.drop(int(self.plan.numbers[index]))
        if self._aborted.max() >= MAX_ABORTED:
            raise EnvironmentFailure(
                f"{environment_name(self.envs)} failed in {MAX_ABORTED} episodes in a row, and finished none"
            )
        self.plan.give_up(self._stepper, rows, again=True)

    def _add_pictures(self, rows: np.ndarray, video: FrameRecorder) -> None:
        """Adds the pictures before a step to the videos."""
        pictures: Any = self.envs.render()
        if pictures is None or pictures[0] is None:
            raise UserError(f"{environment_name(self.envs)} returns no pictures with render_mode='rgb_array'")
        opinions = self._actor.opinions() if video.captioned else [[]] * len(rows)
        lengths, returns = self._stepper.lengths, self._stepper.returns
        for index in np.flatnonzero(rows).tolist():
            seed, step, episode_return = self.plan.seeds[index], lengths[index], returns[index]
            caption = [f"seed {seed}   step {step}   return {episode_return:.6g}", *opinions[index]]
            video.add(int(self.plan.numbers[index]), seed, rgb(pictures[index]), caption)

    def _before_reset(self, ended: np.ndarray) -> None:
        self._add_last_pictures(ended, self._stepper.lengths + 1)  # the stepper has not counted this step yet

    def _add_last_pictures(self, rows: np.ndarray, lengths: np.ndarray) -> None:
        """Adds the last pictures of episodes of these lengths to the videos, before their environments are reset."""
        if self.video is None:
            return
        pictures: Any = self.envs.render()
        for index in np.flatnonzero(rows & (self.plan.numbers >= 0)).tolist():
            seed = self.plan.seeds[index]
            caption = [f"seed {seed}   step {lengths[index]}   end of the episode"]
            self.video.add(int(self.plan.numbers[index]), seed, rgb(pictures[index]), caption)


class _Actor:
    """Asks the policy for actions, and keeps its state."""

    def __init__(self, policy: Any, stepper: Stepper, plan: Plan, deterministic: bool) -> None:
        self.policy, self.stepper, self.plan, self.deterministic = policy, stepper, plan, deterministic
        self.state: Any = None
        parameters = inspect.signature(policy.predict).parameters
        self._masked = stepper.action_masks is not None and "action_masks" in parameters
        self._seeded = plan.generators is not None and "rng" in parameters and not deterministic
        # TensorFlow rounds differently for another number of rows. Row by row, results do not depend on it. Without
        # convolutions, a graph would take four times as long for 8 rows, so there they may differ in the last digits.
        held_noise = not deterministic and getattr(getattr(policy, "options", None), "std", None) == "gsde"
        depends_on_batch = getattr(policy, "is_convolutional", False) and not getattr(policy, "acts_row_by_row", False)
        self._one_by_one = plan.generators is not None and depends_on_batch and not held_noise

    def act(self) -> Any:
        """The actions of all environments."""
        stepper, options = self.stepper, dict[str, Any]()
        if self._masked:
            options["action_masks"] = stepper.action_masks
        if self._seeded:
            options["rng"] = self.plan.generators
        if not self._one_by_one:
            actions, self.state = self.policy.predict(
                stepper.observations, self.state, stepper.episode_starts, self.deterministic, **options
            )
            return actions
        return self._act_one_by_one(options)

    def _act_one_by_one(self, options: dict[str, Any]) -> Any:
        stepper, envs = self.stepper, self.stepper.envs
        state = self.policy.initial_state(envs.num_envs) if self.state is None else self.state
        actions, states = [], []
        for index in range(envs.num_envs):
            row = slice(index, index + 1)
            action, after = self.policy.predict(
                _rows(envs.single_observation_space, stepper.observations, row),
                tuple(part[row] for part in state),
                stepper.episode_starts[row],
                self.deterministic,
                **{name: values[row] for name, values in options.items()},
            )
            actions.append(action)
            states.append(after)
        self.state = tuple(np.concatenate(parts) for parts in zip(*states, strict=True))
        return map_leaves(lambda _, *parts: np.concatenate(parts), envs.single_action_space, *actions)

    def rewarded(self, rewards: np.ndarray) -> None:
        """Passes the rewards to a policy with `previous_reward`."""
        if getattr(self.policy, "previous_reward", False):
            self.state = self.policy.rewarded(self.state, rewards)

    def inputs(self) -> dict[str, Any]:
        """The inputs of the next actions and, for a policy of this package, its values and its state."""
        # Copy, because a step may overwrite the arrays of the step before.
        parts = {"observations": copy.deepcopy(self.stepper.observations)}
        if self._masked:
            parts["action_masks"] = self.stepper.action_masks
        if not hasattr(self.policy, "initial_state"):
            return parts
        starts = self.stepper.episode_starts
        state = self.policy.initial_state(len(starts)) if self.state is None else self.state
        if not lacks_critic_entries(self.policy, self.stepper.observations):
            parts["values"] = self.policy.value(self.stepper.observations, state, starts)
        for name, part in zip(STATE, state, strict=False):
            parts[name] = np.where(starts[:, np.newaxis], np.zeros_like(part), part)
        return parts

    def opinions(self) -> list[list[str]]:
        """Lines of text for each environment: the value of its state, and the probabilities of actions."""
        stepper, policy = self.stepper, self.policy
        count = stepper.envs.num_envs
        if not hasattr(policy, "initial_state"):  # of another package
            return [[] for _ in range(count)]
        state = policy.initial_state(count) if self.state is None else self.state
        given = stepper.observations, state, stepper.episode_starts
        lines: list[list[str]] = [[] for _ in range(count)]
        if not lacks_critic_entries(policy, stepper.observations):
            lines = [[f"value {value:.4g}"] for value in np.asarray(policy.value(*given)).tolist()]
        if isinstance(stepper.envs.single_action_space, gym.spaces.Discrete):
            masks = {"action_masks": stepper.action_masks} if self._masked else {}
            for row, chances in zip(lines, policy.distribution(*given, **masks).probabilities, strict=True):
                has_room = len(chances) <= MAX_SHOWN_ACTIONS
                likely = range(len(chances)) if has_room else np.argsort(-chances)[:MAX_SHOWN_ACTIONS]
                row.append("actions " + "  ".join(f"{action}: {chances[action]:.2f}" for action in likely))
        return lines


def _rows(space: gym.Space, structure: Any, rows: slice) -> Any:
    return map_leaves(lambda _, part: part[rows], space, structure)


def check_spaces(policy: Any, envs: Any, learning: bool = False) -> None:
    """Raises `UserError` unless the policy was made for the spaces of the environments.

    Entries of observations that only the critic sees may be missing, unless the policy is `learning` there.
    """
    for kind in ("observation", "action"):
        made_for, got = getattr(policy, f"{kind}_space"), getattr(envs, f"single_{kind}_space")
        if made_for != got and (learning or kind == "action" or not accepts(policy, got)):
            raise UserError(f"the policy was made for {kind} space {made_for}, but the environment has {got}")


def has_time_limit(envs: VectorEnv) -> bool:
    """Whether the environments have a time limit: a wrapper `TimeLimit`, or that of a vector implementation."""
    base = envs.unwrapped
    if not isinstance(base, SyncVectorEnv | AsyncVectorEnv):
        return envs.spec is not None and envs.spec.max_episode_steps is not None
    clear_async_pipes(base)
    return all(base.call("has_wrapper_attr", "_max_episode_steps"))  # TimeLimit's; it may be in another process
