"""A folder that shares a policy: its card, its scores, and the policy itself."""

import functools
import importlib.util
import json
import re

import gymnasium as gym
import numpy as np
import pytest

from rl_lnlstm import UserError, load_policy
from rl_lnlstm.commands import main
from rl_lnlstm.evaluation.environments import make_evaluation_envs
from rl_lnlstm.policies import MlpLnLstmPolicy
from rl_lnlstm.reports.card import write_card

ENV_ID = "CartPole-v1"
ENVIRONMENT = {"env_id": ENV_ID, "env_kwargs": {}, "wrappers": [], "mask_key": None}


def make_envs(num_envs, render, env=ENV_ID):
    return make_evaluation_envs(env, num_envs, render_mode="rgb_array" if render else None)


@pytest.fixture(scope="module")
def policy():
    env = gym.make(ENV_ID)
    return MlpLnLstmPolicy(env.observation_space, env.action_space, units=8, seed=0)


@pytest.fixture(scope="module")
def shared(policy, tmp_path_factory):
    """The folder and the evaluation."""
    folder = tmp_path_factory.mktemp("shared") / "folder"
    config = {"env_id": ENV_ID, "units": 8, "seed": 3}
    return folder, write_card(policy, make_envs, ENVIRONMENT, folder, config, n_episodes=3, seed=5)


def metadata(folder):
    """The YAML at the start of the card. What follows `key: ` is JSON here."""
    text = (folder / "README.md").read_text()
    _, head, _ = text.split("---\n", 2)
    return {
        key.strip("- "): json.loads(value) if value.startswith(("[", '"')) else value
        for key, value in re.findall(r"^([\w \-]+): (.+)$", head, re.MULTILINE)
    }


def test_the_folder_holds_what_a_hub_needs(shared):
    folder, result = shared
    names = {path.name for path in folder.iterdir()}
    assert names >= {"README.md", "policy", "config.json", "results.json", "replay.mp4"}
    exported = all(importlib.util.find_spec(package) for package in ("onnx", "onnxruntime", "tf2onnx"))
    assert ("policy.onnx" in names) == exported
    assert not [name for name in names if name.startswith(".")]
    results = json.loads((folder / "results.json").read_text())
    assert (results["env_id"], results["mean_reward"], results["n_episodes"]) == (ENV_ID, result.mean, 3)
    assert json.loads((folder / "config.json").read_text())["units"] == 8
    assert (folder / "replay.mp4").read_bytes()[4:8] == b"ftyp"


def test_the_card_has_the_score_and_the_names(shared):
    folder, result = shared
    found = metadata(folder)
    assert found["library_name"] == "rl-lnlstm"
    assert {ENV_ID, "reinforcement-learning"} <= set(found["tags"])
    score = [float(part) for part in found["value"].split(" +/- ")]
    np.testing.assert_allclose(score, [result.mean, result.std], atol=0.01)
    text = (folder / "README.md").read_text()
    assert "rl-lnlstm evaluate FOLDER --env-id CartPole-v1 --episodes 3 --seed 5" in text
    for name in re.findall(r"^- `([\w./]+)`", text, re.MULTILINE):
        assert (folder / name).exists(), name


def test_load_policy_takes_the_folder(shared, policy):
    folder, _ = shared
    loaded = load_policy(folder)
    for one, other in zip(loaded.get_weights(), policy.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_metadata_are_valid_for_a_hub(shared):
    hub = pytest.importorskip("huggingface_hub")
    folder, _ = shared
    card = hub.ModelCard.load(folder / "README.md")
    (score,) = card.data.eval_results
    assert (score.metric_type, score.dataset_name, score.task_type) == ("mean_reward", ENV_ID, "reinforcement-learning")
    assert "+/-" in score.metric_value
    assert card.data.library_name == "rl-lnlstm"


class NoPictures(gym.Env):
    """An environment that cannot be rendered."""

    observation_space = gym.make(ENV_ID).observation_space
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(4, np.float32), {}

    def step(self, action):
        return np.zeros(4, np.float32), 1.0, True, False, {}


@pytest.fixture(scope="module")
def odd(policy, tmp_path_factory):
    """A folder for an environment without pictures, whose names are hostile, and what was said about it."""
    folder, told = tmp_path_factory.mktemp("odd") / "folder", []
    environment = {**ENVIRONMENT, "env_id": 'a"\n---\nlicense: `evil`', "wrappers": ["$(touch x)"]}
    make = functools.partial(make_envs, env=NoPictures)
    write_card(policy, make, environment, folder, {}, n_episodes=2, progress=told.append)
    return folder, told


def test_a_hostile_name_stays_a_name(odd):
    folder, _ = odd
    text = (folder / "README.md").read_text()
    assert not re.search("^license", text, re.MULTILINE)
    assert "'$(touch x)'" in text
    assert metadata(folder)["tags"][0].startswith('a" ')


def test_without_pictures_there_is_no_video(odd):
    folder, told = odd
    assert not (folder / "replay.mp4").exists()
    assert "replay.mp4" not in (folder / "README.md").read_text()
    assert [line for line in told if line.startswith("without replay.mp4: ")]


def test_a_folder_that_is_not_free_is_refused(policy, tmp_path):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="already holds"):
        write_card(policy, make_envs, ENVIRONMENT, tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_failure_leaves_nothing(policy, tmp_path):
    class Breaks(NoPictures):
        def step(self, action):
            raise RuntimeError("broken")

    with pytest.raises(Exception, match="broken"):
        write_card(policy, functools.partial(make_envs, env=Breaks), ENVIRONMENT, tmp_path / "folder", {})
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_folder_that_evaluate_takes(policy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    policy.save("policy")
    assert main(["card", "policy", "shared", "--env-id", ENV_ID, "--episodes", "2"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "shared", "--episodes", "2", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == json.loads((tmp_path / "shared" / "results.json").read_text())
    assert main(["card", "policy", "vector", "--env-id", ENV_ID, "--episodes", "1", "--vectorization", "sync"]) == 0
    assert "--vectorization sync" in (tmp_path / "vector" / "README.md").read_text()
    assert main(["card", "policy", "shared", "--env-id", ENV_ID]) == 2
    assert "already holds" in capsys.readouterr().err
