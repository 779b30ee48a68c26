"""`Worker`: collects rollouts in a share of the environments, in a process of its own."""

from __future__ import annotations

import contextlib
import copy
import logging
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import cloudpickle
import gymnasium as gym

from rl_lnlstm.config import AUTO, PPOConfig
from rl_lnlstm.envs.faults import picklable
from rl_lnlstm.envs.registry import register
from rl_lnlstm.errors import UserError, run_warnings_to, warn
from rl_lnlstm.ppo.collectors.local import LocalCollector
from rl_lnlstm.ppo.collectors.share import Share
from rl_lnlstm.ppo.collectors.versions import check_versions
from rl_lnlstm.ppo.setup import GivenEnv

LOGGER = "rl_lnlstm"


class Setup(NamedTuple):
    """What a worker makes its environments from."""

    env: GivenEnv
    config: PPOConfig
    registrations: Mapping[str, bytes]  # the ids that are known in the training process
    versions: dict[str, str]  # in the training process


class WorkerDescription(NamedTuple):
    """What the training process must know of the environments."""

    observation_space: gym.Space
    action_space: gym.Space
    has_time_limit: bool


class WorkerState(NamedTuple):
    """A worker between two rollouts: another worker with this state continues bit for bit.

    Attributes:
        collector: see `LocalCollector.get_state`.
        snapshot: the environments, pickled; None if they cannot be pickled.
        problem: why there is no snapshot; "" if there is one.
        failures: how often an environment failed so far.
    """

    collector: dict[str, Any]
    snapshot: list[bytes] | None
    problem: str
    failures: int


class Message(NamedTuple):
    """A warning or a log record, for the training process to show: `level` is None for a `RunWarning`."""

    level: int | None
    text: str


class Answer(NamedTuple):
    """The answer to a call of a worker.

    Attributes:
        value: what the method returned; None if it raised.
        state: the state after it; None before `begin`.
        messages: what the worker would have printed.
        error: what it raised, or None.
        traceback: the text of the traceback of the error.
        seconds: how long the method ran.
    """

    value: Any
    state: WorkerState | None
    messages: list[Message]
    error: BaseException | None = None
    traceback: str = ""
    seconds: float = 0.0


class Worker:
    """Collects rollouts in a share of the environments.

    The training process calls `call` only. A worker that takes the place of another one makes the environments, takes
    the policy and the state, and runs the method, all in one call.

    Args:
        share: the environments.
    """

    def __init__(self, share: Share) -> None:
        self._share = share
        self._collector: LocalCollector | None = None
        self._policy: Any = None

    def call(
        self, method: str, setup: bytes | None, policy: bytes | None, state: WorkerState | None, *arguments: Any
    ) -> Answer:
        """Runs a method, and answers with its result or its error, and the state after it.

        Args:
            method: the name of the method.
            setup: a `Setup`, pickled; used in the first call.
            policy: the policy, pickled; used in the first call in which it is not None.
            state: the state to continue from; used together with the policy.
            *arguments: of the method.
        """
        with _messages() as messages:
            began = time.perf_counter()
            try:
                if self._collector is None and setup is not None:
                    self._collector = _make_collector(setup, self._share)
                if self._policy is None and policy is not None:
                    self._begin(policy, state)
                value = getattr(self, method)(*arguments)
                return Answer(value, self._state(), messages, seconds=time.perf_counter() - began)
            except Exception as error:
                return Answer(None, None, messages, picklable(error), "".join(traceback.format_exception(error)))

    def describe(self) -> WorkerDescription:
        """Describes the environments."""
        made = self._made_collector
        return WorkerDescription(made.single_observation_space, made.single_action_space, made.has_time_limit)

    def begin(self) -> None:
        """Does nothing: `call` has begun the first episodes."""

    def collect(self, weights: list[Any]) -> Any:
        """Collects the next rollout with these weights."""
        self._policy.set_weights(weights)
        return self._made_collector.collect()

    def restart(self, *numbers: int) -> None:
        """See `Collector`."""
        self._made_collector.restart(*numbers)

    def set_state(self, state: dict[str, Any], snapshot: list[bytes] | None) -> str | None:
        """See `Collector`."""
        # A copy, because what comes from another process may be read-only.
        return self._made_collector.set_state(copy.deepcopy(state), snapshot)

    @property
    def _made_collector(self) -> LocalCollector:
        assert self._collector is not None
        return self._collector

    def _begin(self, policy: bytes, state: WorkerState | None) -> None:
        collector, begun = self._made_collector, _unpickled(policy, "the policy")
        collector.begin(begun)
        self._policy = begun
        if state is not None and (problem := self.set_state(state.collector, state.snapshot)):
            warn(
                f"a new worker begins new episodes in environments {self._share.first} to "
                f"{self._share.numbers[-1]}: {state.problem or problem}"
            )
            # The old worker may have begun any number of episodes with the seeds that its environments had.
            collector.restart(state.collector["environments"]["_steps"], 0, 0)

    def _state(self) -> WorkerState | None:
        if self._policy is None:
            return None
        collector, snapshot, problem = self._made_collector, None, ""
        try:
            snapshot = collector.take_snapshot()
        except ValueError as error:
            problem = str(error)
        return WorkerState(collector.get_state(), snapshot, problem, collector.failures)


def _make_collector(setup: bytes, share: Share) -> LocalCollector:
    env, config, registrations, versions = _unpickled(setup, "the environment")
    check_versions(versions)
    register(registrations)
    collector = LocalCollector(env, config, share)
    return collector if config.vectorization != AUTO else _without_shared_generator(collector, env, config, share)


def _without_shared_generator(
    collector: LocalCollector, env: GivenEnv, config: PPOConfig, share: Share
) -> LocalCollector:
    """Replaces a vector implementation whose environments share a random generator by single environments.

    With a shared generator, an environment depends on those beside it, and therefore on the number of workers. If
    single environments have other spaces, as with Atari, the vector implementation stays.
    """
    vector = collector.envs.unwrapped
    if not hasattr(vector, "_np_random") or isinstance(vector, gym.vector.SyncVectorEnv | gym.vector.AsyncVectorEnv):
        return collector
    if isinstance(vector.np_random, tuple):  # a generator for each environment, as in the tasks of this package
        return collector
    copied = copy.copy(config)
    copied.vectorization = "sync"
    try:
        single = LocalCollector(env, copied, share)
    except UserError:  # for example env_kwargs that only the vector implementation takes
        return collector
    if single.single_observation_space != collector.single_observation_space:
        single.close()
        return collector
    collector.close()
    if share.first == 0:
        warn(
            f"the vector implementation of {config.env_id} has one random generator for all its environments: with "
            "workers, single environments are used, so the run equals a run in one process with vectorization sync"
        )
    return single


def _unpickled(content: bytes, what: str) -> Any:
    try:
        return cloudpickle.loads(content)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{what} cannot be loaded in a worker, {type(error).__name__}: {error}; every machine needs the same "
            "packages and modules"
        ) from error


class _Records(logging.Handler):
    def __init__(self, messages: list[Message]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(Message(record.levelno, record.getMessage()))


@contextlib.contextmanager
def _messages() -> Iterator[list[Message]]:
    """A context manager that collects `RunWarning`s and the records of this package, for the training process."""
    messages: list[Message] = []
    logger, handler = logging.getLogger(LOGGER), _Records(messages)
    propagated = logger.propagate
    with run_warnings_to(lambda text: messages.append(Message(None, text))):
        logger.addHandler(handler)
        logger.propagate = False
        try:
            yield messages
        finally:
            logger.removeHandler(handler)
            logger.propagate = propagated
