"""Programs in an interpreter of their own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import rl_lnlstm


def run_fresh(program: str, *arguments, **environment: str) -> str:
    """Runs a program in a new process, and returns its standard output. An assertion in it fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(rl_lnlstm.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
