"""The layer and the cell behave as if Keras shipped them: construction, configuration, models, training, saving."""

import inspect
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM, MaskedLNLSTMCell
from tests.lstm.fresh_process import run_fresh
from tests.reference import Case, Weights, masked_ln_lstm, random_case, set_weights


def layer_for(case: Case, **kwargs) -> MaskedLNLSTM:
    return set_weights(MaskedLNLSTM(case.weights.cell_gamma.size, **kwargs), case.weights)


def model_of(layer: MaskedLNLSTM, features: int) -> keras.Model:
    """Return a functional model `(xs, masks) -> outputs of the layer`, of any length."""
    xs = keras.Input((None, features), name="xs")
    masks = keras.Input((None,), name="masks")
    return keras.Model([xs, masks], layer(xs, masks=masks))


# Weights


def test_weights_have_the_documented_order_shapes_and_names():
    layer = MaskedLNLSTM(5)
    layer.build((None, None, 3))
    expected = [(3, 20), (5, 20), (20,), (20,), (20,), (5,), (5,)]
    assert [weight.name for weight in layer.weights] == list(Weights._fields)
    assert [tuple(weight.shape) for weight in layer.weights] == expected
    assert all(getattr(layer, name) is weight for name, weight in zip(Weights._fields, layer.weights, strict=True))
    cell = MaskedLNLSTMCell(5)
    cell.build((None, 3))
    assert [weight.name for weight in cell.weights] == list(Weights._fields)
    assert [tuple(weight.shape) for weight in cell.weights] == expected
    assert all(getattr(cell, name) is weight for name, weight in zip(Weights._fields, cell.weights, strict=True))


def test_a_new_layer_normalises_without_scaling():
    layer = MaskedLNLSTM(5)
    layer.build((None, None, 3))
    weights = Weights(*layer.get_weights())
    for gamma in (weights.kernel_gamma, weights.recurrent_gamma, weights.cell_gamma):
        np.testing.assert_array_equal(gamma, 1.0)
    np.testing.assert_array_equal(weights.cell_beta, 0.0)
    assert np.ptp(weights.kernel) > 0.1
    # Each unit's recurrent weights differ, as those of an orthogonal matrix: no two rows alike.
    np.testing.assert_allclose(weights.recurrent_kernel @ weights.recurrent_kernel.T, np.eye(5), atol=1e-5)


@pytest.mark.parametrize("kind", [MaskedLNLSTM, MaskedLNLSTMCell])
def test_unit_forget_bias_sets_the_forget_gate_alone_to_one(kind):
    shape = (None, None, 3) if kind is MaskedLNLSTM else (None, 3)
    for unit_forget_bias, forget in [(True, 1.0), (False, 0.0)]:
        layer = kind(4, unit_forget_bias=unit_forget_bias)
        layer.build(shape)
        i, f, o, g = np.split(layer.bias.numpy(), 4)
        np.testing.assert_array_equal(f, forget)
        np.testing.assert_array_equal([i, o, g], 0.0)
    default = kind(4)
    default.build(shape)
    np.testing.assert_array_equal(default.bias.numpy()[4:8], 1.0)


def test_initializers_are_used():
    constants = {"kernel": 0.1, "recurrent": 0.2, "bias": 0.3, "gamma": 0.4}
    layer = MaskedLNLSTM(
        4,
        unit_forget_bias=False,
        **{f"{name}_initializer": keras.initializers.Constant(value) for name, value in constants.items()},
    )
    layer.build((None, None, 3))
    weights = Weights(*layer.get_weights())
    expected = Weights(0.1, 0.2, 0.4, 0.4, 0.3, 0.4, 0.0)
    for name, got, value in zip(Weights._fields, weights, expected, strict=True):
        np.testing.assert_allclose(got, value, err_msg=name)


def test_regularizers_add_their_losses():
    case = random_case(2, 3, 3, 4)
    layer = layer_for(
        case,
        kernel_regularizer=keras.regularizers.L2(0.1),
        recurrent_regularizer=keras.regularizers.L1(0.2),
        bias_regularizer="l2",
    )
    layer(case.xs)
    expected = [
        0.1 * np.sum(case.weights.kernel**2),
        0.2 * np.sum(np.abs(case.weights.recurrent_kernel)),
        0.01 * np.sum(case.weights.bias**2),
    ]
    np.testing.assert_allclose(sorted(float(loss) for loss in layer.losses), sorted(expected), rtol=1e-5)


# Shapes, as keras.layers.LSTM


@pytest.mark.parametrize("return_state", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_returns_what_keras_lstm_returns(return_sequences, return_state):
    flags = {"return_sequences": return_sequences, "return_state": return_state}
    ours, stock = MaskedLNLSTM(6, **flags), keras.layers.LSTM(6, **flags)

    def structure(outputs):
        if return_state:
            assert isinstance(outputs, (list, tuple))
            return [(tuple(output.shape), str(output.dtype)) for output in outputs]
        return tuple(outputs.shape), str(outputs.dtype)

    symbolic = keras.Input((None, 3))
    assert structure(ours(symbolic)) == structure(stock(symbolic))
    xs = np.ones((2, 4, 3), "float32")
    assert type(ours(xs)) is type(stock(xs))
    assert structure(ours(xs)) == structure(stock(xs))
    zeros = np.zeros((2, 6), "float32")
    assert structure(ours(xs, initial_state=[zeros, zeros])) == structure(stock(xs, initial_state=[zeros, zeros]))
    for shape in [(None, None, 3), (2, 4, 3)]:
        np.testing.assert_equal(ours.compute_output_shape(shape), stock.compute_output_shape(shape))


def test_output_shapes_of_a_time_major_layer():
    assert MaskedLNLSTM(6, time_major=True).compute_output_shape((7, 2, 3)) == (2, 6)
    assert MaskedLNLSTM(6, time_major=True, return_sequences=True).compute_output_shape((7, 2, 3)) == (7, 2, 6)


# Configuration


@pytest.mark.parametrize("kind", [MaskedLNLSTM, MaskedLNLSTMCell])
def test_the_configuration_holds_every_argument_and_makes_the_same_layer(kind):
    flags = {"return_sequences": True, "return_state": True, "time_major": True, "backend": "while_loop"}
    layer = kind(
        7,
        kernel_initializer="he_normal",
        recurrent_initializer=keras.initializers.RandomNormal(stddev=0.3, seed=3),
        bias_initializer=keras.initializers.Constant(0.5),
        unit_forget_bias=False,
        kernel_regularizer=keras.regularizers.L2(0.01),
        recurrent_regularizer="l1",
        dtype="mixed_bfloat16",
        name="core",
        **(flags if kind is MaskedLNLSTM else {}),
    )
    config = layer.get_config()
    parameters = inspect.signature(kind.__init__).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD} - {"self"}
    assert named <= config.keys()
    again = kind.from_config(json.loads(json.dumps(config)))
    assert again.get_config() == config
    assert again.name == "core"
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert again.units == 7
    if kind is MaskedLNLSTM:
        assert {flag: getattr(again, flag) for flag in flags} == flags
    via_keras = keras.layers.deserialize(json.loads(json.dumps(keras.layers.serialize(layer))))
    assert type(via_keras) is kind
    assert via_keras.get_config() == config


def test_clone_model_makes_an_equal_layer_with_weights_of_its_own():
    case = random_case(2, 6, 3, 5)
    model = model_of(layer_for(case, return_sequences=True), 3)
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(clone([case.xs, case.masks]), model([case.xs, case.masks]))
    assert not {id(weight) for weight in clone.weights} & {id(weight) for weight in model.weights}


# The cell


def test_one_step_of_the_cell_equals_the_reference():
    case = random_case(3, 1, 4, 7, masks="none")
    cell = MaskedLNLSTMCell(7, dtype="float64")
    cell.build((None, 4))
    cell.set_weights(list(case.weights))
    output, (h, c) = cell(case.xs[:, 0], [case.h0, case.c0])
    _, expected_h, expected_c = masked_ln_lstm(*case)
    np.testing.assert_allclose(h, expected_h, atol=1e-12)
    np.testing.assert_allclose(c, expected_c, atol=1e-12)
    np.testing.assert_array_equal(output, h)
    assert list(cell.state_size) == [7, 7]
    assert cell.output_size == 7


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5), ("mixed_bfloat16", 8e-2)])
def test_the_cell_in_keras_rnn_equals_the_layer(dtype, tolerance):
    case = random_case(3, 8, 4, 7, masks="none")
    layer = layer_for(case, return_sequences=True, return_state=True, dtype=dtype)
    rnn = keras.layers.RNN(MaskedLNLSTMCell(7, dtype=dtype), return_sequences=True, return_state=True, dtype=dtype)
    rnn.build((None, None, 4))
    rnn.cell.set_weights(layer.get_weights())
    for one, other in zip(
        rnn(case.xs, initial_state=[case.h0, case.c0]), layer(case.xs, initial_state=[case.h0, case.c0]), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(tf.cast(one, "float64"), tf.cast(other, "float64"), atol=tolerance)
    np.testing.assert_allclose(  # and from the cell's own initial state
        tf.cast(rnn(case.xs)[0], "float64"), tf.cast(layer(case.xs)[0], "float64"), atol=tolerance
    )


def test_a_model_of_the_cell_is_saved_and_loaded(tmp_path):
    case = random_case(3, 8, 4, 7, masks="none")
    xs = keras.Input((None, 4))
    model = keras.Model(xs, keras.layers.RNN(MaskedLNLSTMCell(7), return_sequences=True)(xs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(case.xs), model(case.xs))


# Models


def test_a_functional_model_equals_the_reference():
    case = random_case(5, 9, 3, 6)
    xs = keras.Input((None, 3))
    masks = keras.Input((None,), dtype="bool")
    h0, c0 = keras.Input((6,)), keras.Input((6,))
    layer = layer_for(case, return_sequences=True, return_state=True)
    model = keras.Model([xs, masks, h0, c0], layer(xs, masks=masks, initial_state=[h0, c0]))
    got = model.predict([case.xs, case.masks.astype(bool), case.h0, case.c0], verbose=0, batch_size=2)
    for one, other in zip(got, masked_ln_lstm(*case), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_fit_lowers_the_loss():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(72, 6, 3)).astype("float32")
    masks = np.ones((72, 6), "float32")
    masks[::2, 3] = 0.0
    # To be remembered: the first input since the last reset.
    first_seen = np.where(np.arange(72) % 2 == 0, xs[:, 3, 0], xs[:, 0, 0])
    inputs = keras.Input((None, 3)), keras.Input((None,))
    memory = MaskedLNLSTM(12)(inputs[0], masks=inputs[1])
    model = keras.Model(inputs, keras.layers.Dense(1)(memory))
    model.compile(keras.optimizers.Adam(0.02), "mse")
    before = [weight.numpy() for weight in model.layers[2].weights]
    history = model.fit([xs, masks], first_seen, batch_size=16, epochs=15, verbose=0).history["loss"]
    assert history[-1] < 0.4 * history[0]
    assert all(np.any(old != new.numpy()) for old, new in zip(before, model.layers[2].weights, strict=True))


# Saving


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_a_keras_file_gives_the_same_model_back(tmp_path, dtype):
    case = random_case(3, 7, 4, 6)
    model = model_of(layer_for(case, return_sequences=True, return_state=True, dtype=dtype), 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded([case.xs, case.masks]), model([case.xs, case.masks]), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_saved_models_work_in_a_fresh_process(tmp_path):
    case = random_case(3, 7, 4, 6)
    layer = layer_for(case, return_sequences=True, return_state=True)
    model = model_of(layer, 4)
    model.export(tmp_path / "exported", verbose=False)
    model.save(tmp_path / "model.keras")

    module = tf.Module()
    module.layer = layer
    shapes = [[None, None, 4], [None, None], [None, 6], [None, 6]]

    @tf.function(input_signature=[tf.TensorSpec(shape, "float32") for shape in shapes])
    def call(xs, masks, h0, c0):
        return layer(xs, masks=masks, initial_state=[h0, c0])

    module.call = call
    tf.saved_model.save(module, str(tmp_path / "saved"))

    longer = random_case(2, 19, 4, 6, seed=1)._replace(weights=case.weights)
    np.savez(tmp_path / "given.npz", **{name: getattr(longer, name) for name in ("xs", "masks", "h0", "c0")})
    arrays = [tf.constant(array, tf.float32) for array in longer[1:]]
    with tf.GradientTape() as tape:
        tape.watch(arrays[0])
        ys, h, c = call(*arrays)
        loss = tf.reduce_sum(ys**2) + tf.reduce_sum(c)
    from_zeros, _, _ = layer(longer.xs, masks=longer.masks)
    np.testing.assert_allclose(ys, masked_ln_lstm(*longer)[0], atol=1e-5)
    expected = {"ys": ys, "h": h, "c": c, "gradient": tape.gradient(loss, arrays[0]), "from_zeros": from_zeros}
    np.savez(tmp_path / "expected.npz", **{name: tensor.numpy() for name, tensor in expected.items()})

    program = """
        import os, sys
        os.chdir(sys.argv[1])
        import numpy as np
        import tensorflow as tf

        given, expected = dict(np.load("given.npz")), dict(np.load("expected.npz"))
        xs, masks, h0, c0 = (tf.constant(given[name], tf.float32) for name in ("xs", "masks", "h0", "c0"))
        close = lambda name, got: np.testing.assert_allclose(got, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)

        exported = tf.saved_model.load("exported")
        close("from_zeros", exported.serve([xs, masks])[0])

        saved = tf.saved_model.load("saved")
        with tf.GradientTape() as tape:
            tape.watch(xs)
            ys, h, c = saved.call(xs, masks, h0, c0)
            loss = tf.reduce_sum(ys**2) + tf.reduce_sum(c)
        close("ys", ys)
        close("h", h)
        close("c", c)
        close("gradient", tape.gradient(loss, xs))
        assert not [name for name in sys.modules if name.startswith("rl_lnlstm")]

        import keras
        import rl_lnlstm  # which is enough for Keras to find the layer
        model = keras.models.load_model("model.keras")
        close("from_zeros", model([xs, masks])[0])
    """
    run_fresh(program, tmp_path)
