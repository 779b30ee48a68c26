"""Trains a policy: `python train.py --help`. The same as the command `rl-lnlstm train`."""

import sys

from rl_lnlstm.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
