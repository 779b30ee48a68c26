"""The command `export`: writes a policy as a model that runs without this package."""

from __future__ import annotations

import rl_lnlstm.exporting.export as exporting
from rl_lnlstm.commands.console import output
from rl_lnlstm.commands.options import ExportOptions
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
        options.format,
        options.batch,
        options.sequence,
        options.action_masks or None,
    )
    output(
        f"{result.path}: the largest difference from the policy in {result.steps:,} steps is {result.difference:.1e}"
    )
    return 0
