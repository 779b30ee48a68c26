"""Gymnasium's ids: finding their specifications, the packages that register them, and similar ids."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cloudpickle
import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AutoresetMode

from rl_lnlstm.envs.faults import FAILURES, reraise_of_signal_handler
from rl_lnlstm.errors import EnvironmentFailure, UserError, missing_package

EnvSource = EnvSpec | Callable[..., gym.Env]  # what environments are made from

# Packages that do not register their ids by themselves: the start of the ids, the module to import, and the package to
# install
REGISTERED_BY = {
    "ALE/": ("ale_py", "atari"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "BabyAI-": ("minigrid", "minigrid"),
}

# Our extras by what the message about a missing package names
EXTRAS = {
    "box2d": "box2d",
    "mujoco": "mujoco",
    "classic": "classic-control",
    "pygame": "classic-control",
    "cv2": "atari",
}


def find_spec(env_id: str) -> EnvSpec:
    """The specification of an id, or of "module:id".

    Raises:
        UserError: the module cannot be imported, a package is not installed, or the id is unknown.
    """
    module, _, registered_id = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UserError(
                f"environment id {env_id!r}: module {module!r} cannot be imported, {type(error).__name__}: {error}"
            ) from error
    for prefix, (package, extra) in REGISTERED_BY.items():
        if not module and registered_id.startswith(prefix):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise missing_package(env_id, error, f"rl-lnlstm[{extra}]") from error
    if registered_id in gym.registry:
        return gym.registry[registered_id]
    by_lower = {known.lower(): known for known in gym.registry}
    near = [by_lower[match] for match in difflib.get_close_matches(registered_id.lower(), by_lower, n=5, cutoff=0.5)]
    hint = f"the nearest known ones are {', '.join(near)}" if near else "no known one is similar"
    if not module and registered_id.isidentifier() and _is_module(registered_id):
        hint = f"it is a module, so write {registered_id}:ID, with an id that it registers"
    raise UserError(
        f"unknown environment id {env_id!r}: {hint} (an id of another package is written 'module:id', "
        "with the module that registers it)"
    )


def may_be_registered(env_id: str) -> bool:
    """Whether an id is registered, or begins like the ids of a package that is imported only when it is needed."""
    return env_id in gym.registry or env_id.startswith(tuple(REGISTERED_BY))


@contextlib.contextmanager
def construction(what: str, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """A context manager that turns exceptions while an environment is made into errors that name it.

    Raises:
        UserError: a package is not installed, or the environment does not take `kwargs`.
        EnvironmentFailure: the environment raised something else.
    """
    try:
        yield
    except (UserError, EnvironmentFailure):
        raise
    except (DependencyNotInstalled, ImportError) as error:
        extra = next((extra for word, extra in EXTRAS.items() if word in str(error).lower()), None)
        raise missing_package(what, error, extra and f"rl-lnlstm[{extra}]") from error
    except FAILURES as error:
        reraise_of_signal_handler(error)
        text = str(error)
        refused = "unexpected keyword argument" in text or "takes no arguments" in text
        if kwargs and refused and isinstance(error, TypeError):
            if "render_mode" in kwargs and ("argument 'render_mode'" in text or len(kwargs) == 1):
                raise UserError(
                    f"{what} does not take render_mode={kwargs['render_mode']!r}, which videos need: give its "
                    "constructor an argument render_mode, and let render() return an RGB array"
                ) from error
            raise UserError(f"{what} does not take env_kwargs={kwargs}: {error}") from error
        raise EnvironmentFailure(f"{what} could not be made, {type(error).__name__}: {error}") from error


def offers_vector_entry_point(source: EnvSource, mode: AutoresetMode, kwargs: Mapping[str, Any]) -> bool:
    """Whether an id has a vector implementation that supports the mode and the arguments. Makes no environment.

    The arguments are also those of the registration, to which `gymnasium.make_vec` adds the time limit.
    """
    if not isinstance(source, EnvSpec) or source.vector_entry_point is None:
        return False
    if source.additional_wrappers or source.kwargs.get("wrappers") or source.kwargs.get("vector_kwargs"):
        return False  # `gymnasium.make_vec` refuses them
    passed = (source.kwargs.keys() | kwargs.keys()) - {"num_envs", "vectorization_mode", "wrappers", "vector_kwargs"}
    if source.max_episode_steps is not None:
        passed.add("max_episode_steps")
    with construction(source.id, kwargs):
        creator = vector_creator(source)
    parameters = inspect.signature(creator).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    takes_mode = "autoreset_mode" in parameters or getattr(creator, "metadata", {}).get("autoreset_mode") is mode
    return takes_mode and (takes_any or passed <= parameters.keys())


def vector_creator(source: EnvSpec) -> Any:
    """The class or the function that makes the id's vector implementation."""
    entry_point = source.vector_entry_point
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def portable(spec: EnvSpec) -> EnvSpec:
    """A specification that also works in another process, where the user's script has not run."""
    if isinstance(spec.entry_point, str) and spec.entry_point.startswith("__main__:"):
        creator: Any = load_env_creator(spec.entry_point)
        return dataclasses.replace(spec, entry_point=creator)
    return spec


def pickled_registrations() -> dict[str, bytes]:
    """The specifications of all ids, pickled one by one for another process; without those that cannot be pickled."""
    pickled = {}
    for env_id, spec in gym.registry.items():
        with contextlib.suppress(Exception):
            pickled[env_id] = cloudpickle.dumps(portable(spec))
    return pickled


def register(pickled: Mapping[str, bytes]) -> None:
    """Registers the ids of another process that are unknown here, except for those whose module is not found here."""
    for env_id, content in pickled.items():
        if env_id not in gym.registry:
            with contextlib.suppress(Exception):
                gym.registry[env_id] = cloudpickle.loads(content)


def _is_module(name: str) -> bool:
    with contextlib.suppress(ImportError, ValueError):  # ValueError: a module without a specification
        return importlib.util.find_spec(name) is not None
    return False
