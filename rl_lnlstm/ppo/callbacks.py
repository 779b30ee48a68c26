"""What `PPO.learn` calls while it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from rl_lnlstm.config import PPOConfig
from rl_lnlstm.errors import UserError

Metrics = dict[str, float]


class Training(Protocol):
    """What callbacks are told of the trainer, which is a `PPO`.

    Attributes:
        config: its options.
        policy: what it trains.
        num_timesteps: frames so far.
        iteration: iterations so far.
    """

    config: PPOConfig
    policy: Any
    num_timesteps: int
    iteration: int

    def best_weights(self) -> contextlib.AbstractContextManager[None]:
        """While the block runs, the policy has the weights that were best in the evaluations, if there were any."""

    @property
    def target(self) -> int:
        """The frames at which this call of `learn` ends; it finishes its last rollout."""


class Callback:
    """Base class of callbacks that are told more than the metrics.

    A plain function of the metrics is a callback too. Training stops after an iteration in which one returned False.
    """

    def on_training_start(self, ppo: Training) -> None:
        """`learn` begins."""

    def on_phase(self, phase: str) -> None:
        """What the trainer does next: "collecting", "compiling the update", "updating" or "evaluating"."""

    def __call__(self, metrics: Metrics) -> bool | None:
        """An iteration has ended.

        Args:
            metrics: its metrics. A callback may add entries for those after it.
        """

    def on_training_end(self) -> None:
        """`learn` ends, also by an exception."""


class Listeners:
    """The callbacks of a call of `learn`.

    Args:
        callbacks: a function of the metrics, a `Callback`, several of these, or None.
        *more: of ours, or None.

    Raises:
        UserError: something else.
    """

    def __init__(self, callbacks: Any, *more: Callback | None) -> None:
        several = isinstance(callbacks, Iterable) and not callable(callbacks)
        given = list(callbacks) if several else [] if callbacks is None else [callbacks]
        if not all(map(callable, given)):
            raise UserError(f"callback must be a function of the metrics, or several of them, got {callbacks!r:.100}")
        self._callbacks = [*given, *(callback for callback in more if callback is not None)]

    @contextlib.contextmanager
    def training(self, ppo: Training) -> Iterator[None]:
        """A block in which `ppo` trains."""
        begun: list[Callback] = []
        try:
            for callback in self._told():
                callback.on_training_start(ppo)
                begun.append(callback)
            yield
        finally:
            for callback in begun:
                callback.on_training_end()

    def phase(self, phase: str) -> None:
        """Tells all what comes next."""
        for callback in self._told():
            callback.on_phase(phase)

    def iteration(self, metrics: Metrics) -> bool:
        """Hands all of them the metrics, and returns whether training is to go on."""
        # All are called, also when one of them stops the run.
        answers = [callback(metrics) for callback in self._callbacks]
        return not any(answer is False for answer in answers)

    def _told(self) -> list[Callback]:
        return [callback for callback in self._callbacks if isinstance(callback, Callback)]
