"""Exported policies compute what the policy computes, in the runtimes of their formats."""

import functools
import json
import subprocess
import sys

import gymnasium as gym
import keras
import numpy as np
import pytest
import tensorflow as tf

import rl_lnlstm
from rl_lnlstm.commands import main
from rl_lnlstm.errors import RunFailure, UserError
from rl_lnlstm.exporting.description import describe
from rl_lnlstm.exporting.formats import WRITERS
from rl_lnlstm.exporting.graph import trace
from rl_lnlstm.exporting.verification import largest_difference
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy, MultiInputLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.policies.encoder_check import random_observations

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")
pytest.importorskip("tf2onnx", reason="the extra `export` is not installed")
litert = pytest.importorskip("ai_edge_litert.interpreter", reason="the extra `export` is not installed")

S = gym.spaces
VECTOR, IMAGE = S.Box(-1, 1, (3,)), S.Box(0, 255, (16, 16, 3), np.uint8)
DICT = S.Dict({"a": VECTOR, "image": IMAGE, "k": S.Discrete(4, start=2), "t": S.Tuple((S.MultiBinary(3), VECTOR))})
FAR = S.Box(np.array([-2, 0, -np.inf], np.float32), np.array([2, 5e4, np.inf], np.float32))
KINDS = {
    "discrete": (MlpLnLstmPolicy, VECTOR, S.Discrete(3, start=-1), {"previous_action": True, "previous_reward": True}),
    "multi_binary": (MlpLnLstmPolicy, S.MultiBinary(4), S.MultiBinary([2, 2]), {"num_layers": 2, "residual": True}),
    "box": (
        MlpLnLstmPolicy,
        S.Box(-np.inf, np.inf, (4,), np.float64),
        FAR,
        {"previous_action": True, "normalize_observations": True, "shared_lstm": False},
    ),
    "gsde": (MlpLnLstmPolicy, VECTOR, S.Box(-1, 1, (2,), np.float64), {"std": "gsde", "normalize_observations": True}),
    "image": (
        CnnLnLstmPolicy,
        IMAGE,
        S.Box(-3, 1, (2,), np.float16),
        {"normalize_observations": True, "std": "network"},
    ),
    "symbols": (
        CnnLnLstmPolicy,
        S.Box(0, 255, (7, 7, 2), np.uint8),
        S.MultiDiscrete([[2, 3], [4, 2]]),
        {"previous_action": True},
    ),
    "dict": (
        MultiInputLnLstmPolicy,
        DICT,
        S.Dict({"x": S.Discrete(3), "y": S.Tuple((S.Box(-1, 2, (2,)), S.MultiBinary(2)))}),
        {"normalize_observations": True, "previous_action": True},
    ),
    "critic_keys": (
        MultiInputLnLstmPolicy,
        S.Dict({"a": VECTOR, "image": IMAGE, "state": S.Box(-1, 1, (2,))}),
        S.Discrete(3),
        {"critic_keys": ("image", "state"), "shared_lstm": False, "num_layers": 2, "previous_reward": True},
    ),
}
MASKED = ("discrete", "symbols", "multi_binary")


def make(kind):
    """A policy whose actions are not nearly uniform, and whose statistics have seen something."""
    policy_class, observations, actions, options = KINDS[kind]
    policy = policy_class(observations, actions, units=8, seed=0, **options)
    rng = np.random.default_rng(1)
    for layer in (*policy.network.lstm_layers, policy.action_head, policy.network.value_head):
        for weight in layer.trainable_variables:
            weight.assign_add(rng.normal(0, 0.2, weight.shape))
    policy.update_statistics(random_observations(observations, 50, rng), np.ones(50, bool))
    return policy


def written(policy, path, file_format="onnx", batch=None, sequence=False, action_masks=False):
    graph = trace(policy, batch, sequence, action_masks, float64=file_format != "tflite")
    WRITERS[file_format](graph, describe(policy, graph), path)
    return graph


def json_of(text):
    """Parses JSON as other languages do, which refuse Infinity and NaN."""
    return json.loads(text, parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    """A function that exports a kind once: the policy, the graph and the file, which no test changes."""

    @functools.cache
    def exported(kind, sequence=False):
        policy, path = make(kind), tmp_path_factory.mktemp(kind) / "policy.onnx"
        policy.env_id = "CartPole-v1"
        return policy, written(policy, path, sequence=sequence, action_masks=kind in MASKED and not sequence), path

    return exported


@pytest.mark.many_cases
@pytest.mark.parametrize("kind", KINDS)
def test_one_onnx_file_equals_predict_at_every_batch_size(kind, onnx):
    policy, graph, path = onnx(kind)
    for batch, steps in ((1, 100), (17, 20)):
        assert largest_difference(policy, graph, "onnx", path, batch, steps) < 1e-5


def test_of_a_critic_that_sees_more_nothing_is_exported(onnx):
    policy, graph, path = onnx("critic_keys")
    assert largest_difference(policy, graph, "onnx", path, 3, 30) < 1e-5
    described = json_of(describe(policy, graph))
    assert list(described["inputs"]) == ["observation_a", "h", "c", "episode_start", "previous_reward", "noise"]
    assert described["inputs"]["h"]["shape"] == ["batch", 16]  # two of the four layers
    assert "value" not in described["outputs"]


@pytest.mark.many_cases
@pytest.mark.parametrize("kind", ["critic_keys", "discrete", "box", "gsde", "dict"])
def test_onnx_of_sequences_resets_inside(kind, onnx):
    policy, graph, path = onnx(kind, sequence=True)
    assert largest_difference(policy, graph, "onnx", path, 2, 120) < 1e-5


@pytest.mark.many_cases
@pytest.mark.parametrize("kind", ["multi_binary", "box", "dict"])
def test_tflite_equals_predict(kind, tmp_path):
    policy = make(kind)
    graph = written(policy, tmp_path / "policy.tflite", "tflite", action_masks=kind in MASKED)
    assert largest_difference(policy, graph, "tflite", tmp_path / "policy.tflite", 1, 100) < 1e-5


def test_tflite_of_sequences_equals_predict(tmp_path):
    policy = make("gsde")
    graph = written(policy, tmp_path / "policy.tflite", "tflite", sequence=True)
    assert largest_difference(policy, graph, "tflite", tmp_path / "policy.tflite", 1, 100) < 1e-5


@pytest.mark.slow
def test_saved_model_equals_predict_and_loads_without_this_package(tmp_path):
    policy = make("dict")
    result = rl_lnlstm.export(policy, tmp_path / "model", "saved_model")
    assert 0 < result.difference < 1e-5
    assert result.steps == 1000
    description = json_of((tmp_path / "model" / "assets.extra" / "rl_lnlstm.json").read_text())
    assert description["inputs"]["observation_t_0"]["dtype"] == "int8"
    program = "import sys, tensorflow as tf; tf.saved_model.load('model'); assert 'rl_lnlstm' not in sys.modules"
    subprocess.run([sys.executable, "-I", "-c", program], check=True, cwd=tmp_path)


def test_a_link_stays_and_its_file_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lnlstm.exporting.export.largest_difference", lambda *_: 0.0)
    (tmp_path / "link.onnx").symlink_to("model")
    rl_lnlstm.export(make("discrete"), tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").is_symlink()
    assert onnxruntime.InferenceSession(tmp_path / "model").get_inputs()


def test_a_difference_is_found_and_nothing_is_written(tmp_path, monkeypatch):
    """A policy whose bias changes between writing and comparing stands for a converter that is wrong."""
    policy = make("discrete")
    write = WRITERS["onnx"]

    def wrong(graph, description, path):
        write(graph, description, path)
        policy.network.value_head.bias.assign_add([1e-3])

    monkeypatch.setitem(WRITERS, "onnx", wrong)
    with pytest.raises(RunFailure, match=r"differs from the policy by 1.0e-03 within 1,000 steps"):
        rl_lnlstm.export(policy, tmp_path / "policy.onnx")
    assert list(tmp_path.iterdir()) == []


def test_actions_follow_from_parameters_and_noise(onnx):
    """Worked out in NumPy from what the model says of itself, without the policy."""
    for kind in ("discrete", "box"):
        session = onnxruntime.InferenceSession(onnx(kind)[2])
        description = json_of(session.get_modelmeta().custom_metadata_map["rl_lnlstm"])
        rng, sizes = np.random.default_rng(0), {"batch": 5}
        inputs = {}
        for name, port in description["inputs"].items():
            shape = [sizes.get(size, size) for size in port["shape"]]
            inputs[name] = rng.normal(size=shape).astype(port["dtype"])
        outputs = dict(zip(description["outputs"], session.run(list(description["outputs"]), inputs), strict=True))
        if kind == "discrete":
            noise = inputs["noise"]
            assert description["noise_kinds"] == [{"distribution": "standard Gumbel", "columns": 3}]
            np.testing.assert_array_equal(outputs["action"], outputs["logits"].argmax(1) - 1)
            np.testing.assert_array_equal(outputs["sampled_action"], (outputs["logits"] + noise).argmax(1) - 1)
        else:
            sampled = outputs["mean"] + np.exp(outputs["log_std"]) * inputs["noise"]
            for name, unit in (("action", outputs["mean"]), ("sampled_action", sampled)):
                clipped = np.clip(unit, -1, 1)
                expected = np.stack([2 * clipped[:, 0], 2.5e4 + 2.5e4 * clipped[:, 1], unit[:, 2]], 1)
                np.testing.assert_allclose(outputs[name], expected, rtol=1e-5, atol=1e-5)


def test_actions_are_inside_of_bounds_that_float32_does_not_have(tmp_path):
    space = S.Box(-0.1, 0.1, (2,), np.float64)
    policy = MlpLnLstmPolicy(VECTOR, space, units=4, seed=0)
    written(policy, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    description = json_of(session.get_modelmeta().custom_metadata_map["rl_lnlstm"])
    rng, sizes = np.random.default_rng(0), {"batch": 50}
    inputs = {
        name: rng.normal(scale=9, size=[sizes.get(size, size) for size in port["shape"]]).astype(port["dtype"])
        for name, port in description["inputs"].items()
    }
    (actions,) = session.run(["sampled_action"], inputs)
    assert all(action in space for action in actions)
    assert (np.abs(actions) > 0.0999).any(), "or nothing was clipped"


def test_metadata_and_names_of_axes(onnx, tmp_path):
    policy, _, path = onnx("discrete", sequence=True)
    session = onnxruntime.InferenceSession(path)
    assert {port.name: port.shape for port in session.get_inputs()} == {
        "observation": ["batch", "time", 3],
        "h": ["batch", 8],
        "c": ["batch", 8],
        "episode_start": ["batch", "time"],
        "previous_action": ["batch", "time"],
        "previous_reward": ["batch", "time"],
        "noise": ["batch", "time", 3],
    }
    assert [port.name for port in session.get_outputs()] == [
        *("action", "sampled_action", "logits", "value", "next_h", "next_c")
    ]
    description = json_of(session.get_modelmeta().custom_metadata_map["rl_lnlstm"])
    assert description["env_id"] == "CartPole-v1"
    assert (description["units"], description["state_size"], description["sequence"]) == (8, 8, True)
    assert description["action_space"] == {"type": "Discrete", "n": 3, "start": -1, "dtype": "int64"}
    assert description["versions"]["rl_lnlstm"] == rl_lnlstm.__version__
    written(policy, tmp_path / "policy.tflite", "tflite", batch=1)
    assert b'"env_id": "CartPole-v1"' in (tmp_path / "policy.tflite").read_bytes()
    runner = litert.Interpreter(str(tmp_path / "policy.tflite")).get_signature_runner()
    assert runner.get_input_details()["episode_start"]["dtype"] == np.bool_


def test_a_bound_that_is_not_finite_is_null(onnx):
    description = json_of(describe(*onnx("box")[:2]))
    assert (description["observation_space"]["low"], description["observation_space"]["high"]) == (None, None)
    assert (description["action_space"]["low"], description["action_space"]["high"]) == ([-2, 0, None], [2, 5e4, None])


def test_masks_are_an_input_if_the_policy_was_trained_with_them(tmp_path):
    policy = make("discrete")
    policy.step(np.zeros((1, 3), np.float32), None, np.ones(1, bool))
    assert not policy.uses_action_masks
    policy.step(np.zeros((1, 3), np.float32), None, np.ones(1, bool), np.ones((1, 3), bool))
    assert policy.uses_action_masks
    policy.save(tmp_path / "policy")
    assert main(["export", str(tmp_path / "policy"), str(tmp_path / "policy.onnx")]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert "action_mask" in [port.name for port in session.get_inputs()]


def model_of(layer, masked):
    inputs = [keras.Input([None, 5]), keras.Input([None])][: 1 + masked]
    model = keras.Model(inputs, layer(inputs[0], masks=inputs[1] if masked else None))
    model([np.zeros((1, 2, 5)), np.ones((1, 2))][: 1 + masked])
    return model


def sequences(masked):
    rng = np.random.default_rng(0)
    for batch, time in ((1, 1), (3, 7), (2, 300)):
        given = [rng.normal(size=(batch, time, 5)), rng.random((batch, time)) > 0.1]
        yield [part.astype(np.float32) for part in given[: 1 + masked]]


@pytest.mark.parametrize("masked", [False, True])
def test_a_model_with_the_layer_converts_as_one_with_keras_lstm(masked, tmp_path):
    model = model_of(rl_lnlstm.MaskedLNLSTM(6, return_sequences=True), masked)
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = [port.name for port in session.get_inputs()]
    interpreter = litert.Interpreter(model_content=tf.lite.TFLiteConverter.from_keras_model(model).convert())
    runner = interpreter.get_signature_runner()
    by_rank = sorted(runner.get_input_details(), key=lambda name: -len(runner.get_input_details()[name]["shape"]))
    for given in sequences(masked):
        expected = model(given).numpy()
        # Without resets, the layer amplifies rounding from step to step, whoever computes it.
        atol = 1e-5 if expected.shape[1] < 10 else 1e-3
        np.testing.assert_allclose(session.run(None, dict(zip(names, given, strict=True)))[0], expected, atol=atol)
        np.testing.assert_allclose(*runner(**dict(zip(by_rank, given, strict=True))).values(), expected, atol=atol)


class Bessel(keras.layers.Layer):
    def call(self, inputs):
        return tf.math.bessel_i0(inputs)


class CallsPython(MlpLnLstmPolicy):
    def _encode(self, frames):
        return tf.ensure_shape(tf.numpy_function(np.tanh, [super()._encode(frames)], tf.float32), [None, 64])


@pytest.mark.parametrize(
    ("file_format", "message"),
    [("onnx", r"cannot be exported to ONNX.*bessel"), ("tflite", r"cannot be exported to TFLite.*bessel")],
)
def test_an_encoder_that_cannot_be_exported_is_named(file_format, message, tmp_path):
    encoder = keras.Sequential([keras.Input([3]), Bessel(), keras.layers.Dense(4)])
    refuses(RecurrentPolicy(VECTOR, S.Discrete(2), encoder=encoder, units=8), file_format, message, tmp_path)


def test_a_policy_that_calls_python_is_refused(tmp_path):
    """A SavedModel of it could be written, but not run anywhere."""
    refuses(CallsPython(VECTOR, S.Discrete(2), units=8), "saved_model", "PyFunc calls Python code", tmp_path)


def refuses(policy, file_format, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        rl_lnlstm.export(policy, tmp_path / "policy", file_format)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_large_means_are_normalised_precisely(tmp_path):
    """Positions around 100,000 that differ by 1: float32 alone would lose a hundredth."""
    policy = MlpLnLstmPolicy(S.Box(-np.inf, np.inf, (3,)), S.Discrete(2), units=8, normalize_observations=True, seed=0)
    rng = np.random.default_rng(0)
    policy.update_statistics(rng.normal(123456.789, 1, (1000, 3)), np.ones(1000, bool))
    graph = written(policy, tmp_path / "policy.tflite", "tflite")
    assert largest_difference(policy, graph, "tflite", tmp_path / "policy.tflite", 2, 50) < 1e-5
