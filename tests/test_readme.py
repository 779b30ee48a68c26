"""Every example of the README and of the pages in docs/ runs, in order, as a newcomer would paste it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {
    f"{page.name} {number}": example
    for page in PAGES
    for number, example in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def test_the_examples_are_found():
    assert sum("README" in name for name in EXAMPLES) == 4
    assert {"environments.md 0", "networks.md 0"} <= set(EXAMPLES)


@pytest.mark.xdist_group("readme")  # a later example loads what an earlier one saved
@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    exec(compile(EXAMPLES[name], name, "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
