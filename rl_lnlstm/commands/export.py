"""The command `export`: writes a policy as a model that runs without this package."""

from __future__ import annotations

from typing import get_args

import rl_lnlstm.exporting.export as exporting
from rl_lnlstm.commands.console import output
from rl_lnlstm.commands.options import ExportOptions
from rl_lnlstm.errors import UserError
from rl_lnlstm.policies.loading import load_policy


def export(options: ExportOptions) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as `rl_lnlstm.export`; the policy cannot be loaded, or the format is not clear.
    """
    policy = load_policy(options.run_dir)
    result = exporting.export(
        policy,
        options.file,
        options.format or _format_of(options),
        options.batch,
        options.sequence,
        options.action_masks or None,
    )
    output(
        f"{result.path}: the largest difference from the policy in {result.steps:,} steps is {result.difference:.1e}"
    )
    return 0


def _format_of(options: ExportOptions) -> exporting.Format:
    by_extension: dict[str, exporting.Format] = {".onnx": "onnx", ".tflite": "tflite", "": "saved_model"}
    if (extension := options.file.suffix) not in by_extension:
        raise UserError(
            f"{options.file} does not tell the format: give --format {', '.join(get_args(exporting.Format))}"
        )
    return by_extension[extension]
