"""`PPOConfig`: the configuration, its documentation and, through the commands, their flags."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import typing
from collections.abc import Mapping
from typing import Any, Literal

from rl_lnlstm.errors import UserError

AUTO = "auto"


@dataclasses.dataclass(kw_only=True)
class PPOConfig:
    """Hyperparameters of recurrent PPO. Names are CleanRL's where it has one."""

    env_id: str = "CartPoleNoVel-v1"
    """Gymnasium id of the environment, or module:id"""
    total_timesteps: int = 100_000
    """frames to train for, over all environments; the last rollout is finished"""
    seed: int = 0
    """decides everything random: the same seed gives the same run"""

    env_kwargs: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """keyword arguments for each environment"""
    wrappers: tuple[str, ...] = ()
    """around each environment, the first one innermost: names of gymnasium.wrappers, or module:Name, with arguments in
    parentheses if it needs any, such as FrameStackObservation(4)"""
    num_envs: int = 8
    """environments that are stepped together"""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point"] = "auto"
    """environments in this process one after the other, in a process each, or as their own vector implementation; auto:
    the last, where there is one and nothing is to be wrapped, otherwise sync"""
    num_steps: int = 128
    """steps of each environment in a rollout"""
    sequence_length: int | None = None
    """steps that backpropagation through time sees, a divisor of num_steps; num_steps if None"""

    learning_rate: float = 1e-3
    """of Adam"""
    anneal_lr: bool = True
    """learning rate falls linearly to 0 over total_timesteps"""
    gamma: float = 0.99
    """discount per step"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    num_minibatches: int = 4
    """minibatches of an epoch; each is made of whole sequences"""
    update_epochs: int = 10
    """passes over each rollout"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    clip_coef: float = 0.2
    """clipping range of the probability ratio"""
    anneal_clip: bool = False
    """clipping range falls linearly to 0 over total_timesteps"""
    clip_vloss: bool = False
    """clip the value's change as well, by clip_coef"""
    ent_coef: float = 0.0
    """weight of the entropy in the loss"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this global norm"""
    target_kl: float | None = None
    """an update stops before a step whose approximate KL divergence exceeds 1.5 times this"""
    normalize_observations: bool = False
    """normalise observations by their running statistics, which are saved with the policy"""
    normalize_rewards: bool = False
    """divide rewards by the running deviation of the discounted returns"""

    eval_interval: int = 0
    """iterations between evaluations with the most probable actions, after the last of which the policy that did best
    is the one that is kept; 0 evaluates never and keeps the last"""
    n_eval_episodes: int = 100
    """episodes of each of these evaluations; their frames do not count"""

    max_env_failures: int = 10
    """an environment that raises, dies, hangs or returns NaN is made anew, and its broken episode left out; the run
    stops when one has failed more often than this in a row, with fewer than 100 steps in between"""
    env_timeout: float | None = 60.0
    """seconds that a step or a reset may take before an environment counts as hanging, for ever if None; only with
    vectorization async, because nothing can be interrupted safely in this process"""
    max_skipped_updates: int = 10
    """gradient steps whose loss or gradient is not finite are skipped; the run stops after more iterations than this
    in a row with no other gradient steps"""

    jit_compile: bool = True
    """compile the update with XLA: some seconds at the start, then a third of the time; convolutions on a CPU would
    be far slower so, and are left out"""

    policy: str = AUTO
    """name of the policy class; auto is the one that suits the observations"""
    units: int = 128
    """units of each layer of the recurrent core"""
    shared_lstm: bool = False
    """actor and critic share one core, which is faster; otherwise each has its own, which mostly learns more from as
    many frames"""
    num_layers: int = 1
    """layers of the recurrent core"""
    residual: bool = False
    """add what enters a layer of the core but the first to what leaves it"""
    previous_action: bool = False
    """the core sees the previous action"""
    previous_reward: bool = False
    """the core sees the previous reward"""
    encoder_layers: tuple[int, ...] | None = None
    """widths of the dense layers before the core; if None 512 after convolutions, 64 for what is no image"""
    head_layers: tuple[int, ...] = (64,)
    """widths of the layers between the core and each head"""
    activation: str = "tanh"
    """of the layers before and after the core"""
    log_std_init: float = 0.0
    """logarithm of the first standard deviation of continuous actions"""
    state_dependent_std: bool = False
    """the network gives the standard deviations of continuous actions; otherwise they are weights of their own"""
    use_sde: bool = False
    """generalised state-dependent exploration of continuous actions: noise that is the same in the same state"""
    sde_sample_freq: int = -1
    """steps after which that noise is drawn anew, besides at the start of a rollout; -1 for then only"""

    def __post_init__(self) -> None:
        for name in (
            "total_timesteps",
            "num_envs",
            "num_steps",
            "num_minibatches",
            "update_epochs",
            "units",
            "num_layers",
            "n_eval_episodes",
        ):
            value = getattr(self, name)
            self._require(name, isinstance(value, numbers.Integral) and int(value) >= 1, "an integer of at least 1")
        for name in ("gamma", "gae_lambda"):
            self._require(name, self._is_number(name) and 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("learning_rate", "clip_coef", "max_grad_norm"):
            self._require(name, self._is_number(name) and 0 < getattr(self, name) < math.inf, "greater than 0")
        for name in ("ent_coef", "vf_coef"):
            self._require(name, self._is_number(name) and 0 <= getattr(self, name) < math.inf, "at least 0")
        finite = self._is_number("log_std_init") and math.isfinite(self.log_std_init)
        self._require("log_std_init", finite, "a finite number")
        positive = self.target_kl is None or (self._is_number("target_kl") and self.target_kl > 0)
        self._require("target_kl", positive, "greater than 0")
        valid = isinstance(self.sde_sample_freq, numbers.Integral) and (
            self.sde_sample_freq == -1 or self.sde_sample_freq >= 1
        )
        self._require("sde_sample_freq", valid, "an integer of at least 1, or -1")
        positive = self.env_timeout is None or (self._is_number("env_timeout") and self.env_timeout > 0)
        self._require("env_timeout", positive, "greater than 0")
        for name in ("eval_interval", "seed", "max_env_failures", "max_skipped_updates"):
            value = getattr(self, name)
            self._require(name, isinstance(value, numbers.Integral) and int(value) >= 0, "an integer of at least 0")
        length = self.bptt_steps
        if not isinstance(length, numbers.Integral) or length < 1 or self.num_steps % length:
            raise UserError(
                f"sequence_length must divide num_steps, got sequence_length={length!r} and num_steps={self.num_steps}"
            )
        sequences = self.num_envs * (self.num_steps // length)
        if sequences % self.num_minibatches:
            raise UserError(
                f"num_minibatches must divide the number of sequences, because minibatches are made of whole ones: got "
                f"num_minibatches={self.num_minibatches} for {sequences} sequences (num_envs={self.num_envs} times "
                f"num_steps / sequence_length = {self.num_steps // length})"
            )

    @property
    def bptt_steps(self) -> int:
        """`sequence_length`, or its default."""
        return self.num_steps if self.sequence_length is None else self.sequence_length

    @property
    def fault_tolerance(self) -> dict[str, Any]:
        """What `make_vec` has to know of failures."""
        return {"max_failures": self.max_env_failures, "timeout": self.env_timeout}

    @property
    def policy_arguments(self) -> dict[str, Any]:
        """The policy's part of the configuration."""
        names = (
            "units",
            "shared_lstm",
            "num_layers",
            "residual",
            "previous_action",
            "previous_reward",
            "encoder_layers",
            "head_layers",
            "activation",
            "normalize_observations",
            "normalize_rewards",
            "log_std_init",
            "state_dependent_std",
            "use_sde",
        )
        return {name: getattr(self, name) for name in names}

    @classmethod
    def fixed(cls) -> frozenset[str]:
        """Names of the options that a run which is resumed cannot change: what its weights and environments are."""
        environments = {"env_id", "env_kwargs", "wrappers", "seed", "num_envs", "vectorization", "num_steps"}
        return frozenset({*environments, "eval_interval", "n_eval_episodes", "policy", *cls().policy_arguments})

    def _is_number(self, name: str) -> bool:
        return isinstance(getattr(self, name), numbers.Real)

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise UserError(f"{name} must be {expected}, got {getattr(self, name)!r}")


def make_config(**options: Any) -> PPOConfig:
    """`PPOConfig`, with an error for unknown names that says which ones are near."""
    known = [field.name for field in dataclasses.fields(PPOConfig)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known
            raise UserError(f"unknown option {name!r}; did you mean {' or '.join(near)}?")
    return PPOConfig(**options)


def check_types(options: Mapping[str, Any], kind: type[PPOConfig] = PPOConfig) -> None:
    """Raises `UserError` unless all `options`, such as a file holds, are fields of `kind` and of their types."""
    types = typing.get_type_hints(kind)
    for name, value in options.items():
        if name not in types:
            raise UserError(f"unknown option {name!r}")
        if not _is_of_type(value, types[name]):
            expected = getattr(types[name], "__name__", str(types[name]))
            raise UserError(f"{name} must be of type {expected}, got {str(value)[:100]!r}")


def _is_of_type(value: Any, expected: Any) -> bool:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is typing.Literal:
        return any(value == known and type(value) is type(known) for known in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of_type(part, arguments[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            _is_of_type(part, kind) for item in value.items() for part, kind in zip(item, arguments, strict=True)
        )
    if arguments:  # a union
        return any(_is_of_type(value, argument) for argument in arguments)
    if expected is float:
        return type(value) is float or (type(value) is int and abs(value) < 2**53)
    return type(value) is expected and (expected is not int or abs(value) < 2**63)
