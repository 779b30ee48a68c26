"""The state of a training run in a folder: JSON and arrays and, where they can be had, pickled environments."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rl_lnlstm.errors import UserError, warn
from rl_lnlstm.files import parse_json, read_regular, replacing_folder

if TYPE_CHECKING:
    from rl_lnlstm.ppo import PPO

FORMAT = 1
STATE, ARRAYS, ENVIRONMENTS, MANIFEST = "state.json", "arrays.npz", "envs.pkl", "manifest.json"
DAMAGED = "damaged-"
SHARE_OF_TIME = 0.01

Environments = dict[str, list[bytes]]  # by what they are for, the snapshots that envs.take_snapshot returned


class TrainingState(NamedTuple):
    """What a checkpoint holds: a tree of JSON's types, tuples and arrays, and the environments, if they are there."""

    tree: Any
    environments: bytes | None

    def unpickled_environments(self) -> Environments:
        """The environments' snapshots. The only place where what a file says is executed."""
        return {} if self.environments is None else pickle.loads(self.environments)


def write(path: Path, tree: Any, environments: Environments) -> None:
    """Writes a checkpoint in the folder `path`, which is whole, and on the disk, or not there.

    Raises:
        OSError: the disk does not take it.
    """
    arrays: dict[str, np.ndarray] = {}
    files = {STATE: json.dumps({"format": FORMAT, "tree": _described(tree, arrays)}).encode()}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    files[ARRAYS] = buffer.getvalue()
    if environments:
        files[ENVIRONMENTS] = pickle.dumps(environments)
    files[MANIFEST] = json.dumps(
        {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    ).encode()
    with replacing_folder(path, durable=True) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)


def read(path: Path) -> TrainingState:
    """Reads the checkpoint in the folder `path`; unpickles nothing.

    Raises:
        UserError: there is none, or it is damaged; the message says which file.
    """
    name = MANIFEST
    try:
        manifest = parse_json(read_regular(path / MANIFEST))
        if not isinstance(manifest, dict) or not {STATE, ARRAYS} <= set(manifest) <= {STATE, ARRAYS, ENVIRONMENTS}:
            raise ValueError("it does not list the files of a checkpoint")
        contents = {}
        for name, checksum in manifest.items():
            contents[name] = read_regular(path / name)
            if hashlib.sha256(contents[name]).hexdigest() != checksum:
                raise ValueError("its checksum is not that of the manifest")
        name = STATE
        state = parse_json(contents[STATE])
        if state["format"] != FORMAT:
            raise ValueError(f"it is of format {state['format']}, this version reads format {FORMAT}")
        with np.load(io.BytesIO(contents[ARRAYS]), allow_pickle=False) as arrays:
            tree = _restored(state["tree"], arrays)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"checkpoint {path} is damaged: {name}, {type(error).__name__}: {error}") from error
    return TrainingState(tree, contents.get(ENVIRONMENTS))


def read_newest(folder: Path) -> TrainingState:
    """The newest checkpoint in `folder` that is whole.

    Newer ones that are damaged are named in a warning and set aside, where nothing takes them for a checkpoint.

    Raises:
        UserError: none is whole.
    """
    problems = []
    for path in reversed(_numbered(folder)):
        try:
            state = read(path)
        except UserError as error:
            problems.append((path, str(error)))
            continue
        for damaged, problem in problems:
            aside = damaged.with_name(DAMAGED + damaged.name)
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):  # a folder that cannot be written: the next to resume skips it again
                damaged.rename(aside)
            warn(f"{problem}; it is set aside as {aside.name}, and the one before is used")
        return state
    if problems:
        raise UserError(f"no checkpoint in {folder} is whole: {'; '.join(problem for _, problem in problems)}")
    raise UserError(f"there is no checkpoint in {folder} to resume from")


class Checkpoints:
    """Writes checkpoints of a trainer and keeps the newest; a callback of `PPO.learn`.

    The last iteration, and the one after which training is to stop, always leave one.

    Args:
        folder: where, each in a folder named by its iteration.
        ppo: the trainer.
        flush: called before each, to have on the disk what has been recorded up to it.
        interval: iterations from one to the next; None for as often as costs less than 1% of the time.
        minutes: minutes from one to the next, if sooner.
        keep: how many are kept.
        env_snapshot: take snapshots of the environments.
        stopping: whether training is to stop.
    """

    def __init__(
        self,
        folder: Path,
        ppo: PPO,
        flush: Callable[[], None],
        interval: int | None = None,
        minutes: float | None = None,
        keep: int = 3,
        env_snapshot: bool = True,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self.folder, self.ppo, self.flush, self.stopping = folder, ppo, flush, stopping
        self.interval, self.minutes, self.keep, self.env_snapshot = interval, minutes, keep, env_snapshot
        self._tried = ppo.iteration
        self._written = ppo.iteration if (folder / _name(ppo.iteration)).is_dir() else None
        self._ended, self._cost = time.monotonic(), 0.0

    def __call__(self, metrics: dict[str, float]) -> bool:
        """Writes a checkpoint if one is due; returns False if training is to stop, which no later call revokes."""
        stop = self.stopping()
        if stop or self.ppo.finished or self._is_due():
            self.save()
        return not stop

    def save(self) -> None:
        """Writes a checkpoint now, if there is none of this iteration; a disk that refuses is survived."""
        if self._written == self.ppo.iteration:
            return
        began = time.monotonic()
        self._tried = self.ppo.iteration
        try:
            self.flush()
            self.ppo.save_checkpoint(self.folder / _name(self.ppo.iteration), self.env_snapshot)
            for path in _numbered(self.folder)[: -self.keep]:
                shutil.rmtree(path)
            self._written = self.ppo.iteration
        except OSError as error:
            warn(
                f"no checkpoint could be written in {self.folder}, {error}: the run goes on and will try again, "
                "meanwhile the one before is kept",
            )
        self._ended = time.monotonic()
        self._cost = self._ended - began

    def _is_due(self) -> bool:
        since = time.monotonic() - self._ended
        if self.minutes is not None and since >= 60 * self.minutes:
            return True
        if self.interval is not None:
            return self.ppo.iteration - self._tried >= self.interval
        return self._cost <= SHARE_OF_TIME * since


def _name(iteration: int) -> str:
    return f"{iteration:08d}"


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def _described(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """`tree` in JSON's types; arrays are put aside into `arrays`, and named where they were."""
    if isinstance(tree, np.ndarray | np.generic):
        if tree.dtype.hasobject:
            raise TypeError(f"arrays of {tree.dtype} are no data")
        name = f"{len(arrays):04d}"
        arrays[name] = np.asarray(tree)
        return {"array": name}
    if isinstance(tree, dict):
        return {"dict": {name: _described(part, arrays) for name, part in tree.items()}}
    if isinstance(tree, tuple):
        return {"tuple": [_described(part, arrays) for part in tree]}
    if isinstance(tree, list):
        return [_described(part, arrays) for part in tree]
    return tree


def _restored(description: Any, arrays: Any) -> Any:
    if isinstance(description, list):
        return [_restored(part, arrays) for part in description]
    if not isinstance(description, dict):
        return description
    ((kind, content),) = description.items()
    if kind == "array":
        return arrays[content]
    if kind == "tuple":
        return tuple(_restored(part, arrays) for part in content)
    return {name: _restored(part, arrays) for name, part in content.items()}
