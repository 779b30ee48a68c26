"""The report is one page that needs no network, holds what it should, and trusts no text."""

import base64
import functools
import hashlib
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from PIL import Image

from rl_lnlstm import load_policy, memory_use
from rl_lnlstm.commands import main
from rl_lnlstm.evaluation.environments import make_evaluation_envs
from rl_lnlstm.reports.charts import MAX_POINTS, learning_curves
from rl_lnlstm.reports.pictures import PictureRecorder, fitting
from rl_lnlstm.reports.replay import replay
from rl_lnlstm.reports.report import make_report, read_metrics
from rl_lnlstm.reports.timeline import MAX_SHOWN_STEPS, shown_steps
from tests.any_space import AnyEnv
from tests.commands.small_run import train
from tests.reports.recordings import policy, recorded

BOX, DISCRETE = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Parsed(html.parser.HTMLParser):
    """What is in a page: elements with their attributes, and the content of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.scripts, self.data, self.text = [], [], {}, ""
        self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._script = dict(attributes) if tag == "script" else None

    def handle_endtag(self, tag):
        self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text += data
        elif self._script.get("type") == "application/json":
            self.data[self._script["id"]] = json.loads(data)
        else:
            self.scripts.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def pictures(self):
        uris = [uri for name, part in self.data.items() if name.startswith("steps-") for uri in part["pictures"]]
        return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]


def check(text):
    """Parses a page, and checks what holds for every page."""
    found = Parsed(text)
    assert len(text.encode()) < 20 << 20
    assert len(found.scripts) == 2, "Plotly, and the page's own"
    (policy_,) = [meta["content"] for meta in found.all("meta") if meta.get("http-equiv")]
    for script in found.scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy_
    assert "default-src 'none'" in policy_
    for _, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], attributes
        for address in (attributes.get("src"), attributes.get("href")):
            assert address is None or address.startswith(("data:", "#")), "everything is in the file"
    for chart in (div for div in found.all("div") if div.get("class") == "chart"):
        assert found.data[chart["data-figure"]]["data"]
    assert all(picture.format == "WEBP" for picture in found.pictures)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert train(path, "--eval-episodes", "3") == 0
    return path


@pytest.fixture(scope="module")
def written(run):
    assert main(["report", str(run), "--episodes", "4", "--cuts", "1", "8"]) == 0
    return (run / "report.html").read_text(encoding="utf-8")


def test_the_report_of_a_run(run, written):
    found = check(written)
    figures = {name.removeprefix("figure-") for name in found.data if name.startswith("figure-")}
    assert figures == {
        *("histograms", "learning-curve", "cut-curve", "gradient-curve"),
        *("timeline-0", "timeline-1", "timeline-2"),
        *(f"metric-{number}" for number in range(6)),
    }
    for title in ("Best episode", "Median episode", "Worst episode", "CartPoleNoVel-v1", "mean return"):
        assert title in found.text
    assert "learning_rate" in found.text, "the options"
    for number in range(3):
        steps, figure = found.data[f"steps-{number}"], found.data[f"figure-timeline-{number}"]
        assert len(steps["steps"]) == len(steps["texts"]) == len(steps["pictures"]) > 2
        assert figure["layout"]["shapes"][0]["x0"] == 0
        titles = [annotation["text"].split(",")[0].split(":")[0] for annotation in figure["layout"]["annotations"]]
        assert titles == ["reward", "value", "action probabilities", "h", "c", "i", "f", "o"]
    assert len(found.all("img")) == 3
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def test_the_scores_are_those_of_memory_use(run, written):
    memory = memory_use(load_policy(run), "CartPoleNoVel-v1", 4, seed=0, cuts=[1, 8])
    figure = check(written).data["figure-cut-curve"]
    (means,) = [trace["y"] for trace in figure["data"] if trace.get("name") == "memory cut"]
    assert decoded(means) == [memory.cut_scores[1].mean, memory.cut_scores[8].mean]


def decoded(values):
    """An array in a figure, which may be binary."""
    if isinstance(values, list):
        return values
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()


def made(acting, name="Any", config=None, run_dir=Path("folder"), length=6, env=AnyEnv, make_envs=None, **options):
    env = functools.partial(env, acting.observation_space, acting.action_space, length)
    messages = []
    text = make_report(
        acting,
        make_envs or (lambda n, render: make_evaluation_envs(env, n, render_mode="rgb_array" if render else None)),
        name,
        run_dir,
        config or {},
        progress=messages.append,
        **{"n_episodes": 3, "cuts": [2], "max_lag": 3, **options},
    )
    return check(text), messages


def test_all_actions_and_no_pictures_and_hostile_names(tmp_path):
    actions = {
        "many": spaces.Discrete(9),
        "multi": spaces.MultiDiscrete([2, 3]),
        "box": spaces.Box(-2, 3, (2,)),
        "wide": spaces.Box(-np.inf, 3, (8,)),
        HOSTILE: spaces.MultiBinary(2),
    }
    titles = {
        "action probabilities of many, 0 (white) to 1",
        "action probabilities of multi/0: ",
        "action probabilities of multi/1: ",
        "action of box, mean and std: ",
        "mean of the action of wide, ",
        "action probabilities of &lt;/script",
    }
    config = {"env_id": HOSTILE, HOSTILE: [HOSTILE]}
    acting = policy(BOX, spaces.Dict(actions))
    found, messages = made(acting, HOSTILE, config, tmp_path / HOSTILE.replace("/", "_"))
    assert not found.all("img")
    assert messages[-1] == f"There are no pictures: {HOSTILE} has no render mode rgb_array."
    assert messages[-1] in found.text
    assert "has no metrics.csv" in found.text
    shown = [annotation["text"] for annotation in found.data["figure-timeline-0"]["layout"]["annotations"]]
    for title in titles:
        assert [text for text in shown if text.startswith(title)], shown
    assert not [text for text in shown if "<script" in text or "<img" in text]


class Noisy(AnyEnv):
    """An environment whose pictures cannot be compressed."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, *arguments, render_mode=None):
        super().__init__(*arguments)
        self.render_mode = render_mode

    def render(self):
        return np.random.default_rng(self.steps).integers(0, 256, (40, 30, 3), np.uint8)


def test_of_long_episodes_some_steps_are_shown():
    found, _ = made(policy(BOX, DISCRETE), length=320, env=Noisy, n_episodes=1, cuts=[320])
    assert len(found.data["steps-0"]["steps"]) <= MAX_SHOWN_STEPS + 2
    assert found.data["steps-0"]["steps"][-1] == 320
    assert len(found.pictures) == len(found.data["steps-0"]["steps"])
    last = np.asarray(found.pictures[-1].convert("RGB"), float)
    drawn = np.random.default_rng(320).integers(0, 256, (40, 30, 3), np.uint8)
    assert np.corrcoef(last.ravel(), drawn.ravel())[0, 1] > 0.5, "the last picture is that of the end"
    assert "summed over 2 steps" in found.data["figure-timeline-0"]["layout"]["annotations"][0]["text"]


def test_environments_that_cannot_be_seeded_one_by_one():
    found, messages = made(
        policy(spaces.Box(0, 1, (4,)), spaces.Discrete(3)),
        "TMaze-v0",
        make_envs=lambda count, render: make_evaluation_envs("TMaze-v0", count, "vector_entry_point"),
    )
    assert messages[-1] == "There are no pictures: the environments of TMaze-v0 cannot be seeded one by one."
    assert len([name for name in found.data if name.startswith("figure-timeline")]) == 3


def test_returns_are_those_from_before_a_wrapper_changed_rewards():
    def changed(*arguments):
        return TransformReward(AnyEnv(*arguments), lambda reward: reward + 1000)

    found, _ = made(policy(BOX, DISCRETE), env=changed, n_episodes=1)
    texts = found.data["steps-0"]["texts"]
    returns = re.findall(r"(?<!mean )return ([\d.,]+)", found.text + texts[-1])
    assert len(returns) == 2
    assert all(float(number.strip(",.").replace(",", "")) < 100 for number in returns)
    assert "rewards so far 5,0" in texts[-2]


def test_pictures_are_made_smaller_until_they_fit():
    recorder = PictureRecorder([{0, 1, 3}])
    for seed in range(4):
        recorder.add(0, None, np.random.default_rng(seed).integers(0, 256, (400, 300, 3), np.uint8), [])
    pictures = recorder.pictures[0]
    assert Image.open(io.BytesIO(pictures[0])).size == (240, 320)
    small = fitting(pictures, 20_000)
    assert len(small) == 3
    assert sum(map(len, small)) <= 20_000
    assert fitting(pictures, 10) == []


def test_steps_that_are_shown():
    assert shown_steps(1).tolist() == [0]
    assert shown_steps(MAX_SHOWN_STEPS).tolist() == list(range(MAX_SHOWN_STEPS))
    assert shown_steps(MAX_SHOWN_STEPS + 1).tolist() == list(range(0, MAX_SHOWN_STEPS + 1, 2))


def test_a_replay_is_what_the_policy_did():
    acting = policy(BOX, DISCRETE, num_layers=2, shared_lstm=False, previous_action=True)
    episode = recorded(acting)
    found = replay(acting, episode)
    state = tuple(episode[name] for name in ("h", "c", "last_action_reward"))
    expected = acting.distribution(episode["observations"], state, np.zeros(6, bool)).probabilities
    np.testing.assert_allclose(found.actions[0].probabilities, expected, rtol=1e-5)
    assert [layer.name for layer in found.layers] == ["actor_lstm", "actor_lstm_1", "critic_lstm", "critic_lstm_1"]
    for number, layer in enumerate(found.layers):
        after = layer.c[1:]  # the state of the next step
        assert (np.abs(after - layer.f[:-1] * layer.c[:-1]) <= layer.i[:-1] + 1e-6).all(), "i * tanh(g)"
        _, _, _, _, _, gamma, beta = (weight.numpy() for weight in acting.network.lstm_layers[number].weights)
        normal = (after - after.mean(-1, keepdims=True)) / np.sqrt(after.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(layer.h[1:], layer.o[:-1] * np.tanh(normal * gamma + beta), atol=1e-5)


@pytest.mark.parametrize("std", ["free", "gsde", "network"])
def test_continuous_actions_are_in_the_units_of_the_environment(std):
    acting = policy(BOX, spaces.Box(np.float32([-2, -np.inf]), np.float32([6, np.inf])), std=std)
    episode = recorded(acting)
    (part,) = replay(acting, episode).actions
    np.testing.assert_allclose(np.clip(part.mean[:, 0], -2, 6), episode["actions"][:, 0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(part.mean[:, 1], episode["actions"][:, 1], rtol=1e-4, atol=1e-4)
    assert part.std.shape == (6, 2)
    assert (part.std > 0).all()


def test_learning_curves_of_long_runs_are_thinned():
    frames = np.arange(10_000.0)
    figure, *_ = learning_curves({"time/total_timesteps": frames, "rollout/ep_rew_mean": frames, "train/loss": frames})
    assert 1000 < len(figure.data[0].x) <= MAX_POINTS


@pytest.mark.parametrize("damage", ["", "a,b\n1,2\n", "time/total_timesteps,rollout/ep_rew_mean\nx,y\n", "\x00"])
def test_metrics_that_cannot_be_read_are_left_out(damage, tmp_path):
    (tmp_path / "metrics.csv").write_text(damage)
    columns, problem = read_metrics(tmp_path)
    assert columns == {}
    assert problem.startswith(f"{tmp_path / 'metrics.csv'} cannot be read")


def test_the_report_of_a_policy_folder_is_beside_it(run, tmp_path):
    shutil.copytree(run / "policy", tmp_path / "policy")
    command = ["report", str(tmp_path / "policy"), "--episodes", "1", "--cuts", "1", "--max-lag", "0"]
    assert main(command) == 0
    (tmp_path / "policy-report.html").unlink()
    (tmp_path / "policy-report.html").symlink_to("anywhere")
    assert main(command) == 0
    assert not (tmp_path / "policy-report.html").is_symlink()
    assert not (tmp_path / "anywhere").exists()


def test_what_is_wrong_is_one_line_and_leaves_no_file(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "new" / "report.html"
    for arguments, message in (
        ([str(tmp_path), "--out", str(out)], "no saved policy"),
        ([str(run), "--out", str(tmp_path)], "cannot be written"),
        ([str(run), "--out", str(out), "--env-id", "Acrobot-v1"], "the policy was made for observation space"),
        ([str(run), "--out", str(out), "--cuts", "0"], "cuts must be"),
    ):
        assert main(["report", *arguments]) == 2
        told = capsys.readouterr().err.strip()
        assert message in told
        assert "Traceback" not in told
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert main(["report", str(run), "--out", str(out)]) == 2
    assert 'pip install "rl-lnlstm[report]"' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_a_browser_draws_everything_without_a_complaint(written, tmp_path):
    (tmp_path / "report.html").write_text(written, encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    done = subprocess.run(
        [
            *(BROWSER, *flags.split(), "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"),
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    drawn = done.stdout
    assert drawn.count('class="main-svg"') >= 13, "each chart"
    assert len(re.findall(r"<image [^>]*data:image/png", drawn)) >= 15, "each heat map"
