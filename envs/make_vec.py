"""`make_vec`: checked vector environments from Gymnasium ids, functions or `VectorEnv`s."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv

from rl_lnlstm.envs.env_maker import EnvMaker, make_async, make_sync
from rl_lnlstm.envs.faults import Numbering
from rl_lnlstm.envs.registry import EnvSource, construction, find_spec, offers_vector_entry_point, vector_creator
from rl_lnlstm.envs.vector_guard import GuardedVectorEnv
from rl_lnlstm.envs.wrappers import Wrapper, wrapper_from_name
from rl_lnlstm.errors import UserError

# Info keys that this package or Gymnasium uses for something other than a number.
RESERVED = "action_mask", "final_obs", "final_info"
# Arguments that turn off a default of Atari's vector implementation: it clips rewards, and scores would be wrong.
UNLESS_GIVEN = {"reward_clipping": False, "episodic_life": False}


# A long function, because its documentation is long. The body only checks arguments and chooses an implementation.
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
    info_keys: Sequence[str] = (),
    mask_key: str | None = None,
    numbering: Numbering | None = None,
) -> VectorEnv:
    """Makes a vector environment that copies and checks its data, and replaces environments that fail.

    Args:
        env: a Gymnasium id; "module:id", where importing the module registers the id; or a function that makes a new
            `gymnasium.Env` at each call. A `VectorEnv` is only wrapped: apart from `info_keys` and `mask_key`, the
            other arguments do not apply.
        num_envs: number of environments, at least 1.
        vectorization: how the environments are stepped.

            - "sync": one after the other in this process.
            - "async": each in a process of its own.
            - "vector_entry_point": by the vector implementation that the id was registered with. Atari's implementation
              clips rewards by default; here it does so only if `env_kwargs` ask for it.
            - "auto": by the vector implementation, if there is one that supports the autoreset mode and the keyword
              arguments, and there are no wrappers; otherwise "sync".
        autoreset_mode: when an environment is reset after an episode's end; an `AutoresetMode`, its name or its value.
        wrappers: applied to each environment, the first one innermost: functions, or names of Gymnasium's wrappers or
            "module:Name", with arguments in parentheses if they need any, such as "FrameStackObservation(4)".
        render_mode: passed to each environment, unless it is None.
        env_kwargs: keyword arguments for each environment.
        max_failures: the number of times in a row that an environment may fail and be replaced. Failures are in a row
            if there are fewer than 100 steps between them. With "vector_entry_point" no failure is allowed, because
            single environments cannot be replaced.
        timeout: seconds that a step, a reset, the constructor or `close` may take with "async"; None for no limit. A
            constructor may always take 20 s, and a `close` never more than 60 s. With "sync" there is no limit, because
            nothing can be interrupted safely in this process.
        info_keys: names of numbers or bools to take from the info of an episode's last step, such as "is_success". You
            find them in the `info` of each `Episode` of a `Stepper`. Numbers in a dict are named "key/inner key".
        mask_key: the entry of a `Dict` observation that is the action mask. It moves from the observation (and its
            space) to `infos["action_mask"]`, from where masks are read.
        numbering: the numbers of the environments in messages, if they are a part of those of a run.

    Returns:
        A vector environment with `metadata["autoreset_mode"]`. It guarantees:

        - Environments get copies of actions, which are elements of their action space.
        - Observations, rewards (floats) and ends (bools) are new arrays with the shapes and dtypes of the spaces.
        - Infos contain only action masks, `info_keys`, `final_obs` and `final_info`.

        An environment fails if it raises, dies, takes longer than `timeout`, or returns NaN or infinity in a reward or
        in a floating-point part of the observation. It also fails if it breaks a rule: a wrong shape or dtype, or a
        value outside a `Discrete`, `MultiDiscrete` or `MultiBinary` space. In this case a new environment would do the
        same, so `max_failures` does not apply. `reset` and `step` raise `EnvironmentFailure` if an environment fails
        too often. The message names the environment and the step, counted in calls of `step`.

        A new environment is reset with a seed that is derived from the seed of the last `reset` and the number of
        replacements. The step in which the old one failed returns the first observation and the info of the new
        episode, a reward of 0 and no end. `infos["rl_lnlstm.aborted"]` is true there if an episode was aborted. It is
        not if the failure was in the reset after an episode.

    Raises:
        UserError: an argument is not as described, the id is unknown, a package that the environment needs is not
            installed, or a wrapper (such as `NormalizeObservation`) learns statistics, which would not be saved with a
            policy.
        EnvironmentFailure: an environment raised while it was made, or took too long.
    """
    info_keys = _checked_keys(info_keys)
    if isinstance(env, GuardedVectorEnv):
        _check_as_made(env, info_keys, mask_key)
        return env
    if isinstance(env, VectorEnv):
        return GuardedVectorEnv(env, type(env.unwrapped).__name__, info_keys=info_keys, mask_key=mask_key)
    if hasattr(env, "step_wait") and hasattr(env, "env_method"):
        raise UserError(
            f"env is a {type(env).__name__} of Stable-Baselines3, which is not a gymnasium.vector.VectorEnv: give a "
            "Gymnasium id, or a function that makes a single environment; to evaluate in it, use "
            "stable_baselines3.common.evaluation.evaluate_policy, which takes policies of this package"
        )
    if not (isinstance(env, str) or callable(env)):
        raise UserError(
            f"env: expected a Gymnasium id, a function that makes an environment, or a VectorEnv, got {env!r}"
        )
    if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
        raise UserError(f"num_envs={num_envs!r}: expected an integer of at least 1")
    mode = _autoreset_mode(autoreset_mode)
    around = tuple(wrapper_from_name(wrapper) if isinstance(wrapper, str) else wrapper for wrapper in wrappers)
    numbering = numbering or Numbering(0, int(num_envs))
    source = find_spec(env) if isinstance(env, str) else env
    name = _name_of(source)
    kwargs = dict(env_kwargs or {})
    if render_mode is not None:
        kwargs["render_mode"] = render_mode

    if uses_vector_entry_point(source, vectorization, mode, around, kwargs):
        vector_env = _from_vector_entry_point(source, name, int(num_envs), mode, around, kwargs)
    elif vectorization in ("auto", "sync", "async"):
        makers = [
            EnvMaker(source, numbering.named(name, index), kwargs, around, info_keys) for index in range(num_envs)
        ]
        vector_env = (
            make_async(makers, name, mode, timeout, numbering) if vectorization == "async" else make_sync(makers, mode)
        )
        if isinstance(source, EnvSpec):
            vector_env.spec = copy.deepcopy(source)
            vector_env.spec.kwargs |= kwargs
            if around:
                vector_env.spec.kwargs["wrappers"] = around  # as Gymnasium's make_vec
    else:
        raise UserError(f"vectorization={vectorization!r}: expected 'auto', 'sync', 'async' or 'vector_entry_point'")
    return GuardedVectorEnv(vector_env, name, max_failures, info_keys, mask_key, numbering)


def _name_of(source: EnvSource) -> str:
    """The name of the environments in messages."""
    if isinstance(source, EnvSpec):
        return source.id
    while isinstance(source, functools.partial):
        source = source.func
    return getattr(source, "__name__", type(source).__name__)


def uses_vector_entry_point(
    source: EnvSource,
    vectorization: str,
    mode: AutoresetMode,
    wrappers: Sequence[str | Wrapper],
    kwargs: Mapping[str, Any],
) -> bool:
    """Whether `make_vec` makes the vector implementation of an id with these arguments, and no single environments."""
    if vectorization == "auto":
        return not wrappers and offers_vector_entry_point(source, mode, kwargs)
    return vectorization == "vector_entry_point"


def take_snapshot(envs: VectorEnv) -> list[bytes]:
    """Pickles the current state of `envs`, made by `make_vec`, including random generators, with cloudpickle.

    Raises:
        ValueError: an environment cannot be pickled; the message says why.
    """
    assert isinstance(envs, GuardedVectorEnv)
    return envs.take_snapshot()


def restore_snapshot(envs: VectorEnv, parts: Sequence[bytes]) -> None:
    """Restores the state of `envs` from the result of `take_snapshot`. Unpickling can execute code from it.

    Raises:
        ValueError: it cannot be restored; the message says why. Reset the environments before you step them again.
    """
    assert isinstance(envs, GuardedVectorEnv)
    envs.restore_snapshot(parts)


def _checked_keys(info_keys: Sequence[str]) -> tuple[str, ...]:
    if isinstance(info_keys, str) or not all(isinstance(key, str) for key in info_keys):
        raise UserError(f"info_keys={info_keys!r}: expected a sequence of strings")
    for key in info_keys:
        if key in RESERVED:
            raise UserError(f"info_keys: {key!r} is no number, got {info_keys!r}")
    return tuple(info_keys)


def _check_as_made(env: GuardedVectorEnv, info_keys: tuple[str, ...], mask_key: str | None) -> None:
    made_with = None if env.mask_entry is None else env.mask_entry.key
    if info_keys not in ((), env.info_keys) or mask_key not in (None, made_with):
        raise UserError(
            f"pass info_keys={info_keys!r} and mask_key={mask_key!r} to the call of make_vec that made the "
            f"environments; it got {env.info_keys!r} and {made_with!r}"
        )


def _autoreset_mode(mode: str | AutoresetMode) -> AutoresetMode:
    for known in AutoresetMode:
        if mode in (known, known.value) or (isinstance(mode, str) and mode.upper() == known.name):
            return known
    names = ", ".join(known.name for known in AutoresetMode)
    raise UserError(f"autoreset_mode={mode!r}: expected one of {names}")


def _from_vector_entry_point(
    source: EnvSource,
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
    with construction(name, kwargs):
        parameters = inspect.signature(vector_creator(source)).parameters
        kwargs = {**{key: value for key, value in UNLESS_GIVEN.items() if key in parameters}, **kwargs}
        if "autoreset_mode" in parameters:
            kwargs = {**kwargs, "autoreset_mode": mode.value}
        vector_env = gym.make_vec(source, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    offered = vector_env.metadata.get("autoreset_mode")
    if offered is not mode:
        vector_env.close()
        raise UserError(f"autoreset_mode={mode.name}: the vector entry point of {name} offers {offered} only")
    return vector_env
