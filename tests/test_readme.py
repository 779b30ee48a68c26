"""Every example of the README runs, in order, as a newcomer would paste it."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_there_are_four():
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example_runs(number, folder, monkeypatch):
    monkeypatch.chdir(folder)  # a later example loads what an earlier one saved
    exec(compile(EXAMPLES[number], f"README example {number}", "exec"), {})


def test_pictures_and_links_are_there():
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
