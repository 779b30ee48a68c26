"""`export`: writes a policy as one model that runs without this package."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rl_lnlstm.errors import RunFailure, UserError
from rl_lnlstm.exporting.description import describe
from rl_lnlstm.exporting.formats import WRITERS, check_packages
from rl_lnlstm.exporting.graph import trace
from rl_lnlstm.exporting.verification import STEPS, largest_difference
from rl_lnlstm.files import is_empty_folder, is_special, output_file, replacing_folder
from rl_lnlstm.policies import RecurrentPolicy

Format = Literal["onnx", "tflite", "saved_model"]
FORMAT_BY_EXTENSION: dict[str, Format] = {".onnx": "onnx", ".tflite": "tflite", "": "saved_model"}
TOLERANCE = 1e-5
BATCH = 3  # of the comparison, where any batch size is possible


class Exported(NamedTuple):
    """The result of `export`."""

    path: Path
    difference: float  # the largest difference from the policy
    steps: int  # that were compared


# A long function, because its documentation is long.
def export(
    policy: Any,
    path: str | os.PathLike,
    format: Format | None = None,
    batch: int | None = None,
    sequence: bool = False,
    action_masks: bool | None = None,
) -> Exported:
    """Writes a policy as one model with everything inside: normalisation, masks, and the reset of the state.

    Afterwards the model is run for 1,000 steps in a process of its own, and compared with the policy.

    Inputs, each `[batch, ...]`: `observation`, in the dtype of the observation space (of `Dict` and `Tuple` spaces
    `observation_<key>`); `h` and `c` `[batch, state_size]` float32, zeros at the start; `episode_start` `[batch]` bool;
    `action_mask` `[batch, size]` bool, if `action_masks`; `previous_action` and `previous_reward`, if the policy sees
    them; `noise` `[batch, size]` float32, from which `sampled_action` is made.

    Outputs: `action`, the most probable one, and `sampled_action`, both in the form and the dtype of the action space,
    to be sent as they are (of `Dict` and `Tuple` spaces `action_<key>`); the parameters of the distribution, `logits`
    or `mean` and `log_std`; `value` `[batch]`; `next_h` and `next_c`. The model's metadata describe all of them.

    Of a policy with `critic_keys`, only the actor is exported: these entries are no inputs, `value` is no output, and
    the state is that of the actor's LSTM layers.

    Args:
        policy: a `RecurrentPolicy`.
        path: the file, or for a SavedModel the folder. What is there is replaced; if it is a link to a file, this file.
        format: "onnx", "tflite" (LiteRT), or "saved_model" (TensorFlow). None: by the path's extension:
            .onnx, .tflite, or none for a SavedModel.
        batch: the batch size; None for any.
        sequence: export sequences `[batch, time, ...]` of any length instead of single steps. `h` and `c` are then the
            state before the first step, `next_h` and `next_c` that after the last one.
        action_masks: whether the model takes action masks. None: if the policy was trained with them.

    Returns:
        The path, the largest difference from the policy (relative for numbers above 1), and the number of steps that
        were compared.

    Raises:
        UserError: the format is unknown, or the extension does not tell it; a package is missing, a part of the policy
            cannot be exported, or the file cannot be written.
        RunFailure: the model does not run, or differs from the policy by more than 1e-5. Then nothing is written.
    """
    target = Path(path)
    if format is None and (format := FORMAT_BY_EXTENSION.get(target.suffix.lower())) is None:
        raise UserError(f"{path} does not tell the format: give format (--format), one of {', '.join(WRITERS)}")
    if format not in WRITERS:
        raise UserError(f"format must be {', '.join(WRITERS)}, got {format!r}")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise UserError(f"batch must be an integer of at least 1 or None, got {batch!r}")
    if not isinstance(policy, RecurrentPolicy):
        raise UserError(f"policy must be a RecurrentPolicy, got {type(policy).__name__}")
    with _naming(target):
        _check_target(target, format)
    check_packages(format)
    masks = policy.uses_action_masks if action_masks is None else action_masks
    graph = trace(policy, batch, sequence, masks, float64=format != "tflite")
    replacing = replacing_folder if format == "saved_model" else output_file
    with _naming(target), replacing(target) as temporary:
        WRITERS[format](graph, describe(policy, graph), temporary)
        difference = largest_difference(policy, graph, format, temporary, batch or BATCH)
        if not difference <= TOLERANCE:
            raise RunFailure(
                f"the exported policy differs from the policy by {difference:.1e} within {STEPS:,} steps, more than "
                f"{TOLERANCE:.0e}: it was not written"
            )
    return Exported(target, difference, STEPS)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """A context manager that turns an `OSError` into a `UserError` which names the target."""
    try:
        yield
    except OSError as error:
        raise UserError(f"the model cannot be written to {target}: {error}") from error


def _check_target(target: Path, format: str) -> None:
    if format == "saved_model":
        if target.exists() and not (target / "saved_model.pb").is_file() and not is_empty_folder(target):
            raise UserError(f"a SavedModel is a folder, and {target} is something else: name another path")
    elif target.is_dir():
        raise UserError(f"{format} is written to a file, and {target} is a folder: name a file")
    elif is_special(target):
        raise UserError(f"{format} is written to a file, and {target} is a device or a pipe: name a file")
