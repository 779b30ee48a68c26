"""Standard output is for results, and standard error for messages. Either may be closed or without a reader."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.commands.console import tell
from rl_lnlstm.commands.signals import Stop
from rl_lnlstm.ppo.progress import ProgressBar
from rl_lnlstm.terminal import MessageConsole
from tests.commands.small_run import ROOT


def test_a_signal_may_come_while_a_message_is_written(capfd, monkeypatch):
    stop = Stop()

    class Interrupted(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not stop.requested:
                stop.note(signal.SIGINT, None)
            return len(data)

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Interrupted())))
    tell("a message")
    assert stop.signal == signal.SIGINT
    assert capfd.readouterr().err == "stopping after this iteration; press Ctrl-C again to stop at once\n"


def test_a_reader_of_the_output_may_leave():
    process = subprocess.Popen(
        [sys.executable, "train.py", "--help"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait() == 128 + signal.SIGPIPE
    assert error == ""


TELLING = """
from rl_lnlstm.commands.console import tell
try:
    tell("a message")
except BrokenPipeError:
    print("standard output is whole")
"""


@pytest.mark.parametrize(
    ("words", "code", "printed"),
    [(["-c", TELLING], 0, "standard output is whole\n"), (["-m", "rl_lnlstm", "trian"], 128 + signal.SIGPIPE, "")],
    ids=["message", "error"],
)
def test_a_reader_of_the_messages_may_leave(words, code, printed):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=write, text=True)
    os.close(write)
    assert (done.returncode, done.stdout) == (code, printed)
    assert isinstance(ProgressBar().console, MessageConsole)


WITHOUT_STANDARD_ERROR = """
import os, sys
from rl_lnlstm.commands import main
sys.argv = ["rl-lnlstm", "build-kernel", "--help"]
code = main()
assert os.path.samestat(os.fstat(2), os.stat(os.devnull)) and os.get_inheritable(2)
sys.stderr.write("message")
sys.stderr.flush()
sys.exit(code)
"""


def test_standard_error_may_be_closed(monkeypatch):
    shell = ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, WITHOUT_STANDARD_ERROR]
    done = subprocess.run(shell, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    assert "build-kernel" in done.stdout
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["evaluate", "no-such-run"]) == 2


def test_standard_output_may_be_closed():
    done = subprocess.run(
        ["sh", "-c", '"$0" -m rl_lnlstm --version >&-', sys.executable], cwd=ROOT, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (0, b"")


NOISY = """
import ctypes, os
import gymnasium as gym

def make(**options):
    print("of Python")
    os.write(1, b"of a child\\n")
    ctypes.CDLL(None).printf(b"of C\\n")
    return gym.make("CartPoleNoVel-v1", **options)

gym.register("Noisy-v0", entry_point=make)
"""


def test_only_the_result_is_on_standard_output(run, tmp_path, monkeypatch, capfd):
    (tmp_path / "noisy_env.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["evaluate", str(run), "--env-id", "noisy_env:Noisy-v0", "--episodes", "1", "--json"]) == 0
    printed, told = capfd.readouterr()
    assert json.loads(printed)["env_id"] == "noisy_env:Noisy-v0"
    assert all(f"of {source}" in told for source in ("Python", "a child", "C"))
