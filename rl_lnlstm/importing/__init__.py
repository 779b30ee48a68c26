"""Importing policies and layers of other libraries. The files that are read need not be trusted."""

from rl_lnlstm.importing.layers import weights_from_baselines as weights_from_baselines
from rl_lnlstm.importing.layers import weights_from_haste as weights_from_haste
from rl_lnlstm.importing.sb2 import import_sb2 as import_sb2
