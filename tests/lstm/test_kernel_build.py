"""The kernel is built once for each compiler and source, by one process at a time, and only in a safe cache."""

import ctypes
import os
import signal
import time

import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.lstm.kernel import build as module
from rl_lnlstm.lstm.kernel.build import BuildError, build, library


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_second_call_compiles_nothing(project):
    path = project.build()
    assert ctypes.CDLL(str(path)).answer() == 42
    assert project.compiled == 2
    assert project.build() == path
    assert project.compiled == 2
    assert project.build(force=True) == path
    assert project.compiled == 4
    assert project.left == ["lock", module.LIBRARY]


def test_whatever_makes_another_library_has_a_place_of_its_own(project, monkeypatch):
    paths = [project.build(), project.build(half=4), project.build(version="2")]
    project.header.write_text("int half();  // another one\n")
    paths.append(project.build())
    (project.folder / "half.cc").write_text("int half() { return 5; }\n")
    paths.append(project.build())
    monkeypatch.setenv("CXX", f"{project.compiler} -DOTHER")
    paths.append(project.build())
    assert len(set(paths)) == len(paths)


def test_of_processes_at_once_one_builds_and_all_have_the_library(project):
    (project.folder / "wait").touch()
    processes = [project.start() for _ in range(4)]
    wait_for(lambda: project.compiled)
    time.sleep(0.5)  # for the others to arrive at the lock
    (project.folder / "wait").unlink()
    assert [process.wait(60) for process in processes] == [0] * 4
    assert project.compiled == 2
    assert project.left == ["lock", module.LIBRARY]


@pytest.mark.parametrize(("wait", "half_made"), [("wait", "*.o"), ("wait-link", "*.so")])
def test_a_killed_builder_leaves_no_half_made_library_and_no_lock(wait, half_made, project):
    (project.folder / wait).touch()
    process = project.start()
    wait_for(lambda: [path for path in project.cache.rglob(half_made) if path.read_bytes() == b"half\n"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(project.left) == 2  # the lock, and the folder in which it built, but no library
    assert module.LIBRARY not in project.left
    (project.folder / wait).unlink()
    assert ctypes.CDLL(str(project.build())).answer() == 42
    assert project.left == ["lock", module.LIBRARY]


def test_an_interrupted_builder_leaves_nothing_and_stops_its_compilers(project):
    (project.folder / "wait").touch()
    process = project.start()
    wait_for(lambda: project.compiled == 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0  # though the compilers would wait for ever
    assert project.left == ["lock"]


def test_a_compilers_error_is_told_and_nothing_is_left(project):
    (project.folder / "half.cc").write_text("int half() { return nonsense; }\n")
    with pytest.raises(BuildError, match=r"(?s)failed.*half\.cc.*nonsense"):
        project.build()
    assert project.left == ["lock"]


def test_a_linkers_error_is_told_and_nothing_is_left(project):
    with pytest.raises(BuildError, match="no_such_library"):
        build([project.answer_unit], [project.header], ["-lno_such_library"], project.cache, "1")
    assert project.left == ["lock"]


def test_a_failed_build_can_be_repeated_when_it_is_mended(project):
    good = (project.folder / "half.cc").read_text()
    (project.folder / "half.cc").write_text("nonsense")
    with pytest.raises(BuildError):
        project.build()
    (project.folder / "half.cc").write_text(good)
    assert ctypes.CDLL(str(project.build())).answer() == 42


def damage(path, how):
    whole = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "without digest":
        (path.parent / module.LOCK).write_text("")
    elif how == "writable by others":
        path.chmod(0o666)
    elif how == "unreadable":
        path.chmod(0)
    else:
        changed = {"empty": b"", "truncated": whole[: len(whole) // 2], "garbage": b"garbage" * 100}
        changed["one bit"] = whole[:-1] + bytes([whole[-1] ^ 1])
        path.write_bytes(changed[how])


@pytest.mark.parametrize(
    "how",
    [
        *("empty", "truncated", "garbage", "one bit", "removed", "a folder", "without digest"),
        "writable by others",
        pytest.param("unreadable", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")),
    ],
)
def test_a_damaged_library_is_built_again(how, project):
    path = project.build()
    damage(path, how)
    assert project.build() == path
    assert project.compiled == 4
    assert ctypes.CDLL(str(path)).answer() == 42
    assert project.build() == path
    assert project.compiled == 4


def test_without_a_compiler_what_was_built_before_is_used(project, monkeypatch):
    path = project.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert project.build() == path
    for other in ({"version": "2"}, {"half": 4}):  # built of other sources
        with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
            project.build(**other)
    path.write_bytes(b"")
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
        project.build()


def test_the_first_build_says_that_it_compiles(project, told):
    project.build()
    project.build()
    assert [line for line in told() if "compiling" in line] == ["compiling the CPU kernel: once, about 20 s"]


def test_a_missing_compiler_is_told(project, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(BuildError, match="no-such-compiler does not run"):
        project.build()
    monkeypatch.setenv("CXX", "'unbalanced")
    with pytest.raises(BuildError, match="CXX"):
        project.build()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(project.folder))
    with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
        project.build()


def test_the_cache_is_where_the_environment_says(project, monkeypatch):
    places = []
    monkeypatch.setattr(module, "build", lambda units, included, link, cache, *_: places.append(cache))
    for variable in ("HOME", "XDG_CACHE_HOME", "RL_LNLSTM_CACHE"):
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False) if variable == "HOME" else None
        monkeypatch.setenv(variable, str(project.folder / variable))
        library()
    parts = ("HOME/.cache/rl_lnlstm", "XDG_CACHE_HOME/rl_lnlstm", "RL_LNLSTM_CACHE")
    assert places == [project.folder / part for part in parts]


def test_each_source_has_its_own_flags_and_the_users(monkeypatch):
    calls = []
    monkeypatch.setenv("RL_LNLSTM_CXXFLAGS", "-fsanitize=address -g")
    monkeypatch.setattr(module, "build", lambda *arguments: calls.append(arguments))
    systems = ("x86_64", "Linux", {"core_avx2", "core_avx512"}), ("arm64", "Darwin", set())
    for machine, system, expected in systems:
        monkeypatch.setattr(module.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(module.platform, "system", lambda system=system: system)
        library()
        units, included, link, *_ = calls.pop()
        flags = {unit.source.stem: unit.flags for unit in units}
        assert set(flags) - {"xla"} == expected | {"tensorflow", "core_generic"}  # "xla" where TensorFlow has it
        assert not any(flag.startswith("-m") for name in ("tensorflow", "core_generic") for flag in flags[name])
        assert ("-DRL_LNLSTM_X86" in flags["tensorflow"]) == (machine == "x86_64")
        assert all(these[-2:] == ("-fsanitize=address", "-g") for these in (*flags.values(), link))
        assert ("-undefined" in link) == (system == "Darwin")
        assert all("-ffast-math" not in these for these in flags.values())
        assert {"core.h", "core.inc", "launch.h", "op.cc", "act.cc"} < {path.name for path in included}
        assert all(unit.source.exists() for unit in units)


def test_the_command_prints_the_path(project, monkeypatch, capsys):
    monkeypatch.setattr(module, "library", lambda force: project.build(force=force))
    for arguments, compiled in (([], 2), ([], 2), (["--force"], 4)):
        assert main(["build-kernel", *arguments]) == 0
        assert capsys.readouterr().out == f"{project.build()}\n"
        assert project.compiled == compiled


def test_the_command_explains_a_failure_in_a_line(project, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["build-kernel"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
