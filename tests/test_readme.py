"""The examples of the README and of the pages in docs/ run, page by page, as a newcomer would paste them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}


def test_the_examples_are_found():
    assert len(EXAMPLES["README.md"]) == 4
    assert EXAMPLES["environments.md"]
    assert EXAMPLES["networks.md"]


@pytest.mark.parametrize("page", [page for page in EXAMPLES if EXAMPLES[page]])
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a later example loads what an earlier one saved
    for number, example in enumerate(EXAMPLES[page]):
        exec(compile(example, f"{page}, example {number}", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
