"""The examples of the README and of the pages in docs/ run, page by page, as a newcomer would paste them."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from rl_lnlstm.commands import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in PAGES}
COMMANDS = {
    page.name: re.findall(r"^ {4,}(?:python train\.py|rl-lnlstm) ?((?:.*\\\n)*.*)$", page.read_text(), re.MULTILINE)
    for page in PAGES
}

# Given last, they take the place of what is given before.
SHORT = {
    "train": "--total-timesteps 1 --num-envs 2 --num-steps 16 --sequence-length 16 --num-minibatches 1 --units 8 "
    "--eval-episodes 0 --no-jit-compile",
    "resume": "--total-timesteps 33 --eval-episodes 0",
    "evaluate": "--episodes 1",
}
PACKAGES = {"MiniGrid": "minigrid", "ALE/": "ale_py", "Atari": "ale_py"}
MY_PACKAGE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class MyEnv(CartPoleEnv):
    def __init__(self, size=1):
        super().__init__()

gym.register("MyEnv-v0", MyEnv)
"""


def test_the_examples_are_found():
    assert len(EXAMPLES["README.md"]) == 4
    assert EXAMPLES["environments.md"]
    assert EXAMPLES["networks.md"]
    assert len(COMMANDS["README.md"]) > 9
    assert any("AtariPreprocessing" in line for line in COMMANDS["environments.md"]), "on a line that goes on"


@pytest.mark.parametrize("page", [page for page in EXAMPLES if EXAMPLES[page]])
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a later example loads what an earlier one saved
    for number, example in enumerate(EXAMPLES[page]):
        exec(compile(example, f"{page}, example {number}", "exec"), {"__name__": "example"})


@pytest.mark.parametrize("page", [page for page in COMMANDS if COMMANDS[page]])
def test_the_commands_run(page, tmp_path, monkeypatch, request):
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)  # it registers MyEnv-v0 again
    request.addfinalizer(lambda: gym.registry.pop("MyEnv-v0", None))  # other tests' workers could not import it
    monkeypatch.chdir(tmp_path)
    not_there = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    for line in COMMANDS[page]:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        command = words.pop(0) if words and words[0] == "evaluate" else "train"
        short = SHORT["resume" if "--resume" in words else command]
        if not any(name.lower() in line.lower() for name in not_there):
            assert main([command, *words, *shlex.split(short)]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_and_links_are_there(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
