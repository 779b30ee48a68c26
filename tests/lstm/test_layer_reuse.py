"""Reusing the layer: its cell, its gates, the weights of a keras.layers.LSTM, and how Keras finds the class."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM, MaskedLNLSTMCell, UserError
from tests.lstm.fresh_process import run_fresh
from tests.reference import Weights, masked_ln_lstm, random_case, set_weights


def test_the_cell_shares_the_layers_weights():
    case = random_case(3, 1, 4, 6, masks="none")
    layer = set_weights(MaskedLNLSTM(6), case.weights)
    cell = layer.cell
    assert isinstance(cell, MaskedLNLSTMCell)
    assert all(one is other for one, other in zip(cell.weights, layer.weights, strict=True))
    layer.kernel.assign(2 * layer.kernel)
    changed = case._replace(weights=case.weights._replace(kernel=2 * case.weights.kernel))
    output, _ = cell(case.xs[:, 0].astype("float32"), [case.h0.astype("float32"), case.c0.astype("float32")])
    np.testing.assert_allclose(output, masked_ln_lstm(*changed)[1], atol=1e-5)
    with pytest.raises(UserError, match="build"):
        MaskedLNLSTM(6).cell  # noqa: B018


def test_a_saved_layer_does_not_hold_its_cell_as_well(tmp_path):
    inputs = keras.Input((None, 3))
    layer = MaskedLNLSTM(4)
    model = keras.Model(inputs, layer(inputs))
    layer.cell  # noqa: B018
    model.save_weights(tmp_path / "model.weights.h5")
    import h5py

    with h5py.File(tmp_path / "model.weights.h5") as file:
        names = []
        file.visit(names.append)
    assert not [name for name in names if name.endswith("/cell")]
    assert len([name for name in names if name.startswith("layers/masked_lnlstm/vars/")]) == 7


@pytest.mark.parametrize("time_major", [False, True])
def test_gates_give_the_outputs(time_major):
    case = random_case(3, 7, 4, 5)
    xs, masks = (case.xs.swapaxes(0, 1), case.masks.swapaxes(0, 1)) if time_major else (case.xs, case.masks)
    layer = set_weights(MaskedLNLSTM(5, return_sequences=True, dtype="float64", time_major=time_major), case.weights)
    gates = layer.gates(xs, masks=masks, initial_state=[case.h0, case.c0])
    assert gates._fields == ("i", "f", "o", "g", "c")
    i, f, o, g, c = (part.numpy().swapaxes(0, 1) if time_major else part.numpy() for part in gates)
    before = np.concatenate([case.c0[:, None], c[:, :-1]], 1) * case.masks[..., None]
    np.testing.assert_allclose(c, f * before + i * g, atol=1e-12)
    normalised = (c - c.mean(-1, keepdims=True)) / np.sqrt(c.var(-1, keepdims=True) + 1e-5)
    ys = o * np.tanh(normalised * case.weights.cell_gamma + case.weights.cell_beta)
    np.testing.assert_allclose(ys, masked_ln_lstm(*case)[0], atol=1e-10)
    np.testing.assert_allclose(c[:, -1], masked_ln_lstm(*case)[2], atol=1e-10)


def test_gates_of_an_unbuilt_layer_and_wrong_masks():
    layer = MaskedLNLSTM(4)
    assert layer.gates(np.ones((2, 5, 3), "float32")).f.shape == (2, 5, 4)
    with pytest.raises(UserError, match=r"masks must have shape \[batch, time\] = \[2, 5\], got \[5, 2\]"):
        layer.gates(np.ones((2, 5, 3), "float32"), masks=np.ones((5, 2)))


def test_weights_of_a_keras_lstm_are_taken_gate_by_gate():
    lstm = keras.layers.LSTM(4, return_sequences=True, kernel_regularizer="l2", bias_initializer="glorot_uniform")
    lstm.build((None, None, 3))
    layer = MaskedLNLSTM.from_keras_lstm(lstm, return_state=True)
    assert (layer.return_sequences, layer.return_state) == (True, True)
    assert isinstance(layer.kernel_regularizer, keras.regularizers.L2)
    names = {"i": 0, "f": 1, "o": 3, "g": 2}  # where each of our gates is in theirs
    weights = Weights(*layer.get_weights())
    for theirs, ours in zip(lstm.get_weights(), (weights.kernel, weights.recurrent_kernel, weights.bias), strict=True):
        theirs = np.split(theirs, 4, -1)
        for part, place in zip(np.split(ours, 4, -1), names.values(), strict=True):
            np.testing.assert_array_equal(part, theirs[place])
    for gain in (weights.kernel_gamma, weights.recurrent_gamma, weights.cell_gamma):
        np.testing.assert_array_equal(gain, 1.0)
    xs = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    np.testing.assert_allclose(layer(xs)[0], masked_ln_lstm(weights, xs)[0], atol=1e-4)


def test_a_keras_lstm_that_cannot_be_taken_is_named():
    with pytest.raises(UserError, match="activation must be 'tanh'"):
        MaskedLNLSTM.from_keras_lstm(keras.layers.LSTM(4, activation="relu"))
    with pytest.raises(UserError, match=r"keras.layers.LSTM, got a GRU"):
        MaskedLNLSTM.from_keras_lstm(keras.layers.GRU(4))
    assert not MaskedLNLSTM.from_keras_lstm(keras.layers.LSTM(4, use_bias=False)).built


@pytest.mark.parametrize("time_major", [False, True])
def test_a_keras_lstm_may_be_stateful_or_without_a_bias(time_major):
    lstm = keras.layers.LSTM(4, stateful=True, use_bias=False)
    lstm.build((2, 5, 3))
    layer = MaskedLNLSTM.from_keras_lstm(lstm, use_bias=True, time_major=time_major)
    assert [part.shape for part in layer.states] == [(2, 4), (2, 4)]
    np.testing.assert_array_equal(layer.bias, np.zeros(16))
    assert layer(np.ones((5, 2, 3) if time_major else (2, 5, 3), "float32")).shape == (2, 4)


@pytest.mark.many_cases
@pytest.mark.parametrize(
    "imports",
    ["import keras, rl_lnlstm", "import rl_lnlstm, keras", "import rl_lnlstm, tensorflow; keras = tensorflow.keras"],
)
def test_keras_finds_the_layer_after_the_package_is_imported(imports, tmp_path):
    inputs = keras.Input((None, 3))
    cell = keras.layers.RNN(MaskedLNLSTMCell(4), return_sequences=True)(inputs)
    model = keras.Model(inputs, MaskedLNLSTM(4)(cell))
    model.save(tmp_path / "model.keras")
    xs = np.ones((2, 5, 3), "float32")
    np.save(tmp_path / "expected.npy", model(xs))
    program = f"""
        import os, sys
        os.chdir(sys.argv[1])
        {imports}
        import numpy as np
        assert "rl_lnlstm.lstm.layer" not in sys.modules
        model = keras.models.load_model("model.keras")
        np.testing.assert_allclose(model(np.ones((2, 5, 3), "float32")), np.load("expected.npy"), atol=1e-6)
    """
    run_fresh(program, tmp_path)


def test_importing_the_package_imports_neither_keras_nor_tensorflow():
    program = """
        import sys
        import rl_lnlstm
        assert not {"keras", "tensorflow"} & set(sys.modules)
    """
    run_fresh(program)


def test_statistics_of_a_gradient_in_float16_do_not_overflow():
    """From a state of zeros 1 / std is 316: times a loss scale it is more than float16 can hold."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 3))
    outputs = keras.layers.Dense(1, dtype="float32")(MaskedLNLSTM(8, dtype="mixed_float16")(inputs))
    model = keras.Model(inputs, outputs)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01), initial_scale=2.0**15)
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(64, 6, 3)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")
    model.fit(xs, ys, batch_size=8, epochs=2, verbose=0)
    assert int(optimizer.inner_optimizer.iterations) == 16  # no step was skipped
    assert float(optimizer.dynamic_scale) == 2.0**15


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("kind", ["layer", "cell"])
def test_gradients_in_mixed_float16_from_a_state_of_zeros_are_those_of_float32(kind, time):
    case = random_case(4, time, 3, 8, masks="random")
    xs, scale = tf.constant(case.xs, tf.float16), 2.0**15

    def gradients(dtype):
        layer = set_weights(MaskedLNLSTM(8, dtype=dtype), case.weights)
        arguments = {"masks": case.masks} if kind == "layer" else {}
        run = layer if kind == "layer" else keras.layers.RNN(layer.cell, dtype=dtype)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.cast(run(xs, **arguments), tf.float32)) * scale
        return [gradient.numpy() for gradient in tape.gradient(loss, layer.trainable_variables)]

    for got, expected in zip(gradients("mixed_float16"), gradients("float32"), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, expected, atol=2e-2 * max(np.abs(expected).max(), 1.0))
