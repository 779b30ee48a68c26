"""Callbacks: functions and objects that `PPO.learn` calls while it trains."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError

Metrics = dict[str, float]


class Training(Protocol):
    """What callbacks may use of the trainer, which is a `PPO`.

    Attributes:
        config: its options. A callback may change `learning_rate` and `clip_coef`. The update is compiled again, which
            takes seconds, if one changes other options of the loss.
        policy: the policy that it trains.
        num_timesteps: frames so far.
        iteration: iterations so far.
    """

    config: PPOConfig
    policy: Any
    num_timesteps: int
    iteration: int

    def best_weights(self) -> contextlib.AbstractContextManager[None]:
        """A context manager: inside its block, the policy has the weights that were best in the evaluations."""

    @property
    def target(self) -> int:
        """The number of frames at which this call of `learn` ends. It still finishes the rollout that reaches it."""


class Callback:
    """Base class of callbacks that need more than the metrics.

    A plain function of the metrics is a callback too. Training stops after the iteration in which a callback returns
    False.
    """

    def on_training_start(self, ppo: Training) -> None:
        """Called when `learn` begins."""

    def on_phase(self, phase: str) -> None:
        """Called when a phase begins: "collecting", "compiling the update", "updating" or "evaluating"."""

    def __call__(self, metrics: Metrics) -> bool | None:
        """Called after each iteration.

        Args:
            metrics: the metrics of the iteration. A callback may add entries, which later callbacks then see.
        """

    def on_training_end(self) -> None:
        """Called when `learn` ends, even if it ends with an exception."""


class Listeners:
    """The callbacks of a call of `learn`.

    Args:
        callbacks: a function of the metrics, a `Callback`, several of these, or None.
        *more: callbacks that the caller adds; None is left out.

    Raises:
        UserError: `callbacks` holds something that cannot be called.
    """

    def __init__(self, callbacks: Any, *more: Callback | None) -> None:
        several = isinstance(callbacks, Iterable) and not callable(callbacks)
        given = list(callbacks) if several else [] if callbacks is None else [callbacks]
        if not all(map(callable, given)):
            raise UserError(f"callback must be a function of the metrics, or several of them, got {callbacks!r:.100}")
        for callback in given:
            _check_signature(callback)
        self._callbacks = [*given, *(callback for callback in more if callback is not None)]

    @contextlib.contextmanager
    def training(self, ppo: Training) -> Iterator[None]:
        """A context manager for the block in which `ppo` trains."""
        begun: list[Callback] = []
        try:
            for callback in self._told():
                callback.on_training_start(ppo)
                begun.append(callback)
            yield
        finally:
            with contextlib.ExitStack() as stack:  # calls the others too if one raises
                for callback in reversed(begun):
                    stack.callback(callback.on_training_end)

    def phase(self, phase: str) -> None:
        """Tells all callbacks which phase begins."""
        for callback in self._told():
            callback.on_phase(phase)

    def iteration(self, metrics: Metrics) -> bool:
        """Passes the metrics to all callbacks, and returns whether training should continue."""
        # Call all of them, even if the first one already stops the run.
        answers = [callback(metrics) for callback in self._callbacks]
        return not any(map(says_stop, answers))

    def _told(self) -> list[Callback]:
        return [callback for callback in self._callbacks if isinstance(callback, Callback)]


def says_stop(answer: Any) -> bool:
    """Whether a callback returned False, of Python or of NumPy. None and other values mean to continue."""
    return isinstance(answer, bool | np.bool_) and not answer


def _check_signature(callback: Any) -> None:
    """Raises `UserError` if a callback does not accept the metrics as its only argument, or is a class."""
    if isinstance(callback, type):
        name = callback.__name__
        raise UserError(f"callback {name} is a class: pass an object, {name}(...)")
    try:
        signature = inspect.signature(callback)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind({})
    except TypeError as error:
        raise UserError(
            f"callback must accept one argument, the metrics: {callback!r:.100} does not: {error}"
        ) from error
