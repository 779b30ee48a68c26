"""Setting up a trainer: its configuration, environments and policy, from the arguments of `PPO`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import VectorEnv

from rl_lnlstm.config import AUTO, EnvironmentOptions, PPOConfig, make_config, upgraded
from rl_lnlstm.envs import make_vec
from rl_lnlstm.envs.faults import Numbering
from rl_lnlstm.envs.foreign_envs import ExistingEnv
from rl_lnlstm.envs.vector_guard import GuardedVectorEnv
from rl_lnlstm.errors import UserError
from rl_lnlstm.evaluation.environments import make_evaluation_envs
from rl_lnlstm.option_types import tuple_if_list
from rl_lnlstm.policies import POLICIES, RecurrentPolicy, policy_for
from rl_lnlstm.policies.loading import call_without_fixed_options, options_taken
from rl_lnlstm.seeding import derived_seed

GivenEnv = str | Callable[..., gym.Env] | gym.Env | VectorEnv
GivenPolicy = str | RecurrentPolicy | type[RecurrentPolicy]

# Arguments of `gymnasium.make` and `make_vec` that change no task
NOT_OF_THE_TASK = "render_mode", "num_envs", "vectorization_mode", "autoreset_mode"


class HasSpaces(Protocol):
    """Vector environments, or a collector: what has the spaces of a single environment."""

    single_observation_space: gym.Space
    single_action_space: gym.Space


def configuration(policy: GivenPolicy, env: GivenEnv, given: dict[str, Any]) -> PPOConfig:
    """Completes the given options with those that follow from the policy and the environment.

    Raises:
        UserError: an option is wrong or unknown, or differs from the given policy's.
    """
    options = upgraded(given)
    if isinstance(env, VectorEnv):
        options.setdefault("num_envs", env.num_envs)
    elif isinstance(env, gym.Env) and options.setdefault("num_envs", 1) != 1:
        raise UserError(
            f"num_envs is {options['num_envs']}, but an environment object is only one environment: give its id or a "
            "function that makes one"
        )
    options["env_id"] = _name_of(env)
    if isinstance(policy, str):
        options["policy"] = policy
    elif isinstance(policy, type):
        if not issubclass(policy, RecurrentPolicy):
            raise UserError(f"policy must be a subclass of RecurrentPolicy, got {policy.__name__}")
        options["policy"] = policy.__name__
    elif isinstance(policy, RecurrentPolicy):
        options["policy"] = type(policy).__name__
        check_agreement(cast(RecurrentPolicy, policy), options)
    else:
        raise UserError(
            f"policy must be {AUTO!r}, the name of a policy class, a policy class or a policy, got {policy!r:.100}"
        )
    return make_config(**options)


def _name_of(env: GivenEnv) -> str:
    """The id of an environment; for one that its id alone does not make again, a name that is no id."""
    if isinstance(env, str):
        return env
    # A spec need not come from Gymnasium. For example, envpool's has no id.
    spec = getattr(env, "spec", None)
    env_id = getattr(spec, "id", None)
    if env_id is None:
        return getattr(env, "__name__", None) or str(env)
    return env_id if isinstance(spec, EnvSpec) and _is_made_by_id(env) else f"{type(env).__name__}({env_id})"


def _is_made_by_id(env: Any) -> bool:
    """Whether the environment has no wrappers, arguments or time limit but those of its registration."""
    if isinstance(env, GuardedVectorEnv):
        env = env.env
    registered = gym.registry.get(env.spec.id)
    if registered is None or (isinstance(env, VectorEnv) and env is not env.unwrapped):
        return False
    same = env.spec.additional_wrappers == registered.additional_wrappers
    arguments = {name: value for name, value in env.spec.kwargs.items() if name not in NOT_OF_THE_TASK}
    limit = arguments.pop("max_episode_steps", env.spec.max_episode_steps)  # an argument of vector implementations
    same &= data_equivalence(arguments, registered.kwargs, exact=True)  # they may be arrays
    return same and limit == registered.max_episode_steps


def check_makes_more(env: GivenEnv, why: str) -> None:
    """Raises `UserError` if `env` is an object, which cannot make further environments.

    Args:
        env: as for `PPO`.
        why: why further environments are needed, for the message.
    """
    if isinstance(env, VectorEnv | gym.Env):
        given = "a VectorEnv" if isinstance(env, VectorEnv) else "an environment object"
        raise UserError(f"{why}: expected env to be an id or a function that makes an environment, got {given}")


def make_environments(env: GivenEnv, config: PPOConfig, num_envs: int, numbering: Numbering | None = None) -> VectorEnv:
    """Makes `num_envs` environments as configured; `numbering` as for `make_vec`."""
    tolerance = config.fault_tolerance
    if isinstance(env, gym.Env | VectorEnv):
        _check_options_of_made(env, config)
    if isinstance(env, gym.Env):
        env = ExistingEnv(env)
        tolerance = {**tolerance, "max_failures": 0}  # a failed environment object cannot be replaced
    return make_vec(
        env,
        num_envs,
        vectorization=config.vectorization,
        wrappers=config.wrappers,
        env_kwargs=config.env_kwargs,
        info_keys=config.info_keys,
        mask_key=config.mask_key,
        numbering=numbering,
        **tolerance,
    )


def _check_options_of_made(env: gym.Env | VectorEnv, config: PPOConfig) -> None:
    """Raises `UserError` for options that environments that the user made cannot follow."""
    if isinstance(env, VectorEnv):
        if config.wrappers or config.env_kwargs:
            raise UserError(
                "wrappers and env_kwargs need an id or a function that makes an environment, got a VectorEnv"
            )
        if config.vectorization in ("sync", "async"):
            raise UserError(
                f"vectorization is {config.vectorization!r}, but a VectorEnv is stepped as it was made: give an id or "
                "a function that makes one environment"
            )
    elif config.vectorization not in (AUTO, "sync"):
        raise UserError(
            f"vectorization is {config.vectorization!r}, but an environment object can only be stepped in this "
            "process: give its id or a function that makes one"
        )
    possible = {"max_env_failures": 0, "env_timeout": None}  # beside the defaults
    if isinstance(env, GuardedVectorEnv):
        del possible["max_env_failures"]  # `make_vec` may have made it, which replaces failed environments
    for name, allowed in possible.items():
        if (value := getattr(config, name)) not in (allowed, getattr(EnvironmentOptions, name)):
            raise UserError(
                f"{name} is {value!r}, but an environment that was made before cannot be made again after a failure: "
                "give an id or a function that makes one environment, or make the VectorEnv with make_vec, which has "
                "max_failures and timeout"
            )


def make_envs_like_training(
    env: str | Callable[..., gym.Env], config: PPOConfig, num_envs: int, trained_on: gym.Space
) -> VectorEnv:
    """Makes environments like the training environments, which can be seeded one by one, if possible.

    Args:
        env: the id, or the function that makes an environment.
        config: the configuration.
        num_envs: number of environments.
        trained_on: the policy's observation space.
    """
    return make_evaluation_envs(
        env,
        num_envs,
        "async" if config.vectorization == "async" else AUTO,
        trained_on,
        wrappers=config.wrappers,
        env_kwargs=config.env_kwargs,
        mask_key=config.mask_key,
        **config.fault_tolerance,
    )


def make_policy(policy: GivenPolicy, config: PPOConfig, given: Mapping[str, Any], envs: HasSpaces) -> RecurrentPolicy:
    """Returns the policy if one was given; otherwise builds one of the given class for the spaces of `envs`.

    Args:
        policy: as for `PPO`.
        config: the configuration.
        given: the options that the user gave. The class must accept these.
        envs: has the spaces of the environments.

    Raises:
        UserError: there is no such class, or it does not accept the options.
    """
    observation_space = envs.single_observation_space
    if isinstance(policy, type):
        policy_class = policy
    elif not isinstance(policy, str):
        return cast(RecurrentPolicy, policy)
    elif policy == AUTO:
        policy_class = policy_for(observation_space)
    elif policy in POLICIES:
        policy_class = POLICIES[policy]
    else:
        raise UserError(f"policy must be {AUTO} or one of {', '.join(POLICIES)}, got {policy!r}")
    options = {**config.policy_options, "seed": derived_seed(config.seed, "policy")}
    asked = {name: options[name] for name in upgraded(given) if options.get(name) is not None}
    if options["encoder_layers"] is None:
        del options["encoder_layers"]  # the default; policies with a given encoder do not accept this option
    taken = options_taken(policy_class, options)
    if refused := asked.keys() - taken.keys() - {"seed"}:
        raise UserError(f"{min(refused)}: {policy_class.__name__} does not take this option")
    action_space = envs.single_action_space
    made, _ = call_without_fixed_options(lambda **taken: policy_class(observation_space, action_space, **taken), taken)
    check_agreement(made, asked)
    return made


def check_agreement(policy: RecurrentPolicy, options: dict[str, Any]) -> None:
    """Raises `UserError` if an option of the network differs from the policy's."""
    for name, has in dataclasses.asdict(policy.options).items():
        wanted = options.get(name)
        if wanted is not None and tuple_if_list(wanted) != has:
            raise UserError(
                f"{name} is {wanted!r}, but the given policy has {has!r}: leave the option out, or build the policy "
                "with it"
            )
