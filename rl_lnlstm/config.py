"""`PPOConfig`: every option of a training run, with its type, range and meaning in one place.

A new option is one field here. The field gives the keyword argument of `PPO` (or of the policy, for `PolicyOptions`),
the command-line flag with its help text, the entry in `config.json`, and the check of type and range.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from rl_lnlstm.errors import UserError
from rl_lnlstm.option_types import (
    Count,
    Finite,
    Fraction,
    Index,
    NonNegative,
    Positive,
    SampleFrequency,
    checked,
    describe_options,
    metadata,
)
from rl_lnlstm.other_names import name_here
from rl_lnlstm.rollout_sizes import default_minibatches, default_sequence_length

AUTO = "auto"
BEFORE = {"rescale_actions": False, "vtrace": False}  # what versions without these options did
PolicyClass = typing.TypeVar("PolicyClass", bound=type)
FIXED = "fixed"  # marks an option that a resumed run must not change, because it would become a different run


@dataclasses.dataclass(kw_only=True)
class EnvironmentOptions:
    """The environment."""

    env_id: Annotated[str, FIXED] = "CartPoleNoVel-v1"
    """Gymnasium id of the environment, or module:id"""
    env_kwargs: Annotated[dict[str, bool | int | float | str], FIXED] = dataclasses.field(default_factory=dict)
    """keyword arguments for each environment, such as length=5 fast=true"""
    wrappers: Annotated[tuple[str, ...], FIXED] = ()
    """wrappers around each environment, the first one innermost: names from gymnasium.wrappers, or module:Name, with
    arguments in parentheses if the wrapper needs any, such as FrameStackObservation(4)"""
    num_envs: Count = 8
    """number of environments that are stepped together"""
    vectorization: Annotated[Literal["auto", "sync", "async", "vector_entry_point"], FIXED] = "auto"
    """sync: one environment after the other in this process; async: one process for each; vector_entry_point: the
    vector implementation of the id; auto: vector_entry_point if there is one and there are no wrappers, otherwise
    sync"""
    info_keys: tuple[str, ...] = ()
    """numbers in the info of an episode's last step, such as is_success; their means become metrics rollout/KEY"""
    mask_key: Annotated[str | None, FIXED] = None
    """the entry of a Dict observation that is the action mask, such as action_mask; the policy does not see it"""
    max_env_failures: Index = 10
    """if an environment raises, dies, hangs or returns NaN, it is replaced, and its episode is left out; the run stops
    when an environment fails more than this number of times in a row, with fewer than 100 steps in between"""
    env_timeout: Positive | None = 60.0
    """seconds that a step or a reset may take before the environment counts as hanging; None for no limit; only with
    vectorization async, because nothing can be interrupted safely in this process"""


@dataclasses.dataclass(kw_only=True)
class PolicyOptions:
    """The network. These are also the keyword arguments of the policy classes."""

    units: Annotated[Count, FIXED] = 128
    """units of each LSTM layer"""
    shared_lstm: Annotated[bool, FIXED] = True
    """actor and critic share their LSTM layers, which is faster; otherwise each has its own, which usually learns more
    from the same number of frames"""
    num_layers: Annotated[Count, FIXED] = 1
    """number of LSTM layers"""
    residual: Annotated[bool, FIXED] = False
    """add the input of each LSTM layer, except the first, to its output"""
    previous_action: Annotated[bool, FIXED] = False
    """the LSTM also sees the previous action"""
    previous_reward: Annotated[bool, FIXED] = False
    """the LSTM also sees the previous reward"""
    critic_keys: Annotated[tuple[str, ...], FIXED] = ()
    """entries of a Dict observation that only the critic sees, such as the state of a simulator; outer/inner is an
    entry of an inner Dict; acting, evaluation and exported policies need none of them"""
    encoder_layers: Annotated[tuple[Count, ...] | None, FIXED] = None
    """widths of the dense layers before the LSTM; None: 512 after convolutions, 64 otherwise"""
    head_layers: Annotated[tuple[Count, ...], FIXED] = (64,)
    """widths of the dense layers between the LSTM and each head"""
    activation: Annotated[str, FIXED] = "tanh"
    """activation of the dense layers: linear, relu, tanh or another elementwise activation of Keras"""
    normalize_observations: Annotated[bool, FIXED] = False
    """standardise floats and bytes in observations with their running means and standard deviations, which are saved
    with the policy; other integers, categories and byte images below 16 x 16 pixels stay as they are"""
    normalize_rewards: Annotated[bool, FIXED] = False
    """divide rewards by the running standard deviation of the discounted returns"""
    log_std_init: Annotated[Finite, FIXED] = -0.7
    """logarithm of the initial standard deviation of continuous actions; -0.7 is a standard deviation of 0.5, which
    Andrychowicz et al. (2021), "What matters in on-policy RL?", recommend for actions between -1 and 1"""
    std: Annotated[Literal["free", "network", "gsde"], FIXED] = "free"
    """standard deviation of continuous actions; free: separate weights, the same in every state; network: an output of
    the network; gsde: generalised state-dependent exploration, where the same state gives the same noise"""
    rescale_actions: Annotated[bool, FIXED] = True
    """continuous actions with two finite bounds are scaled from [-1, 1] to these bounds before they are sent to the
    environment; otherwise the policy acts in the units of the environment"""


@dataclasses.dataclass(kw_only=True)
class PPOOptions:
    """The algorithm."""

    num_steps: Annotated[Count, FIXED] = 128
    """steps of each environment in a rollout"""
    sequence_length: int | None = None
    """steps of backpropagation through time, a divisor of num_steps; None: 64 if that divides num_steps, otherwise
    num_steps, or less if there would be too few sequences for several minibatches"""
    learning_rate: Positive = 2e-3
    """learning rate of Adam"""
    anneal_lr: bool = True
    """decrease the learning rate linearly to 0 over total_timesteps"""
    gamma: Fraction = 0.99
    """discount per step"""
    gae_lambda: Fraction = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: Count | None = None
    """minibatches in an epoch; each consists of whole sequences; None: 8 if that divides the number of sequences,
    otherwise its largest divisor below 8"""
    update_epochs: Count = 5
    """passes over each rollout"""
    vtrace: bool = True
    """before each pass except the first, compute the advantages again with the current policy, by V-trace (Espeholt et
    al. 2018)"""
    clip_rewards: bool = False
    """learn from the sign of each reward only, as in Mnih et al. (2015); reports show the environment's own rewards"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: Positive = 0.2
    """clipping range of the probability ratio"""
    anneal_clip: bool = False
    """decrease the clipping range linearly to 0 over total_timesteps"""
    clip_vloss: bool = False
    """also clip the change of values, to clip_coef"""
    ent_coef: NonNegative = 0.0
    """weight of the entropy in the loss"""
    vf_coef: NonNegative = 0.5
    """weight of the value loss"""
    max_grad_norm: Positive = 0.5
    """gradients with a larger global norm are scaled down to this norm"""
    target_kl: Positive | None = None
    """stop an update early when the approximate KL divergence exceeds 1.5 times this"""
    sde_sample_freq: SampleFrequency = -1
    """with std gsde, number of steps after which new noise is drawn; -1: only at the start of each rollout"""
    max_skipped_updates: Index = 10
    """gradient steps whose loss or gradient is not finite are skipped; the run stops when all steps are skipped in more
    than this number of iterations in a row"""
    jit_compile: bool = True
    """compile the update with XLA: it takes some seconds at the start and makes updates about three times as fast;
    on a CPU, only Adam is compiled if the policy has convolutions, because XLA's convolutions are slow there"""


@dataclasses.dataclass(kw_only=True)
class WorkerOptions:
    """Workers on this or other machines."""

    ray: str | None = None
    """collect rollouts with workers of Ray; local: on this machine; HOST:PORT: on the cluster with this address; auto:
    on the cluster that runs on this machine; None: in this process; the run is the same, bit for bit, unless the policy
    has convolutions and acts through a TensorFlow graph (see "More than one machine" in the documentation)"""
    workers: Count | None = None
    """number of workers, a divisor of num_envs; None: as many as there are CPUs, if that divides num_envs, otherwise
    fewer"""
    worker_timeout: Positive | None = 600.0
    """seconds that a worker may take for a rollout before it counts as frozen and is replaced; None for no limit"""
    max_worker_failures: Index = 10
    """a worker that dies, freezes or cannot be reached is replaced; the run stops when this happens more than this
    number of times in a row, without a rollout in between in which all workers answer"""


@dataclasses.dataclass(kw_only=True)
class PPOConfig(PPOOptions, PolicyOptions, EnvironmentOptions, WorkerOptions):
    """Options of recurrent PPO. Names are the same as in CleanRL, if it has the option.

    Raises:
        UserError: an option has the wrong type or is out of range; the message names it.
    """

    total_timesteps: Count = 100_000
    """frames to train for, counted over all environments; the last rollout is finished"""
    seed: Annotated[Index, FIXED] = 0
    """seed of all random numbers: the same seed gives the same run"""
    policy: Annotated[str, FIXED] = AUTO
    """name of the policy class; auto chooses the one that suits the observations"""
    # PPO's defaults of these two differ from those of the policy classes, because most tasks are learnt in fewer frames
    # with separate layers and normalised rewards.
    shared_lstm: Annotated[bool, FIXED] = False
    """actor and critic share their LSTM layers, which is faster; otherwise each has its own, which usually learns more
    from the same number of frames"""
    normalize_rewards: Annotated[bool, FIXED] = True
    """divide rewards by the running standard deviation of the discounted returns"""

    eval_interval: Index = 0
    """iterations between evaluations with the most probable actions; the policy with the best result is kept; 0: no
    evaluations, and the last policy is kept"""
    n_eval_episodes: Count = 100
    """number of episodes in each of these evaluations; their frames are not counted"""

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for name, value in vars(self).items():
            setattr(self, name, checked(name, value, hints[name]))
        self._check_workers()
        if self.bptt_steps < 1 or self.num_steps % self.bptt_steps:
            raise UserError(
                f"sequence_length must divide num_steps, got sequence_length={self.sequence_length} and "
                f"num_steps={self.num_steps}"
            )
        if self.num_sequences % self.minibatches:
            raise UserError(
                f"num_minibatches must divide the number of sequences, because minibatches hold whole sequences: got "
                f"num_minibatches={self.num_minibatches} for {self.num_sequences} sequences (num_envs={self.num_envs} "
                f"times num_steps / sequence_length = {self.num_steps // self.bptt_steps})"
            )

    def _check_workers(self) -> None:
        if self.ray is None:
            if self.workers is not None:
                raise UserError(f"workers is {self.workers}, which needs Ray: give ray='local' (--ray local) as well")
            return
        _, colon, port = self.ray.rpartition(":")
        if self.ray not in ("local", AUTO) and not (colon and port.isdecimal() and "/" not in self.ray):
            raise UserError(
                f"ray must be local, auto or HOST:PORT, such as 10.0.0.1:6379, got {self.ray!r}; `ray start` prints "
                "the address of a cluster"
            )
        if self.workers is not None and self.num_envs % self.workers:
            raise UserError(
                f"workers must divide num_envs, because each has the same number of environments: got "
                f"workers={self.workers} and num_envs={self.num_envs}"
            )

    @property
    def bptt_steps(self) -> int:
        """`sequence_length`, or its default."""
        if self.sequence_length is not None:
            return self.sequence_length
        return default_sequence_length(self.num_envs, self.num_steps, self.num_minibatches)

    @property
    def num_sequences(self) -> int:
        """The number of sequences in a rollout."""
        return self.num_envs * (self.num_steps // self.bptt_steps)

    @property
    def minibatches(self) -> int:
        """`num_minibatches`, or its default."""
        return default_minibatches(self.num_sequences) if self.num_minibatches is None else self.num_minibatches

    @property
    def fault_tolerance(self) -> dict[str, Any]:
        """The arguments of `make_vec` about failures."""
        return {"max_failures": self.max_env_failures, "timeout": self.env_timeout}

    def to_json(self) -> dict[str, Any]:
        """The options as `config.json` holds them: with numbers for None, because a later version may choose others."""
        return {**dataclasses.asdict(self), "sequence_length": self.bptt_steps, "num_minibatches": self.minibatches}

    @property
    def policy_options(self) -> dict[str, Any]:
        """The options of the policy, as keyword arguments."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(PolicyOptions)}

    @classmethod
    def fixed(cls) -> frozenset[str]:
        """Names of the options that a resumed run cannot change."""
        return frozenset(name for name, hint in _hints(cls).items() if FIXED in metadata(hint))


def make_config(**options: Any) -> PPOConfig:
    """Makes a `PPOConfig`. The error for an unknown option suggests similar names."""
    options = upgraded(options)
    _check_names(options, PPOConfig)
    return PPOConfig(**options)


def make_policy_options(options: Mapping[str, Any]) -> PolicyOptions:
    """Makes `PolicyOptions`, and checks every option.

    Raises:
        UserError: an option is unknown, has the wrong type or is out of range; the message names it.
    """
    options = upgraded(options)
    _check_names(options, PolicyOptions)
    hints = _hints(PolicyOptions)
    return PolicyOptions(**{name: checked(name, value, hints[name]) for name, value in options.items()})


# `help(PPOConfig)` shows what each option means.
PPOConfig.__doc__ = f"{inspect.getdoc(PPOConfig)}\n\nOptions:\n{describe_options(PPOConfig)}\n"


def with_options(policy_class: PolicyClass) -> PolicyClass:
    """Appends `PolicyOptions`, with their defaults and meanings, to the docstring of a policy class."""
    policy_class.__doc__ = f"{policy_class.__doc__}\nOptions:\n{describe_options(PolicyOptions)}\n"
    return policy_class


def _check_names(options: Mapping[str, Any], kind: type) -> None:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if here := name_here(name, known):
            raise UserError(f"unknown option {name!r}: here it is {here}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise UserError(f"unknown option {name!r}; did you mean {' or '.join(near)}?")


def upgraded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Converts old names of options, from earlier versions and from Stable-Baselines3, to the current names.

    Raises:
        UserError: the options contradict each other.
    """
    options = dict(options)
    given = [std for name, std in (("state_dependent_std", "network"), ("use_sde", "gsde")) if options.pop(name, False)]
    if len(given) > 1 or (given and options.get("std", given[0]) != given[0]):
        raise UserError("use_sde (std='gsde') and state_dependent_std (std='network') exclude each other, got both")
    return {**options, "std": given[0]} if given else options


def from_saved(options: Mapping[str, Any], kind: type = PPOConfig) -> dict[str, Any]:
    """Converts all options of `kind` from a file, which may be of an earlier version, to those of this version.

    Raises:
        UserError: as `upgraded`.
    """
    return upgraded({**{name: value for name, value in BEFORE.items() if hasattr(kind, name)}, **options})


def check_types(options: Mapping[str, Any], kind: type[PPOConfig] = PPOConfig) -> None:
    """Raises `UserError` unless all `options`, for example from a file, are fields of `kind` with the right types."""
    hints = _hints(kind)
    for name, value in options.items():
        if name not in hints:
            raise UserError(f"unknown option {name!r}")
        checked(name, value, hints[name])


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
