"""Appending to files, replacing folders while others read them, and printing text from files safely."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from rl_lnlstm import files
from rl_lnlstm.errors import UserError, printable


def test_an_appender_appends_to_what_is_there(tmp_path):
    (tmp_path / "file").write_bytes(b"first\n")
    appender = files.Appender(tmp_path / "file")
    appender.append(b"second\n")
    appender.close()
    assert (tmp_path / "file").read_bytes() == b"first\nsecond\n"


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_that_is_replaced_is_there_at_every_instant(durable, tmp_path):
    path, missing, going, looks = tmp_path / "folder", [], True, 0
    with files.replacing_folder(path) as folder:
        (folder / "number").write_text("0")

    def look():
        nonlocal looks
        while going or not looks:
            looks += 1
            if not (path / "number").is_file():
                missing.append(looks)

    thread = threading.Thread(target=look)
    thread.start()
    for number in range(200):
        with files.replacing_folder(path, durable) as folder:
            (folder / "number").write_text(str(number))
    going = False
    thread.join()
    assert not missing
    assert (path / "number").read_text() == "199"
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_without_an_exchange_a_folder_is_replaced_in_two_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    for text in ("old", "new"):
        with files.replacing_folder(tmp_path / "folder") as folder:
            (folder / text).write_text(text)
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), files.replacing_folder(tmp_path / "folder"):
        raise RuntimeError
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["new"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_between_the_two_steps_loses_nothing(when, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_exchanged", lambda one, other: False)
    with files.replacing_folder(tmp_path / "folder") as folder:
        (folder / "old").write_text("old")
    rename = Path.rename

    def interrupted(self, target):
        if self.name == "new" and when == "before":
            raise KeyboardInterrupt
        moved = rename(self, target)
        if self.name in ("new", "folder") and when == "after":
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.replacing_folder(tmp_path / "folder") as folder:
        (folder / "new").write_text("new")
    assert [entry.name for entry in (tmp_path / "folder").iterdir()] == ["old"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_a_link_that_the_user_named_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link.txt").symlink_to("file")
    with files.output_file(tmp_path / "link.txt") as path:
        assert path.suffix == ".txt", "it determines the format of a picture"
        path.write_text("new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_a_link_in_a_run_directory_is_replaced(tmp_path):
    """The directory may come from another person, and the link may lead anywhere."""
    (tmp_path / "mine").write_text("mine")
    for target in (tmp_path / "mine", Path(os.devnull)):
        (tmp_path / "config.json").unlink(missing_ok=True)
        (tmp_path / "config.json").symlink_to(target)
        with files.replacing_file(tmp_path / "config.json") as path:
            path.write_text("new")
        assert not (tmp_path / "config.json").is_symlink()
        assert (tmp_path / "config.json").read_text() == "new"
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    files.check_writable(pipe, "the episodes", "--csv")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with files.output_file(pipe) as path:
        path.write_text("text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "log", "link"])
def test_a_standard_stream_that_is_a_file_is_written_to_and_not_replaced(name, tmp_path):
    program = f"""
        from pathlib import Path
        from rl_lnlstm import files
        print("before")
        files.check_writable(Path({name!r}), "the episodes", "--csv")
        with files.output_file(Path({name!r})) as path:
            path.write_text("rows\\n")
        print("after")
    """
    (tmp_path / "link").symlink_to("log")
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", textwrap.dedent(program)]
        subprocess.run(command, check=True, cwd=tmp_path, stdout=log, stderr=log)
    assert (tmp_path / "log").read_text() == "before\nrows\nafter\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link", "log"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that takes no files")
def test_a_link_is_tried_where_it_leads(tmp_path):
    (tmp_path / "link").symlink_to("/proc/nothing.csv")
    with pytest.raises(UserError, match=r"the episodes cannot be written to .*link.*--csv"):
        files.check_writable(tmp_path / "link", "the episodes", "--csv")


def test_what_a_file_says_cannot_reach_a_terminal():
    shown = printable("a\x1b[31mb\u202ec" + "x" * 10_000, 50)
    assert shown.isprintable()
    assert shown.startswith("a\\x1b[31mb\\u202ec")
    assert len(shown) < 60
