"""Programs of XLA are kept in the user's cache, and read only if they are whole and fit this machine."""

import atexit
import logging
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl_lnlstm.cache import digest_of
from rl_lnlstm.commands import program_cache
from rl_lnlstm.commands.program_cache import FLAGS, FOLDER, KEPT, use_program_cache

GRADIENT = """
import tensorflow as tf
from rl_lnlstm import MaskedLNLSTM
from rl_lnlstm.commands.program_cache import use_program_cache
use_program_cache()
tf.keras.utils.set_random_seed(1)
layer = MaskedLNLSTM(16, return_sequences=True)
layer.build((4, 8, 16))
@tf.function(jit_compile=True)
def gradient(inputs):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs) ** 2)
    return tf.concat([tf.reshape(part, [-1]) for part in tape.gradient(loss, layer.trainable_variables)], 0)
print(gradient(tf.random.stateless_normal([4, 8, 16], [3, 4])).numpy().tobytes().hex())
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "a cache"
    monkeypatch.setenv("RL_LNLSTM_CACHE", str(path))
    monkeypatch.setenv(FLAGS, "--tf_xla_clustering_debug")  # removed after the test, whatever a process sets
    return path


@pytest.fixture
def process(cache, monkeypatch):
    """A function that begins a process, and returns its own folder. `process.end` ends it."""
    ends = []
    monkeypatch.setattr(atexit, "register", lambda *call: ends.append(call))

    class Process:
        def __call__(self):
            use_program_cache.cache_clear()
            use_program_cache()
            [flag] = [flag for flag in given() if flag.startswith(FOLDER)]
            return Path(flag.removeprefix(FOLDER))

        def end(self):
            for function, *arguments in ends:
                function(*arguments)
            ends.clear()

    yield Process()
    use_program_cache.cache_clear()


def given():
    return shlex.split(os.environ[FLAGS])


def kept(cache):
    return sorted(path for path in cache.glob("xla-*/*") if path.is_file())


def test_a_program_is_compiled_once_and_gives_the_same_in_every_process(cache):
    from rl_lnlstm.lstm.kernel.build import library  # imports TensorFlow

    with pytest.MonkeyPatch.context() as own:
        own.delenv("RL_LNLSTM_CACHE")
        built = library().parent
    cache.mkdir(mode=0o700)
    shutil.copytree(built, cache / built.name)

    def run():
        environment = {name: value for name, value in os.environ.items() if name != FLAGS}
        done = subprocess.run([sys.executable, "-c", GRADIENT], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    code, first, error = run()
    assert code == 0, error
    [program] = kept(cache)
    file = program.stat().st_ino
    assert run()[:2] == (0, first)
    assert kept(cache) == [program]
    assert program.stat().st_ino == file, "it has been compiled again"
    assert not list(cache.glob("xla-*/process-*"))
    # It is really read: a wrong one, with the digest of its content, is an error.
    program.write_bytes(b"wrong")
    program.rename(program.with_suffix(f".{digest_of(program)}"))
    assert run()[0] == 1


def test_new_programs_are_kept_when_a_process_ends(cache, process):
    folder = process()
    assert given()[0] == "--tf_xla_clustering_debug"
    (folder / "one.pb").write_bytes(b"1")
    assert kept(cache) == []
    process.end()
    assert [path.stem for path in kept(cache)] == ["one.pb"]
    assert not folder.exists()
    assert [path.name for path in process().iterdir()] == ["one.pb"]


def test_a_process_does_not_see_what_others_do(cache, process):
    first = process()
    (first / "one.pb").write_bytes(b"1")
    second = process()
    (second / "one.pb").write_bytes(b"2")
    (second / "two.pb").write_bytes(b"2")
    assert [path.name for path in first.iterdir()] == ["one.pb"]
    process.end()
    third = process()  # which of the programs with the same name it gets does not matter
    assert sorted(path.name for path in third.iterdir()) == ["one.pb", "two.pb"]
    assert [path.stem for path in kept(cache)] == ["one.pb", "two.pb"]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data[:5] + b"x" + data[6:]])
def test_a_damaged_program_is_removed(damage, cache, process):
    folder = process()
    for name in ("one.pb", "two.pb"):
        (folder / name).write_bytes(b"a program")
    process.end()
    one, two = kept(cache)
    one.write_bytes(damage(one.read_bytes()))
    assert [path.name for path in process().iterdir()] == ["two.pb"]
    assert kept(cache) == [two]


def test_the_programs_that_were_used_last_are_kept(cache, process):
    folder = process()
    for i in range(KEPT + 3):
        (folder / f"{i}.pb").write_bytes(b"a program")
        os.utime(folder / f"{i}.pb", (i, i))
    process.end()
    again = process()
    assert {path.name for path in again.iterdir()} == {f"{i}.pb" for i in range(3, KEPT + 3)}
    assert len(kept(cache)) == KEPT
    assert min(path.stat().st_mtime for path in kept(cache)) > 100, "this process has used them"


def test_a_program_that_another_process_removes_in_between_does_not_matter(cache, process):
    folder = process()
    (folder / "one.pb").write_bytes(b"a program")
    process.end()
    gone = folder.parent / "gone.pb.0"
    gone.symlink_to(cache / "nowhere")  # it is listed, and cannot be found
    assert [path.name for path in process().iterdir()] == ["one.pb"]


def test_folders_that_killed_processes_left_behind_are_removed_after_a_week(process):
    killed, running = process(), process()
    os.utime(killed, (0, 0))
    process()
    assert running.exists()
    assert not killed.exists()


@pytest.mark.parametrize("variable", ["XLA_FLAGS", "TF_NUM_INTRAOP_THREADS", FLAGS])
def test_programs_that_were_compiled_with_other_flags_are_not_used(variable, process, monkeypatch):
    folders = {process().parent}
    monkeypatch.setenv(variable, "--tf_xla_max_cluster_size=3" if variable == FLAGS else "1")
    folders.add(process().parent)
    assert len(folders) == 2


def test_programs_for_another_processor_or_number_of_cores_are_not_used(process, monkeypatch):
    folders = {process().parent, process().parent}
    assert len(folders) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(1000)), raising=False)
    folders.add(process().parent)
    monkeypatch.setattr(program_cache, "_processor", lambda: "another")
    folders.add(process().parent)
    assert len(folders) == 3


@pytest.mark.parametrize("mine", ["--tf_xla_persistent_cache_directory=/mine", "/a/file/with/flags"])
def test_a_folder_or_a_file_of_the_users_own_is_left_alone(mine, cache, monkeypatch):
    monkeypatch.setenv(FLAGS, mine)
    use_program_cache.cache_clear()
    use_program_cache()
    assert given() == [mine]
    assert not cache.exists()


@pytest.fixture(params=["others may write", "a file", "a full disk"])
def useless_cache(request, cache):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if request.param == "a file":
        cache.touch()
    else:
        cache.mkdir()
        cache.chmod(0o777 if request.param == "others may write" else 0o700)
    if request.param == "a full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield cache
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_a_cache_programs_are_compiled_as_before(useless_cache, told, caplog):
    before = os.environ[FLAGS]
    use_program_cache.cache_clear()
    with caplog.at_level(logging.INFO, "rl_lnlstm"):
        use_program_cache()
    use_program_cache.cache_clear()
    assert os.environ[FLAGS] == before
    assert "programs are not kept" in told()[-1]


def test_a_process_that_this_one_starts_has_a_folder_of_its_own(process):
    first, flags = process(), given()
    second = process()
    assert first != second
    assert len(given()) == len(flags)
