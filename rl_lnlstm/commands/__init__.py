"""The command line, `rl-lnlstm`; its commands are listed in `options.py`."""

from rl_lnlstm.commands.main import main as main
