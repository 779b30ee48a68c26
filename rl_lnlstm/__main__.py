"""`python -m rl_lnlstm` is the command `rl-lnlstm`."""

import sys

from rl_lnlstm.commands import main

if __name__ == "__main__":
    sys.exit(main())
