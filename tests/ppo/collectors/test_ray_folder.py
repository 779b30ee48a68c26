"""The folder of a local cluster: one that a killed process left is removed, one that is in use is not."""

import os
import subprocess
import sys
import time
from pathlib import Path

from rl_lnlstm.ppo.collectors.ray_folder import PREFIX, RayFolder


def make_old(path):
    os.utime(path, (time.time() - 1000,) * 2)


def test_folders_of_killed_processes_are_removed(tmp_path):
    program = f"import os; from rl_lnlstm.ppo.collectors.ray_folder import *; RayFolder({str(tmp_path)!r}); os._exit(1)"
    left = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=False)
    assert left.returncode == 1
    (killed,) = tmp_path.glob(f"{PREFIX}*")
    (killed / "sockets").mkdir()
    make_old(killed)
    other = tmp_path / "another"
    other.mkdir()
    make_old(other)
    in_use = RayFolder(str(tmp_path))
    assert not killed.exists()
    make_old(in_use.path)
    new = tmp_path / f"{PREFIX}new"
    new.mkdir()
    second = RayFolder(str(tmp_path))
    assert os.path.isdir(in_use.path), "it is locked"
    assert new.is_dir(), "its process may be about to lock it"
    assert other.is_dir(), "it is not ours"
    in_use.remove()
    second.remove()
    assert sorted(tmp_path.iterdir()) == [other, new]
