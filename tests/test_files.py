"""Replacing folders while others read them, and printing text from files safely."""

import threading

import pytest

from rl_lnlstm import files
from rl_lnlstm.errors import printable


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


def test_what_a_file_says_cannot_reach_a_terminal():
    shown = printable("a\x1b[31mb\u202ec" + "x" * 10_000, 50)
    assert shown.isprintable()
    assert shown.startswith("a\\x1b[31mb\\u202ec")
    assert len(shown) < 60
