"""README and docs/ work: examples, commands and notebooks run page by page, as a newcomer would paste them."""

import dataclasses
import importlib.util
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest

from rl_lnlstm.commands import main
from rl_lnlstm.commands.options import parse
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.presets import write_preset
from rl_lnlstm.tuning.records import write_sweep
from tests.importing.sb2_agent import random_agent, write_zip

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


def name(page):
    return page.relative_to(ROOT).as_posix()


EXAMPLES = {
    name(page): re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) for page in PAGES
}
COMMANDS = {
    name(page): re.findall(r"^ {4,}(?:python train\.py|rl-lnlstm) ?((?:.*\\\n)*.*)$", page.read_text(), re.MULTILINE)
    for page in PAGES
}

# Given last, they take the place of what is given before.
SHORT = {
    "train": "--total-timesteps 1 --num-envs 2 --num-steps 16 --sequence-length 16 --num-minibatches 1 --units 8 "
    "--eval-episodes 0 --eval-interval 0 --no-jit-compile --shared-lstm",
    "resume": "--total-timesteps 33 --eval-episodes 0",
    "evaluate": "--episodes 1 --max-steps 60",
    "export": "",
    "build-kernel": "",
    "import-sb2": "",
    "card": "--episodes 1",
    "report": "--episodes 1 --cuts 2",
    "plot": "",
    "compare": "",
}
SHORT["seeds"] = SHORT["train"].replace("--total-timesteps 1", "--total-timesteps 200") + " --seeds 0"
PACKAGES = {"MiniGrid": "minigrid", "ALE/": "ale_py", "Atari": "ale_py"}
MY_PACKAGE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv

class MyEnv(CartPoleEnv):
    def __init__(self, size=1):
        super().__init__()

    def step(self, action):
        *result, info = super().step(action)
        return *result, {"is_success": False}

class MyDictEnv(gym.Wrapper):
    def __init__(self):
        super().__init__(gym.wrappers.FlattenObservation(gym.make("CartPole-v1")))
        parts = {"seen": self.env.observation_space, "state": self.env.observation_space}
        self.observation_space = gym.spaces.Dict(parts)

    def reset(self, **options):
        observation, info = self.env.reset(**options)
        return {"seen": observation, "state": observation}, info

    def step(self, action):
        observation, *others = self.env.step(action)
        return {"seen": observation, "state": observation}, *others

gym.register("MyEnv-v0", MyEnv)
gym.register("MyDictEnv-v0", MyDictEnv)
"""


def an_agent_to_import(folder):
    env = gym.make("CartPole-v1")
    write_zip(folder / "agent.zip", random_agent(env.observation_space, env.action_space, units=8))


def run(code, where):
    exec(compile(code, where, "exec"), namespace := {"__name__": "example"})
    return namespace


def test_the_examples_are_found():
    assert len(EXAMPLES["README.md"]) == 3
    assert EXAMPLES["docs/how-to/environments.md"]
    assert len(COMMANDS["README.md"]) > 6
    commands = COMMANDS["docs/how-to/environments.md"]
    assert any("AtariPreprocessing" in line for line in commands), "on a line that goes on"
    assert len(NOTEBOOKS) == 2


@pytest.mark.many_cases
@pytest.mark.parametrize("page", [page for page in EXAMPLES if EXAMPLES[page]])
def test_the_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    an_agent_to_import(tmp_path)
    code = "\n\n".join(EXAMPLES[page]).replace("learn(20_000", "learn(2_000")
    run(code, page)  # a later example goes on from an earlier one


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebooks_run(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads(notebook.read_text())["cells"]
    run("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"), notebook.name)


@pytest.mark.many_cases
@pytest.mark.parametrize("page", [page for page in COMMANDS if COMMANDS[page]])
def test_the_commands_run(page, tmp_path, monkeypatch, request):
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)  # it registers MyEnv-v0 again
    for registered in ("MyEnv-v0", "MyDictEnv-v0"):  # other tests' workers could not import them
        request.addfinalizer(lambda env_id=registered: gym.registry.pop(env_id, None))
    monkeypatch.chdir(tmp_path)
    an_agent_to_import(tmp_path)
    not_there = [name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None]
    for line in COMMANDS[page]:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        if words and words[0] == "tune":  # it takes minutes, so `make test-ray` runs one
            assert parse(words) is not None
            write_sweep(Path("sweep"), {"options": {}, "fixed": []})
            write_preset(Path("sweep/preset.json"), {"env_id": "CartPole-v1"})
            continue
        command = words.pop(0) if words and words[0] in SHORT else "train"
        kinds = [kind for kind in ("resume", "seeds") if f"--{kind}" in words]
        short = SHORT[kinds[0] if kinds else command]
        if not any(name.lower() in line.lower() for name in not_there):
            assert main([command, *words, *shlex.split(short)]) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pictures_links_and_files_are_there(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"^--8<-- \"([\w./]+)", text, re.MULTILINE):
        assert (ROOT / target).exists(), target
    # Files are named from the top of the checkout; only the files of this project have a folder in front.
    for target in re.findall(r"`((?:rl_lnlstm|policies|envs|tests|benchmarks)/[\w./]*)`", text):
        assert (ROOT / target).exists(), target
    for defined, target in re.findall(r"`(\w+)` in `((?:rl_lnlstm|policies|envs)/[\w./]+\.py)`", text):
        assert re.search(rf"(?:def|class) {defined}\b", (ROOT / target).read_text()), f"{defined} in {target}"


def test_options_that_other_libraries_name_differently_exist():
    table = (DOCS / "coming-from.md").read_text().split("## Ways")[0]
    named = {
        option for cell in re.findall(r"^\| (`[^|]+)\|", table, re.MULTILINE) for option in re.findall(r"`(\w+)", cell)
    }
    assert len(named) > 20
    assert named <= {field.name for field in dataclasses.fields(PPOConfig)}


def test_the_readme_lists_the_extras():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = re.findall(r"^\| (`[^|]+)\|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"`([\w-]+)`", " ".join(table))) == set(extras)
