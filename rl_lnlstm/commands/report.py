"""The command `report`: writes what a policy does and remembers to a single HTML file."""

from __future__ import annotations

import os
from pathlib import Path

from rl_lnlstm.commands.console import output, prints_on_stderr, tell
from rl_lnlstm.commands.options import ReportOptions
from rl_lnlstm.commands.policy_environment import environment_maker, environment_options, saved_config
from rl_lnlstm.errors import UserError, missing_package
from rl_lnlstm.files import check_writable, output_file, replacing_file
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.policies.saving import DESCRIPTION
from rl_lnlstm.runs.layout import REPORT


def report(options: ReportOptions) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as the command `evaluate`; the extra `report` is missing; the file cannot be written.
    """
    try:
        import plotly  # noqa: F401  # an extra that few need
    except ImportError as error:
        raise missing_package("a report", error, "rl-lnlstm[report]") from error
    from rl_lnlstm.reports.report import make_report  # imports plotly

    shown_path = _default_path(options.run_dir) if options.out is None else options.out
    path = shown_path.absolute()  # an environment may change the current folder
    policy = load_policy(options.run_dir)
    check_writable(shown_path, "the report", "--out")
    policy.seed(options.seed)
    environment = environment_options(options, policy.env_id)

    with prints_on_stderr():
        text = make_report(
            policy,
            environment_maker(options, environment, policy.observation_space),
            str(environment["env_id"]),
            options.run_dir,
            saved_config(options.run_dir),
            n_episodes=options.episodes,
            deterministic=options.deterministic,
            seed=options.seed,
            cuts=options.cuts,
            max_lag=options.max_lag,
            max_steps=options.max_steps,
            num_envs=options.num_envs,
            progress=tell,
        )
    try:
        with (replacing_file if options.out is None else output_file)(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"the report cannot be written to {shown_path}: {error}") from error
    tell("the report is in")
    output(str(shown_path))
    return 0


def _default_path(run_dir: Path) -> Path:
    """In a run directory; but beside a policy folder, because saving the policy replaces the whole folder."""
    if os.path.isfile(run_dir / DESCRIPTION):
        folder = Path(os.path.abspath(run_dir))
        return folder.with_name(f"{folder.name}-{REPORT}")
    return run_dir / REPORT
