"""The command `import-sb2`: imports an agent of Stable-Baselines 2."""

from __future__ import annotations

import shlex

from rl_lnlstm.commands.console import output, tell
from rl_lnlstm.commands.options import ImportSb2Options
from rl_lnlstm.commands.policy_environment import naming_words
from rl_lnlstm.importing import import_sb2 as imported


def import_sb2(options: ImportSb2Options) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError: as `rl_lnlstm.import_sb2`.
    """
    policy = imported(
        options.agent,
        options.run_dir,
        options.env_id,
        options.vecnormalize,
        wrappers=options.wrappers,
        env_kwargs=options.env_kwargs,
        activation=options.activation,
    )
    normalized = [name for name in ("observations", "rewards") if getattr(policy.options, f"normalize_{name}")]
    output(
        f"{type(policy).__name__} with {policy.units} units, from {policy.observation_space} to {policy.action_space}"
        + (f", {' and '.join(normalized)} normalised" if normalized else "")
    )
    command = ["rl-lnlstm", "evaluate", str(options.run_dir), *naming_words(options.env_id, options.wrappers)]
    tell(f"next: {shlex.join(command)}{'' if options.env_id else ' --env-id ID'}")
    return 0
