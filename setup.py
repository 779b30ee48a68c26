"""Packaging. Metadata and dependencies are in pyproject.toml."""

from setuptools import find_packages, setup

# `policies/` and `envs/` stand at the top of the checkout, but are installed as
# `rl_lnlstm.policies` and `rl_lnlstm.envs`: `rl_lnlstm/policies` and `rl_lnlstm/envs` are
# relative symlinks to them, which setuptools follows. The bare names are never installed,
# because they would shadow the folders of the same names that half of all RL projects have.
setup(packages=find_packages(include=["rl_lnlstm", "rl_lnlstm.*"]))
