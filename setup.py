"""Packaging. Metadata and dependencies are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# `policies/` and `envs/` stand at the top of the checkout, but are installed as `rl_lnlstm.policies` and
# `rl_lnlstm.envs`. The bare names are never installed: many projects have folders of these names, and ours would be
# imported in their place. `rl_lnlstm/policies` and `rl_lnlstm/envs` are symlinks, which setuptools follows.
packages = find_packages(include=["rl_lnlstm", "rl_lnlstm.*"])

# Where git makes no symlinks, `package_dir` says where the folders are. It is not used otherwise, because type checkers
# and editors cannot follow an editable install that needs it.
package_dir = {}
for room in ("policies", "envs"):
    if not Path("rl_lnlstm", room).is_dir():
        inside = [f"rl_lnlstm.{room}.{name}" for name in find_packages(room)]
        packages += [f"rl_lnlstm.{room}", *inside]
        package_dir[f"rl_lnlstm.{room}"] = room

setup(packages=packages, package_dir=package_dir)
