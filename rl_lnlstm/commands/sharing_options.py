"""The options of the commands that import and share policies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro


@dataclasses.dataclass(kw_only=True)
class ImportSb2Options:
    """Imports an agent of Stable-Baselines 2 with a layer-normalised LSTM, and writes a run directory.

    Nothing in the files is executed; you need not trust them.
    """

    agent: Annotated[Path, tyro.conf.Positional]
    """the zip that model.save of Stable-Baselines 2 wrote, of MlpLnLstmPolicy or CnnLnLstmPolicy"""
    run_dir: Annotated[Path, tyro.conf.Positional]
    """new folder for the policy"""
    env_id: str | None = None
    """environment, whose spaces the policy then has; None: the spaces that the file tells, with rounded bounds"""
    env_kwargs: dict[str, bool | int | float | str] = dataclasses.field(default_factory=dict)
    """keyword arguments for the environment"""
    wrappers: tuple[str, ...] = ()
    """wrappers around the environment, as for train"""
    vecnormalize: Path | None = None
    """file that VecNormalize.save wrote: its statistics become part of the policy"""
    activation: str | None = None
    """activation of the dense layers; None: what the file tells, or tanh"""
