"""The command `card`: writes a folder that shares a policy."""

from __future__ import annotations

from rl_lnlstm.commands.console import output, prints_on_stderr, tell
from rl_lnlstm.commands.options import CardOptions
from rl_lnlstm.commands.policy_environment import environment_maker, environment_options, saved_config
from rl_lnlstm.files import check_is_free
from rl_lnlstm.policies.loading import load_policy
from rl_lnlstm.reports.card import README, write_card


def card(options: CardOptions) -> int:
    """Runs the command and returns its exit code.

    Raises:
        UserError, RunFailure: as the command `evaluate`; the folder is not free or cannot be written.
    """
    check_is_free(options.folder, "folder", "FOLDER")
    policy = load_policy(options.run_dir)
    policy.seed(options.seed)
    environment = environment_options(options, policy.env_id)
    with prints_on_stderr():
        result = write_card(
            policy,
            environment_maker(options, environment, policy.observation_space),
            environment,
            options.folder.absolute(),  # an environment may change the current folder
            saved_config(options.run_dir),
            n_episodes=options.episodes,
            deterministic=options.deterministic,
            seed=options.seed,
            max_steps=options.max_steps,
            num_envs=options.num_envs,
            vectorization=options.vectorization,
            progress=tell,
        )
    output(str(result))
    tell(f"the card is in {options.folder / README}; the folder can be pushed to a model hub as it is")
    return 0
