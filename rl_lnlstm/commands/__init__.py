"""The command line: `rl-lnlstm train`, `evaluate`, `plot`, `compare`, `export` and `build-kernel`."""

from rl_lnlstm.commands.main import main as main
