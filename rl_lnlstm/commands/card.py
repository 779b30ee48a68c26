"""The command `card`: writes a folder that shares a policy."""

from __future__ import annotations

from gymnasium.vector import VectorEnv

from rl_lnlstm.commands.console import output, tell
from rl_lnlstm.commands.evaluate import environments, trained_in
from rl_lnlstm.commands.options import CardOptions, read_config
from rl_lnlstm.files import check_is_free
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.reports.card import README, write_card
from rl_lnlstm.runs.layout import CONFIG


def card(options: CardOptions) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as the command `evaluate`; the folder is not free or cannot be written.
    """
    check_is_free(options.folder, "folder", "FOLDER")
    policy = load_policy(options.run_dir)
    policy.seed(options.seed)
    environment = trained_in(options, policy.env_id)
    try:
        config = read_config(options.run_dir / CONFIG)
    except (OSError, ValueError):
        config = {}

    def make_envs(num_envs: int, render: bool) -> VectorEnv:
        return environments(
            environment, num_envs, options.vectorization or "auto", render, trained_on=policy.observation_space
        )

    result = write_card(
        policy,
        make_envs,
        environment,
        options.folder,
        config,
        n_episodes=options.episodes,
        deterministic=options.deterministic,
        seed=options.seed,
        max_steps=options.max_steps,
        num_envs=options.num_envs,
        progress=tell,
    )
    output(str(result))
    tell(f"the card is in {options.folder / README}; the folder can be pushed to a model hub as it is")
    return 0
