"""The cache of built kernels is private: the kernel is code that runs."""

import ctypes
import os

import pytest

from rl_lnlstm.cache import CacheError
from rl_lnlstm.lstm.kernel.build import BuildError


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_cache_that_others_may_write_to_is_refused(mode, project):
    project.cache.mkdir()
    project.cache.chmod(mode)
    with pytest.raises(CacheError, match="others may write"):
        project.build()
    assert not project.compiled


def test_a_built_library_is_refused_once_others_may_write_to_it(project):
    folder = project.build().parent
    folder.chmod(0o777)
    with pytest.raises(CacheError, match="others may write"):
        project.build()


def test_another_users_cache_is_refused(project, monkeypatch):
    project.build()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CacheError, match="belongs to another user"):
        project.build()


def test_a_cache_that_cannot_be_made_is_refused(project):
    project.cache.write_text("a file")
    with pytest.raises(BuildError, match="cannot be used"):
        project.build()


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_to_is_used_but_not_built_in(project):
    path = project.build()
    path.parent.chmod(0o500)
    project.cache.chmod(0o500)
    try:
        assert project.build() == path
        with pytest.raises(BuildError, match="cannot be used"):
            project.build(version="2")
    finally:
        project.cache.chmod(0o700)
        path.parent.chmod(0o700)


def test_the_cache_is_private_whatever_the_umask(project):
    project.cache = project.folder / "one" / "two"
    before = os.umask(0o002)
    try:
        folder = project.build().parent
    finally:
        os.umask(before)
    assert [place.stat().st_mode & 0o777 for place in (folder, *folder.parents[:2])] == [0o700] * 3


@pytest.mark.parametrize("above", ["", "above", "above/middle"])
@pytest.mark.parametrize("mode", [0o777, 0o707, 0o775])
def test_a_cache_under_a_folder_that_others_may_write_to_is_refused(mode, above, project):
    project.cache = project.folder / "above" / "middle" / "cache"
    assert project.build().exists()
    place = project.folder / above
    place.chmod(mode)
    try:
        if mode == 0o775 and os.geteuid() != 0:
            return  # the group may be of this user alone
        with pytest.raises(CacheError, match=rf"others may write to {place} .*chmod go-w"):
            project.build()
    finally:
        place.chmod(0o700)


def test_a_cache_under_a_sticky_folder_is_used(project):
    """As under /tmp: others may write there, but not rename what is ours."""
    place = project.folder / "sticky"
    place.mkdir()
    place.chmod(0o1777)
    project.cache = place / "cache"
    assert ctypes.CDLL(str(project.build())).answer() == 42


def test_a_link_to_a_folder_that_others_may_write_to_is_refused(project):
    place = project.folder / "open"
    place.mkdir()
    place.chmod(0o777)
    (project.folder / "link").symlink_to(place)
    project.cache = project.folder / "link" / "cache"
    with pytest.raises(CacheError, match="others may write"):
        project.build()
