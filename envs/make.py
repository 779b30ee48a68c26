"""Vector environments from Gymnasium ids or functions, and errors that say which environment failed at which step."""

import contextlib
import copy
import dataclasses
import difflib
import importlib
import inspect
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from multiprocessing.connection import wait
from typing import Any, NoReturn

import cloudpickle
import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from gymnasium.vector.async_vector_env import AsyncState, _async_worker

from rl_lnlstm.envs.wrappers import Wrapper, wrapper_from_name
from rl_lnlstm.errors import EnvironmentFailure, UserError


def make_vec(
    env: str | Callable[..., gym.Env] | VectorEnv,
    num_envs: int = 1,
    *,
    vectorization: str = "sync",
    autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    wrappers: Sequence[str | Wrapper] = (),
    render_mode: str | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> VectorEnv:
    """Makes a vector environment, one whose failures say which environment and which step it was.

    Args:
        env: a Gymnasium id, "module:id" (the module, imported first, registers the id), or a function that makes a new
            `gymnasium.Env` at each call. A `VectorEnv` is only guarded: the other
            arguments do not apply.
        num_envs: number of environments, at least 1.
        vectorization: "sync", one after the other in this process; "async", a process for each; or
            "vector_entry_point", the vectorised implementation that the id was registered with.
        autoreset_mode: when an environment whose episode ended is reset, an `AutoresetMode` or its name or value.
        wrappers: applied to each environment, the first one innermost: functions, or names of Gymnasium's wrappers or
            "module:Name", with arguments in parentheses if they need any, such as "FrameStackObservation(4)".
        render_mode: handed to each environment, unless it is None.
        env_kwargs: keyword arguments for each environment.

    Returns:
        A vector environment with `metadata["autoreset_mode"]`. Its `reset` and `step` raise `EnvironmentFailure` if an
        environment raises, dies, or returns an observation or a reward that is not finite. (Only floating-point Box
        observations are looked at, also inside of Dict and Tuple.) The message names the environment and the step:
        the number of calls of `step` since the vector environment was made.

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

    if vectorization == "vector_entry_point":
        vector_env = _from_vector_entry_point(source, name, int(num_envs), mode, around, kwargs)
    elif vectorization in ("sync", "async"):
        makers = [
            _EnvMaker(source, f"{name} (environment {index} in 0..{num_envs - 1})", kwargs, tuple(around))
            for index in range(num_envs)
        ]
        vector_env = _make_sync(makers, mode) if vectorization == "sync" else _make_async(makers, name, mode)
        if isinstance(source, EnvSpec):
            vector_env.spec = copy.deepcopy(source)
            vector_env.spec.kwargs.update(kwargs)
    else:
        raise UserError(f"vectorization={vectorization!r}: expected 'sync', 'async' or 'vector_entry_point'")
    return _GuardedVectorEnv(vector_env, name)


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
    elif registered_id.startswith("ALE/"):
        try:
            importlib.import_module("ale_py")  # registers them: it is no plugin of Gymnasium's, as MiniGrid is
        except ImportError as error:
            raise UserError(f"{env_id} needs a package that is not installed: pip install ale-py") from error
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
            return _Guard(env, self.name)


class _Guard(gym.Wrapper):
    """Names the environment in what it raises; `_GuardedVectorEnv` adds the step."""

    def __init__(self, env: gym.Env, name: str) -> None:
        super().__init__(env)
        self._name = name

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        return self.env.spec  # the guard is no part of what gymnasium.make has to make again

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        try:
            return self.env.step(action)
        except Exception as error:
            raise EnvironmentFailure(f"{self._name} raised {type(error).__name__}: {error}") from error

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise EnvironmentFailure(f"{self._name} raised {type(error).__name__} in reset: {error}") from error


class _GuardedVectorEnv(VectorWrapper):
    """Adds the step to what an environment raises, and checks that what the environments return is finite.

    The check is here, once for all of them, because there it costs least.
    """

    def __init__(self, env: VectorEnv, name: str) -> None:
        super().__init__(env)
        self.name = name
        self._steps = 0
        self._float_paths = list(_float_paths(env.single_observation_space))

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
        if not _finite(rewards):
            self._refuse("reward", rewards, "at step")
        self._check(observations, "at step")
        if "_final_obs" in infos:
            for index in np.flatnonzero(infos["_final_obs"]):
                self._check(infos["final_obs"][index], "at step", int(index))
        return result

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        try:
            observations, infos = self.env.reset(seed=seed, options=options)
        except Exception as error:
            self._raise_named(error, "in the reset after step")
        self._check(observations, "in the reset after step")
        return observations, infos

    def _check(self, observations: Any, when: str, single: int | None = None) -> None:
        for path in self._float_paths:
            values = observations
            for key in path:
                values = values[key]
            values = np.asarray(values)
            if not _finite(values):
                what = "observation" + "".join(f"[{key!r}]" for key in path)
                self._refuse(what, values if single is None else values[None], when, single or 0)

    def _refuse(self, what: str, values: np.ndarray, when: str, first: int = 0) -> None:
        index, *component = np.argwhere(~np.isfinite(values))[0].tolist()
        where = f"[{', '.join(map(str, component))}]" if component else ""
        raise EnvironmentFailure(
            f"{self.name} (environment {first + index} in 0..{self.num_envs - 1}) returned "
            f"{values[(index, *component)]} in {what}{where} ({when} {self._steps})"
        )

    def _raise_named(self, error: Exception, when: str) -> NoReturn:
        if isinstance(error, UserError):
            raise error
        if isinstance(error, EnvironmentFailure):
            raise EnvironmentFailure(f"{error} ({when} {self._steps})") from error.__cause__
        what = f"raised {type(error).__name__}: {error}"
        if isinstance(self.env, AsyncVectorEnv) and isinstance(error, EOFError | ConnectionError):
            what = f"lost a worker process: {_dead_workers(self.env)}"
            self.env.close(terminate=True)  # the others may hold answers that nobody will fetch
        raise EnvironmentFailure(f"{self.name} {what} ({when} {self._steps})") from error


def _dead_workers(vector_env: AsyncVectorEnv) -> str:
    processes = vector_env.processes
    wait([process.sentinel for process in processes], timeout=5)
    return ", ".join(
        f"environment {index} in 0..{len(processes) - 1} ended with exit code {process.exitcode}"
        for index, process in enumerate(processes)
        if process.exitcode is not None
    )


def _finite(values: np.ndarray) -> bool:
    # The product is not finite if any value is not, at less than half the cost of the exact test; but it may overflow.
    return isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def _float_paths(space: gym.Space, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        yield path
    elif isinstance(space, gym.spaces.Dict):
        for key, subspace in space.spaces.items():
            yield from _float_paths(subspace, (*path, key))
    elif isinstance(space, gym.spaces.Tuple):
        for index, subspace in enumerate(space.spaces):
            yield from _float_paths(subspace, (*path, index))


def _make_sync(makers: Sequence[_EnvMaker], mode: AutoresetMode) -> VectorEnv:
    vector_env = SyncVectorEnv(makers, autoreset_mode=mode)
    if len({id(env.unwrapped) for env in vector_env.envs}) < len(makers):
        raise UserError("env: expected a function that makes a new environment at each call, got the same one twice")
    return vector_env


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
        raise UserError("wrappers: with vectorization='vector_entry_point' there are no single environments to wrap")
    with _construction(name, kwargs):
        entry_point = source.vector_entry_point
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        if "autoreset_mode" in inspect.signature(creator).parameters:
            kwargs = {**kwargs, "autoreset_mode": mode.value}
        vector_env = gym.make_vec(source, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    offered = vector_env.metadata.get("autoreset_mode")
    if offered is not mode:
        vector_env.close()
        raise UserError(f"autoreset_mode={mode.name}: the vector entry point of {name} offers {offered} only")
    return vector_env


def _make_async(makers: Sequence[_EnvMaker], name: str, mode: AutoresetMode) -> VectorEnv:
    registrations = {env_id: _portable(spec) for env_id, spec in gym.registry.items()}
    makers = [
        dataclasses.replace(
            maker,
            source=_portable(maker.source) if isinstance(maker.source, EnvSpec) else maker.source,
            registrations=registrations,
        )
        for maker in makers
    ]
    try:
        cloudpickle.dumps(makers)
    except Exception as error:
        raise UserError(f"{name}: cannot be sent to a worker process, {type(error).__name__}: {error}") from error

    # Not fork: a child of a process in which TensorFlow runs threads inherits locks that nobody will release. A fork
    # server is started afresh, has no such threads, and forks workers as fast; it imports Gymnasium once for all.
    context = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    if context == "forkserver":
        multiprocessing.get_context(context).set_forkserver_preload(["gymnasium.vector"])
    try:
        with _main_not_imported():
            return _WorkerVectorEnv(makers, context=context, worker=_worker, autoreset_mode=mode)
    except (EOFError, ConnectionError) as error:
        raise EnvironmentFailure(f"{name}: a worker process ended before its environment was made") from error


@contextlib.contextmanager
def _main_not_imported() -> Iterator[None]:
    # Except under fork, multiprocessing runs the user's script again in every worker, as a module: 12 s for 4 workers
    # instead of 0.2 s if it imports TensorFlow, and an endless recursion if it has no `if __name__ == "__main__"`.
    # Nothing needs it: what is defined in the script travels by value (cloudpickle), and so do its registrations.
    main = vars(sys.modules["__main__"])
    hidden: dict[str, Any] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.update(dict.fromkeys(hidden))
    try:
        yield
    finally:
        main.update(hidden)


def _portable(spec: EnvSpec) -> EnvSpec:
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        creator: Any = load_env_creator(spec.entry_point)
        return dataclasses.replace(spec, entry_point=creator)
    return spec


class _WorkerVectorEnv(AsyncVectorEnv):
    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], **kwargs: Any) -> None:
        self.parent_pipes, self.processes, self._state = [], [], AsyncState.DEFAULT  # for a close() half-way
        try:
            super().__init__(env_fns, **kwargs)
        except BaseException:
            self.close(terminate=True)
            raise

    def _raise_if_errors(self, successes: Iterable[bool]) -> None:
        # Gymnasium's raises the last error and logs the tracebacks of all. This raises that of the first environment,
        # with the worker's traceback as its cause.
        successes = list(successes)
        if all(successes):
            return
        failures = sorted((self.error_queue.get() for success in successes if not success), key=lambda f: f[0])
        pipes: list[Any] = self.parent_pipes
        for index, *_ in failures:
            pipes[index].close()
            pipes[index] = None
        self._state = AsyncState.DEFAULT
        _, _, error, trace = failures[0]
        raise error from _WorkerTraceback(trace)

    def close_extras(self, timeout: float | None = None, terminate: bool = False) -> None:
        # A call that Ctrl-C interrupted has left answers in some of the pipes, and waiting for all would never end.
        if self._state is not AsyncState.DEFAULT:
            self._state = AsyncState.DEFAULT
            terminate = True
        super().close_extras(timeout, terminate)


class _WorkerTraceback(Exception):
    def __str__(self) -> str:
        return "\n" + self.args[0]


def _worker(index: int, env_fn: Callable[[], gym.Env], pipe: Any, parent_pipe: Any, *rest: Any) -> None:
    # Ctrl-C in a terminal reaches the whole process group, but when to stop is for the parent to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        env = env_fn()
    except Exception as error:
        error_queue = rest[1]
        error_queue.put((index, type(error), error, traceback.format_exc()))
        pipe.recv()  # the parent's first command
        pipe.send((None, False))
    else:
        _async_worker(index, lambda: env, pipe, parent_pipe, *rest)
