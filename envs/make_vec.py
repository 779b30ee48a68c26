"""Vector environments from Gymnasium ids or functions, whose failures are named and, if wanted, survived."""

import contextlib
import copy
import dataclasses
import difflib
import importlib
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

from rl_lnlstm.envs import snapshot
from rl_lnlstm.envs.faults import ABORTED, FAULT, Fault, float_paths, forget, not_finite
from rl_lnlstm.envs.workers import WorkerVectorEnv
from rl_lnlstm.envs.wrappers import Wrapper, wrapper_from_name
from rl_lnlstm.errors import EnvironmentFailure, UserError

log = logging.getLogger(__name__)

STEPS_TO_RECOVER = 100

# Packages that are no plugins of Gymnasium's, by how their ids begin: what to import, and what to install
REGISTERED_BY = {"ALE/": ("ale_py", "ale-py"), "MiniGrid-": ("minigrid", "minigrid")}


def make_vec(
    env: str | Callable[..., gym.Env] | VectorEnv,
    num_envs: int = 1,
    *,
    vectorization: str = "auto",
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    wrappers: Sequence[str | Wrapper] = (),
    render_mode: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    max_failures: int = 0,
    timeout: float | None = None,
) -> VectorEnv:
    """Makes a vector environment, one whose failures say which environment and which step it was.

    Args:
        env: a Gymnasium id, "module:id" (the module, imported first, registers the id), or a function that makes a new
            `gymnasium.Env` at each call. A `VectorEnv` is only guarded: the other
            arguments do not apply.
        num_envs: number of environments, at least 1.
        vectorization: "sync", one after the other in this process; "async", a process for each;
            "vector_entry_point", the vectorised implementation that the id was registered with; or "auto", that
            implementation if there is one, it offers the autoreset mode, it takes the keyword arguments and there are
            no wrappers, otherwise "sync".
        autoreset_mode: when an environment whose episode ended is reset, an `AutoresetMode` or its name or value.
        wrappers: applied to each environment, the first one innermost: functions, or names of Gymnasium's wrappers or
            "module:Name", with arguments in parentheses if they need any, such as "FrameStackObservation(4)".
        render_mode: handed to each environment, unless it is None.
        env_kwargs: keyword arguments for each environment.
        max_failures: how often in a row, with fewer than 100 steps in between, an environment may fail and is made
            anew. Vectorised implementations, whose environments cannot be made one by one, may never.
        timeout: seconds that a step or a reset may take with "async"; None for any time. Nothing can be interrupted
            safely in this process: with "sync", an environment that hangs makes it hang.

    Returns:
        A vector environment with `metadata["autoreset_mode"]`. An environment fails if it raises, dies, takes longer
        than `timeout`, or returns an observation or a reward that is not finite. (Only floating-point Box observations
        are looked at, also inside of Dict and Tuple.) `reset` and `step` raise `EnvironmentFailure` if one failed more
        often than it may. The message names the environment and the step: the number of calls of `step` since the
        vector environment was made.

        An environment that is made anew is reset with a seed that follows from that of the last `reset` and the number
        of times. The step in which it failed returns the first observation of its new episode, the reset's info, no
        reward and no end; `infos["rl_lnlstm.aborted"]` is true there, if an episode was broken off: it is not if
        only the reset after an episode failed.

    Raises:
        UserError: an argument is not as described, no such id is known, or a package that the environment needs is not
            installed.
        EnvironmentFailure: an environment raised while it was made.
    """
    if isinstance(env, _GuardedVectorEnv):
        return env
    if isinstance(env, VectorEnv):
        return _GuardedVectorEnv(env, type(env.unwrapped).__name__)
    if not (isinstance(env, str) or callable(env)):
        raise UserError(
            f"env: expected a Gymnasium id, a function that makes an environment, or a VectorEnv, got {env!r}"
        )
    if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise UserError(f"num_envs={num_envs!r}: expected an integer of at least 1")
    mode = _autoreset_mode(autoreset_mode)
    around = [wrapper_from_name(wrapper) if isinstance(wrapper, str) else wrapper for wrapper in wrappers]
    source = _find_spec(env) if isinstance(env, str) else env
    name = source.id if isinstance(source, EnvSpec) else getattr(env, "__name__", type(env).__name__)
    kwargs = dict(env_kwargs or {})
    if render_mode is not None:
        kwargs["render_mode"] = render_mode

    if vectorization == "auto":
        own = not around and _offers(source, mode, kwargs)
        vectorization = "vector_entry_point" if own else "sync"
    if vectorization == "vector_entry_point":
        vector_env = _from_vector_entry_point(source, name, int(num_envs), mode, around, kwargs)
    elif vectorization in ("sync", "async"):
        makers = [
            _EnvMaker(source, f"{name} (environment {index} in 0..{num_envs - 1})", kwargs, tuple(around))
            for index in range(num_envs)
        ]
        vector_env = _make_sync(makers, mode) if vectorization == "sync" else _make_async(makers, name, mode, timeout)
        if isinstance(source, EnvSpec):
            vector_env.spec = copy.deepcopy(source)
            vector_env.spec.kwargs.update(kwargs)
    else:
        raise UserError(f"vectorization={vectorization!r}: expected 'auto', 'sync', 'async' or 'vector_entry_point'")
    return _GuardedVectorEnv(vector_env, name, max_failures)


def take_snapshot(envs: VectorEnv) -> list[bytes]:
    """What `envs`, made by `make_vec`, is at this moment, random generators included; pickled by cloudpickle.

    Raises:
        ValueError: an environment cannot be pickled; the message says why.
    """
    assert isinstance(envs, _GuardedVectorEnv)
    return envs.take_snapshot()


def restore_snapshot(envs: VectorEnv, parts: Sequence[bytes]) -> None:
    """Makes `envs` what it was when `take_snapshot` returned `parts`. Unpickling executes what they say.

    Raises:
        ValueError: it cannot; the message says why. Reset the environments before they are stepped again.
    """
    assert isinstance(envs, _GuardedVectorEnv)
    envs.restore_snapshot(parts)


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.value) or (isinstance(mode, str) and mode.upper() == known.name):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise UserError(f"autoreset_mode={mode!r}: expected one of {names}")


def _find_spec(env_id: str) -> EnvSpec:
    module, _, registered_id = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UserError(
                f"environment id {env_id!r}: module {module!r} cannot be imported, {type(error).__name__}: {error}"
            ) from error
    for prefix, (package, to_install) in REGISTERED_BY.items():
        if not module and registered_id.startswith(prefix):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise UserError(f"{env_id} needs a package that is not installed: pip install {to_install}") from error
    if registered_id in gym.registry:
        return gym.registry[registered_id]
    by_lower = {known.lower(): known for known in gym.registry}
    near = [by_lower[match] for match in difflib.get_close_matches(registered_id.lower(), by_lower, n=5, cutoff=0.5)]
    hint = f"the nearest known ones are {', '.join(near)}" if near else "no known one is similar"
    raise UserError(
        f"unknown environment id {env_id!r}: {hint} (an id of another package is written 'module:id', "
        "with the module that registers it)"
    )


@contextlib.contextmanager
def _construction(what: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except (UserError, EnvironmentFailure):
        raise
    except (DependencyNotInstalled, ImportError) as error:
        raise UserError(f"{what} needs a package that is not installed: {error}") from error
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            raise UserError(f"{what} does not take env_kwargs={kwargs}: {error}") from error
        raise EnvironmentFailure(f"{what} could not be made, {type(error).__name__}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _EnvMaker:
    source: EnvSpec | Callable[..., gym.Env]
    name: str
    kwargs: dict[str, Any]
    wrappers: tuple[Wrapper, ...]
    registrations: dict[str, EnvSpec] = dataclasses.field(default_factory=dict)

    def __call__(self) -> gym.Env:
        for env_id, spec in self.registrations.items():
            gym.registry.setdefault(env_id, spec)
        with _construction(self.name, self.kwargs):
            if isinstance(self.source, EnvSpec):
                env = gym.make(self.source, disable_env_checker=True, **self.kwargs)
            else:
                env = self.source(**self.kwargs)
            if not isinstance(env, gym.Env):
                raise UserError(f"env: expected a function that makes a gymnasium.Env, got one that makes {env!r}")
            for wrapper in self.wrappers:
                env = wrapper(env)
            return _Guard(env)


class _Guard(gym.Wrapper):
    """Answers also when its environment raises: with nothing, and the fault in the info.

    It also takes and restores snapshots, in whatever process it is.
    """

    to_restore: bytes = b""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._ended = False  # the episode: the vector environment keeps it to itself
        self._reset_next = False

    def take_snapshot(self) -> bytes | str:
        """The environment as bytes, or why it cannot be had."""
        try:
            return snapshot.to_bytes((self._ended, self.env))
        except ValueError as error:
            return str(error)

    def restore_snapshot(self) -> str | None:
        """Takes up the environment that `to_restore` holds, or says why it cannot."""
        try:
            self._ended, self.env = snapshot.from_bytes(self.to_restore)
        except ValueError as error:
            return str(error)
        self._reset_next = self._ended
        return None

    def call_unless_ended(self, method: str) -> Any:
        """What that method of the environment returns; None, and it is not called, once the episode has ended."""
        return None if self._ended else self.env.get_wrapper_attr(method)()

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        return self.env.spec  # the guard is no part of what gymnasium.make has to make again

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self._reset_next:
            observation, info = self.reset()
            return observation, 0.0, False, False, info
        try:
            result = self.env.step(action)
            self._ended = result[2] or result[3]
        except Exception as error:
            return self._nothing(), 0.0, False, False, {FAULT: Fault(f"raised {_named(error)}", error)}
        return result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._ended = self._reset_next = False
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            return self._nothing(), {FAULT: Fault(f"raised {_named(error, ' in reset')}", error)}

    def _nothing(self) -> Any:
        space = self.observation_space
        return next(iterate(batch_space(space, 1), create_empty_array(space, 1)))


def _named(error: Exception, when: str = "") -> str:
    return f"{type(error).__name__}{when}: {error}"


class _GuardedVectorEnv(VectorWrapper):
    """Names environment and step of each failure, and has environments that failed made anew; see `make_vec`.

    Checking that values are finite is here, once for all environments, because here it costs least.

    Attributes:
        failures: how many there were.
    """

    _STATE = ("failures", "_steps", "_ended", "_seeds", "_restarts", "_in_a_row", "_failed_at")

    def __init__(self, env: VectorEnv, name: str, max_failures: int = 0) -> None:
        super().__init__(env)
        self.name = name
        self.failures = 0
        self._max_failures = max_failures if self._holds_guards() else 0
        self._steps = 0
        self._float_paths = [
            ("observation" + "".join(f"[{key!r}]" for key in path), path)
            for path in float_paths(env.single_observation_space)
        ]
        self._ended: Any = np.zeros((2, env.num_envs), bool)  # terminations and truncations of the last step
        self._seeds: list[int | None] = [None] * env.num_envs
        # By environment: how often it was made anew, failures in a row, and the step of the last one.
        self._restarts, self._in_a_row, self._failed_at = np.zeros((3, env.num_envs), int)

    def __getattr__(self, attribute: str) -> Any:
        # `envs`, `call`, `get_attr` and the like, which VectorWrapper does not pass on
        if attribute.startswith("_") or attribute == "env":
            raise AttributeError(attribute)
        return getattr(self.env, attribute)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._steps += 1
        try:
            result = self.env.step(actions)
        except Exception as error:
            self._raise_named(error, "at step")
        observations, rewards, _, _, infos = result
        faults = self._faults(observations, infos)
        final_faults = self._final_faults(rewards, infos)
        if faults or final_faults:
            result = self._survive(result, faults, final_faults)
        self._ended = result[2:4]
        return result

    def _survive(self, result: Any, faults: dict[int, Fault], final_faults: dict[int, Fault]) -> Any:
        """What `step` returns instead of `result`."""
        observations, rewards, terminations, truncations, infos = result
        aborted = ~self._began(terminations | truncations)
        aborted[list(final_faults)] = True
        faults = {**faults, **final_faults}
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
        if seed is not None:
            self._seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else list(seed)
        try:
            observations, infos = self.env.reset(seed=seed, options=options)
        except Exception as error:
            self._raise_named(error, "in the reset after step")
        for index, fault in sorted(self._faults(observations, infos).items()):
            observations = self._restart(index, fault, infos, "in the reset after step")
        self._ended = np.zeros((2, self.num_envs), bool)
        return observations, infos

    def get_state(self) -> dict[str, Any]:
        """What it has counted, for `set_state`; the environments are `take_snapshot`'s."""
        return {name: getattr(self, name) for name in self._STATE}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on counting from where `get_state` was called."""
        for name in self._STATE:
            setattr(self, name, state[name])

    def take_snapshot(self) -> list[bytes]:
        """See `rl_lnlstm.envs.take_snapshot`."""
        if not self._holds_guards():
            return [snapshot.to_bytes(vars(self.env))]
        parts = list(self.env.call("take_snapshot"))  # type: ignore[attr-defined]
        for part in parts:
            if isinstance(part, str):
                raise ValueError(part)
        return parts

    def restore_snapshot(self, parts: Sequence[bytes]) -> None:
        """See `rl_lnlstm.envs.restore_snapshot`."""
        expected = self.num_envs if self._holds_guards() else 1
        if len(parts) != expected:
            raise ValueError(f"expected {expected} snapshots, got {len(parts)}")
        if not self._holds_guards():
            attributes = snapshot.from_bytes(parts[0])
            vars(self.env).clear()
            vars(self.env).update(attributes)
            return
        self.env.reset()  # the vector environment's own notes of which episodes ended are void
        self.env.set_attr("to_restore", list(parts))  # type: ignore[attr-defined]
        for problem in self.env.call("restore_snapshot"):  # type: ignore[attr-defined]
            if problem is not None:
                raise ValueError(problem)

    def _holds_guards(self) -> bool:
        return isinstance(self.env, _RestartingSyncVectorEnv | WorkerVectorEnv)

    def _began(self, ends: np.ndarray) -> np.ndarray:
        """The environments that were reset in the last step."""
        mode = self.metadata.get("autoreset_mode")
        if mode is AutoresetMode.NEXT_STEP:
            return np.logical_or(*self._ended)
        return ends if mode is AutoresetMode.SAME_STEP else np.zeros_like(ends)

    def _faults(self, observations: Any, infos: dict[str, Any]) -> dict[int, Fault]:
        faults = self._not_finite(observations)
        if FAULT in infos:
            told, mask = infos.pop(FAULT), infos.pop(f"_{FAULT}")
            faults.update({int(index): told[index] for index in np.flatnonzero(mask)})
        return faults

    def _final_faults(self, rewards: np.ndarray, infos: dict[str, Any]) -> dict[int, Fault]:
        """What is wrong with a step even if its environment was reset well after it."""
        faults = not_finite(rewards, "reward")
        if "_final_obs" in infos:
            for index in np.flatnonzero(infos["_final_obs"]):
                for fault in self._not_finite(infos["final_obs"][index], single=True).values():
                    faults.setdefault(int(index), fault)
        return faults

    def _not_finite(self, observations: Any, single: bool = False) -> dict[int, Fault]:
        faults: dict[int, Fault] = {}
        for what, path in self._float_paths:
            values = observations
            for key in path:
                values = values[key]
            found = not_finite(np.asarray(values)[None] if single else np.asarray(values), what)
            if found:
                faults = {**found, **faults}
        return faults

    def _restart(self, index: int, fault: Fault | None, infos: dict[str, Any], when: str) -> Any:
        """Has an environment made anew, until one works or too many have failed; returns the observations of all."""
        while fault is not None:
            self._count(index, fault, when)
            self._restarts[index] += 1
            seed = self._seeds[index]
            if seed is not None:
                seed = int(np.random.SeedSequence((int(seed), int(self._restarts[index]))).generate_state(1)[0])
            try:
                observations, info = self.env.restart(index, seed)  # type: ignore[attr-defined]
                fault = info.pop(FAULT, None) or self._not_finite(observations).get(index)
            except (EnvironmentFailure, UserError) as error:
                fault = Fault(f"failed again: {error}", error.__cause__)
        self.env._add_info(infos, info, index)
        return observations

    def _count(self, index: int, fault: Fault, when: str) -> None:
        """Reports a failure, or raises it if it is one too many."""
        if self._steps - self._failed_at[index] >= STEPS_TO_RECOVER:
            self._in_a_row[index] = 0
        self._in_a_row[index] += 1
        self._failed_at[index] = self._steps
        self.failures += 1
        message = f"{self.name} (environment {index} in 0..{self.num_envs - 1}) {fault} ({when} {self._steps})"
        if self._in_a_row[index] <= self._max_failures:
            log.warning("%s; it is made anew, and its broken episode left out", message)
            return
        if self._max_failures:
            message += f", failure number {self._in_a_row[index]} in a row, of which {self._max_failures} are allowed"
        raise EnvironmentFailure(message) from fault.__cause__

    def _raise_named(self, error: Exception, when: str) -> NoReturn:
        if isinstance(error, UserError):
            raise error
        raise EnvironmentFailure(f"{self.name} raised {_named(error)} ({when} {self._steps})") from error


class _RestartingSyncVectorEnv(SyncVectorEnv):
    """One in which an environment can be put in the place of one that failed."""

    def restart(self, index: int, seed: int | None) -> tuple[Any, dict[str, Any]]:
        """Makes an environment anew and resets it; returns the observations of all, and its info."""
        envs: list[gym.Env] = self.envs
        with contextlib.suppress(Exception):
            envs[index].close()
        envs[index] = self.env_fns[index]()
        self._env_obs[index], info = envs[index].reset(seed=seed)
        self._autoreset_envs[index] = False
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return copy.deepcopy(self._observations), info


def _make_sync(makers: Sequence[_EnvMaker], mode: AutoresetMode) -> VectorEnv:
    vector_env = _RestartingSyncVectorEnv(makers, autoreset_mode=mode)
    if len({id(env.unwrapped) for env in vector_env.envs}) < len(makers):
        raise UserError("env: expected a function that makes a new environment at each call, got the same one twice")
    return vector_env


def _offers(source: EnvSpec | Callable[..., gym.Env], mode: AutoresetMode, kwargs: Mapping[str, Any]) -> bool:
    """Whether an id was registered with a vector implementation that takes these, without making one."""
    if not isinstance(source, EnvSpec) or source.vector_entry_point is None:
        return False
    with _construction(source.id, kwargs):
        creator = _vector_creator(source)
    parameters = inspect.signature(creator).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    takes_mode = "autoreset_mode" in parameters or getattr(creator, "metadata", {}).get("autoreset_mode") is mode
    return takes_mode and (takes_any or kwargs.keys() <= parameters.keys())


def _vector_creator(source: EnvSpec) -> Any:
    entry_point = source.vector_entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def _from_vector_entry_point(
    source: EnvSpec | Callable[..., gym.Env],
    name: str,
    num_envs: int,
    mode: AutoresetMode,
    wrappers: Sequence[Wrapper],
    kwargs: dict[str, Any],
) -> VectorEnv:
    if not isinstance(source, EnvSpec) or source.vector_entry_point is None:
        raise UserError(f"vectorization='vector_entry_point': {name} has none, use 'sync' or 'async'")
    if wrappers:
        raise UserError(
            "wrappers: with vectorization='vector_entry_point' there are no single environments to wrap, use 'sync' or "
            "'async'"
        )
    with _construction(name, kwargs):
        if "autoreset_mode" in inspect.signature(_vector_creator(source)).parameters:
            kwargs = {**kwargs, "autoreset_mode": mode.value}
        vector_env = gym.make_vec(source, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    offered = vector_env.metadata.get("autoreset_mode")
    if offered is not mode:
        vector_env.close()
        raise UserError(f"autoreset_mode={mode.name}: the vector entry point of {name} offers {offered} only")
    return vector_env


def _make_async(makers: Sequence[_EnvMaker], name: str, mode: AutoresetMode, timeout: float | None) -> VectorEnv:
    registrations = {env_id: _portable(spec) for env_id, spec in gym.registry.items()}
    makers = [
        dataclasses.replace(
            maker,
            source=_portable(maker.source) if isinstance(maker.source, EnvSpec) else maker.source,
            registrations=registrations,
        )
        for maker in makers
    ]
    return WorkerVectorEnv(makers, name, mode, timeout)


def _portable(spec: EnvSpec) -> EnvSpec:
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        creator: Any = load_env_creator(spec.entry_point)
        return dataclasses.replace(spec, entry_point=creator)
    return spec
