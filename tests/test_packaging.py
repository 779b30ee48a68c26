"""The package is complete where git makes no symlinks: on Windows and in some downloads."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("policies", "envs")  # at the top of the checkout, and symlinks in rl_lnlstm/


@pytest.fixture(params=["symlinks", "text files", "nothing"])
def checkout(request, tmp_path):
    """A copy of the checkout, with symlinks, with git's text files in their place, or with nothing there."""
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rl_lnlstm", tmp_path / "rl_lnlstm", symlinks=True, ignore=ignored)
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=ignored)
        link = tmp_path / "rl_lnlstm" / room
        if request.param != "symlinks":
            link.unlink(missing_ok=True)
        if request.param == "text files":
            link.write_text(f"../{room}")
    return tmp_path


def run(checkout, *arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_policies_and_envs_are_imported(checkout):
    code = """
import importlib.util, gymnasium, rl_lnlstm.envs
gymnasium.spec("CartPoleNoVel-v1")
print(rl_lnlstm.envs.__file__)
print(importlib.util.find_spec("rl_lnlstm.policies").origin)  # importing it would load TensorFlow
"""
    for line in run(checkout, "-c", code).split():
        assert checkout in Path(line).parents
        assert Path(line).is_file()


def test_all_modules_are_installed_and_no_bare_name(checkout):
    run(checkout, "-W", "ignore", "setup.py", "--quiet", "build_py", "--build-lib", "built")
    built = checkout / "built"
    assert [path.name for path in built.iterdir()] == ["rl_lnlstm"]
    for room in ROOMS:
        expected = {path.relative_to(checkout) for path in (checkout / room).rglob("*.py")}
        assert {
            path.relative_to(built / "rl_lnlstm") for path in (built / "rl_lnlstm" / room).rglob("*.py")
        } == expected
    listed = subprocess.run(["git", "ls-files", "rl_lnlstm"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    data = [name for name in listed.stdout.split() if not name.endswith(".py") and not (ROOT / name).is_dir()]
    assert len(data) > 20
    assert [name for name in data if not (built / name).is_file()] == []
