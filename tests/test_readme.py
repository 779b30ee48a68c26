"""README and docs/ work: examples, commands and notebooks run page by page, as a newcomer would paste them."""

import dataclasses
import json
import re
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import pytest

from rl_lnlstm import PPO
from rl_lnlstm.commands import main
from rl_lnlstm.commands.options import COMMANDS as OPTIONS
from rl_lnlstm.commands.options import parse
from rl_lnlstm.config import PPOConfig
from rl_lnlstm.envs.check_env import check_env
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
COMMAND = r"(?:python train\.py|rl-lnlstm) ?((?:.*\\\n)*.*)$"


def commands_of(text):
    """The command lines of a page, in blocks that are indented or fenced."""
    fenced = re.findall(r"^```(?:bash|text)\n.*?^```|^ {4,}(?:.*\\\n)*.*$", text, re.DOTALL | re.MULTILINE)
    return [line for block in fenced for line in re.findall(r"^ *" + COMMAND, block, re.MULTILINE)]


COMMANDS = {name(page): commands_of(page.read_text()) for page in PAGES}

# Given last, they take the place of what is given before.
SHORT = {
    "train": "--total-timesteps 1 --num-envs 2 --num-steps 16 --sequence-length 16 --num-minibatches 1 --units 8 "
    "--eval-episodes 0 --eval-interval 0 --no-jit-compile --shared-lstm",
    "resume": "--total-timesteps 33 --eval-episodes 0",
    "evaluate": "--episodes 1 --max-steps 60",
    "card": "--episodes 1",
    "report": "--episodes 1 --cuts 2",
}
ENOUGH = ("--total-timesteps", "200")  # for some episodes to end
PACKAGES = ("MiniGrid", "ALE/", "Atari")  # only parsed, because these packages may be missing
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
    assert len(COMMANDS["docs/how-to/machines.md"]) == 4, "in a fence"
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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, which commands get copies of."""
    run_dir = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", *SHORT["train"].split(), *ENOUGH, "--env-id", "CartPole-v1", "--run-dir", str(run_dir)]) == 0
    return run_dir


def train(options, trained):
    """All but the training: checks the options, makes what is to be trained, and leaves a run where it would be."""
    check_env(options.env_id, wrappers=options.wrappers, env_kwargs=options.env_kwargs, mask_key=options.mask_key)
    config = {field.name: getattr(options, field.name) for field in dataclasses.fields(PPOConfig)}
    config |= {"ray": None, "workers": None}
    PPO(config.pop("policy"), config.pop("env_id"), **config).close()
    assert options.pretrain is None or Path(options.pretrain).is_dir()
    if options.run_dir is not None:
        for folder in [f"seed-{seed}" for seed in options.seeds] or ["."]:
            shutil.copytree(trained, options.run_dir / folder)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder with what the pages speak of."""
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)  # it registers MyEnv-v0 again
    monkeypatch.chdir(tmp_path)
    an_agent_to_import(tmp_path)
    yield tmp_path
    for registered in ("MyEnv-v0", "MyDictEnv-v0"):  # other tests' workers could not import them
        gym.registry.pop(registered, None)


@pytest.mark.parametrize("page", [page for page in COMMANDS if COMMANDS[page]])
def test_the_commands_run(page, elsewhere, trained):
    """README's train as well; on other pages, `train` stops before the training."""
    for line in COMMANDS[page]:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        command = words.pop(0) if words and words[0] in OPTIONS else "train"
        if command == "tune" and "--resume" in words:
            write_sweep(Path("sweep"), {"options": {}, "fixed": []})
        resumed = words[words.index("--resume") + 1] if "--resume" in words else None
        if command != "tune" and resumed is not None and not Path(resumed).exists():
            shutil.copytree(trained, resumed)
        options = None if "--help" in words else parse([command, *words])  # as it is written
        if command == "tune":  # it takes minutes, so `make test-ray` runs one
            Path("sweep").mkdir(exist_ok=True)
            write_preset(Path("sweep/preset.json"), {"env_id": "CartPole-v1"})
        elif any(name.lower() in line.lower() for name in PACKAGES):
            continue
        elif command == "train" and page != "README.md" and resumed is None:
            train(options, trained)
        else:
            short = SHORT.get("resume" if resumed else command, "").split()
            if page != "README.md" and resumed:
                short += [*ENOUGH, "--ray", "None", "--workers", "None"]  # nothing is left to train
            assert main([command, *words, *short]) == 0, line


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
