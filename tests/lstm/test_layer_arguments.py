"""Arguments of keras.layers.LSTM have the same meaning here: padding, go_backwards, stateful, dropout, bias."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM, UserError
from tests.lstm.layer_case import assert_all_close, layer_for
from tests.reference import Weights, central_differences, masked_ln_lstm, random_case

BACKENDS = ["while_loop", "auto"]


def padding_of(case) -> np.ndarray:
    """Steps left out at the start, in the middle, at the end, all of them, and none."""
    padding = np.random.default_rng(3).random(case.xs.shape[:2]) > 0.4
    padding[0], padding[1] = False, True
    padding[2, :2], padding[3, -2:] = False, False
    return padding


# Padding


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
@pytest.mark.parametrize("masks", ["none", "random"])
@pytest.mark.parametrize("time_major", [False, True])
def test_padded_steps_are_left_out(time_major, masks, dtype, tolerance):
    case = random_case(5, 9, 3, 6, masks=masks)
    padding = padding_of(case)
    expected = masked_ln_lstm(*case, padding=padding)
    layer = layer_for(case, dtype=dtype, time_major=time_major)
    order = (lambda array: None if array is None else array.swapaxes(0, 1)) if time_major else (lambda array: array)
    ys, h, c = layer(order(case.xs), masks=order(case.masks), initial_state=[case.h0, case.c0], mask=order(padding))
    assert_all_close([order(ys.numpy()), h, c], expected, tolerance)


def test_a_padded_batch_equals_its_sequences_alone():
    case = random_case(4, 7, 3, 6, masks="random")
    lengths = [7, 1, 4, 0]
    layer = layer_for(case)
    ys, h, c = layer(case.xs, masks=case.masks, mask=tf.sequence_mask(lengths, 7))
    for row, length in enumerate(lengths):
        alone = layer(case.xs[row : row + 1, :length], masks=case.masks[row : row + 1, :length])
        assert_all_close([ys[row : row + 1, :length], h[row : row + 1], c[row : row + 1]], alone, 1e-12)


@pytest.mark.parametrize("jit_compile", [None, True, False], ids=["eager", "xla", "function"])
def test_what_is_in_a_padded_step_does_not_matter(jit_compile):
    case = random_case(5, 9, 3, 6)
    padding = padding_of(case)
    layer = layer_for(case, dtype="float32")

    def run(xs):
        with tf.GradientTape() as tape:
            tape.watch(xs)
            loss = tf.add_n([tf.reduce_sum(part**2) for part in layer(xs, masks=case.masks, mask=padding)])
        return [loss, *tape.gradient(loss, [xs, *layer.trainable_variables])]

    if jit_compile is not None:
        run = tf.function(run, jit_compile=jit_compile)
    xs = tf.constant(case.xs, tf.float32)
    clean, broken = run(xs), run(tf.where(padding[..., None], xs, np.nan))
    assert_all_close(broken, clean, 1e-5)
    np.testing.assert_array_equal(broken[1].numpy()[~padding], 0.0)


def test_gradients_with_padding_equal_central_differences():
    case = random_case(5, 6, 2, 4)
    padding = padding_of(case)
    layer = layer_for(case)
    rng = np.random.default_rng(5)
    counts = [rng.normal(size=shape) for shape in ((5, 6, 4), (5, 4), (5, 4))]
    given = {"xs": case.xs, "h0": case.h0, "c0": case.c0, **case.weights._asdict()}

    def loss(name, value):
        at = {**given, name: value}
        weights = Weights(*(at[field] for field in Weights._fields))
        outputs = masked_ln_lstm(weights, at["xs"], case.masks, at["h0"], at["c0"], padding)
        return sum((count * output).sum() for count, output in zip(counts, outputs, strict=True))

    tensors = [tf.constant(given[name]) for name in ("xs", "h0", "c0")]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = layer(tensors[0], masks=case.masks, initial_state=tensors[1:], mask=padding)
        total = tf.add_n([tf.reduce_sum(count * output) for count, output in zip(counts, outputs, strict=True)])
    gradients = tape.gradient(total, [*tensors, *layer.trainable_variables])
    for name, gradient in zip(given, gradients, strict=True):
        expected = central_differences(lambda value, name=name: loss(name, value), given[name])
        np.testing.assert_allclose(gradient, expected, atol=2e-6 * max(np.abs(expected).max(), 1), err_msg=name)


@pytest.mark.parametrize("zero_output_for_mask", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_the_layer_equals_its_cell_in_keras_rnn(return_sequences, go_backwards, zero_output_for_mask):
    case = random_case(5, 6, 3, 4, masks="none")
    flags = {"go_backwards": go_backwards, "zero_output_for_mask": zero_output_for_mask}
    flags |= {"return_sequences": return_sequences, "return_state": True, "dtype": "float64"}
    layer = layer_for(case, **flags)
    rnn = keras.layers.RNN(layer.cell, **flags)
    padding = tf.constant(padding_of(case))
    for arguments in ({}, {"mask": padding}, {"mask": padding, "initial_state": [case.h0, case.c0]}):
        assert_all_close(layer(case.xs, **arguments), rnn(case.xs, **arguments), 1e-12)


@pytest.mark.parametrize("front", ["Masking", "Embedding"])
def test_masks_of_layers_in_front_arrive_and_go_on(front):
    numbers = np.array([[4, 2, 0, 0], [1, 0, 3, 0], [5, 6, 7, 8]])
    if front == "Masking":
        layers = [keras.layers.Masking()]
        inputs = (numbers > 0)[..., None] * np.random.default_rng(0).normal(size=(3, 4, 5))
    else:
        layers, inputs = [keras.layers.Embedding(10, 5, mask_zero=True)], numbers
    layers += [MaskedLNLSTM(6, return_sequences=True), MaskedLNLSTM(4)]
    model = keras.Sequential(layers)
    seen = layers[0](inputs)
    first = layers[1](seen, mask=numbers > 0)
    np.testing.assert_allclose(model(inputs), layers[2](first, mask=numbers > 0), atol=1e-6)
    assert np.abs(model(inputs) - layers[2](layers[1](tf.constant(seen.numpy())))).max() > 1e-3


def test_compute_mask_is_that_of_keras_lstm():
    mask = np.ones((2, 3), bool)
    for flags in (
        {},
        {"return_sequences": True},
        {"return_state": True},
        {"return_sequences": True, "return_state": True},
    ):
        ours, stock = MaskedLNLSTM(4, **flags), keras.layers.LSTM(4, **flags)
        np.testing.assert_equal(ours.compute_mask(None, mask), stock.compute_mask(None, mask))
        np.testing.assert_equal(ours.compute_mask(None, None), stock.compute_mask(None, None))


# go_backwards, Bidirectional, TimeDistributed


@pytest.mark.parametrize("backend", BACKENDS)
def test_go_backwards_processes_the_reversed_sequence(backend):
    case = random_case(3, 7, 4, 5)
    reversed_case = case._replace(xs=case.xs[:, ::-1], masks=case.masks[:, ::-1])
    layer = layer_for(case, go_backwards=True, dtype="float32", backend=backend)
    got = layer(case.xs, masks=case.masks, initial_state=[case.h0, case.c0])
    assert_all_close(got, masked_ln_lstm(*reversed_case), 1e-5)


@pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_bidirectional_runs_both_ways(return_sequences, merge_mode):
    case = random_case(3, 5, 4, 6, masks="none")
    both = keras.layers.Bidirectional(MaskedLNLSTM(6, return_sequences=return_sequences), merge_mode=merge_mode)
    both.build((None, None, 4))
    there, back = both.get_weights()[:7], both.get_weights()[7:]
    first, last, _ = masked_ln_lstm(Weights(*there), case.xs)
    first_back, last_back, _ = masked_ln_lstm(Weights(*back), case.xs[:, ::-1])
    parts = (first, first_back[:, ::-1]) if return_sequences else (last, last_back)
    expected = {"concat": lambda: [np.concatenate(parts, -1)], "sum": lambda: [sum(parts)], None: lambda: parts}
    got = both(case.xs)
    assert_all_close(got if merge_mode is None else [got], expected[merge_mode](), 1e-5)


def test_bidirectional_of_a_padded_batch_reads_each_sequence_from_its_own_end():
    case = random_case(3, 5, 4, 6, masks="none")
    lengths = [5, 2, 3]
    both = keras.layers.Bidirectional(MaskedLNLSTM(6))
    padded = both(case.xs, mask=tf.sequence_mask(lengths, 5))
    for row, length in enumerate(lengths):
        alone = both(case.xs[row : row + 1, :length])
        np.testing.assert_allclose(padded[row : row + 1], alone, atol=1e-5)


def test_time_distributed_applies_it_to_each_slice():
    xs = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype("float32")
    layer = MaskedLNLSTM(6)
    got = keras.layers.TimeDistributed(layer)(xs)
    for i in range(3):
        np.testing.assert_allclose(got[:, i], layer(xs[:, i]), atol=1e-6)


# stateful


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_stateful_layer_goes_on_from_the_batch_before(backend):
    case = random_case(3, 8, 4, 5, masks="random")
    layer = MaskedLNLSTM(5, stateful=True, return_sequences=True, backend=backend)
    layer.build((3, None, 4))
    layer.set_weights(list(case.weights))  # the state is no weight
    expected = masked_ln_lstm(case.weights, case.xs, case.masks)[0]
    for _ in range(2):
        for start, end in ((0, 3), (3, 4), (4, 8)):
            got = layer(case.xs[:, start:end], masks=case.masks[:, start:end])
            np.testing.assert_allclose(got, expected[:, start:end], atol=1e-5)
        layer.reset_state()
    layer(case.xs)
    layer.reset_states()
    assert all(np.all(variable == 0) for variable in layer.states)


def test_a_stateful_model_trains_and_needs_a_known_batch():
    inputs = keras.Input(batch_shape=(4, 5, 3))
    model = keras.Model(inputs, MaskedLNLSTM(6, stateful=True)(inputs))
    model.compile("sgd", "mse")
    model.fit(np.ones((8, 5, 3)), np.ones((8, 6)), batch_size=4, verbose=0, shuffle=False)
    assert np.abs(model.layers[1].states[0]).max() > 0
    with pytest.raises(UserError, match="batch size"):
        MaskedLNLSTM(6, stateful=True)(keras.Input((5, 3)))
    with pytest.raises(UserError, match=r"initial_state.*\[2, 6\].*\[4, 6\]"):
        model.layers[1](np.ones((2, 5, 3), "float32"))


def test_without_a_bias_there_is_none():
    case = random_case(3, 5, 4, 6)
    layer = MaskedLNLSTM(6, use_bias=False, return_sequences=True, return_state=True)
    layer.build((None, None, 4))
    assert [weight.name for weight in layer.weights] == [name for name in Weights._fields if name != "bias"]
    layer.set_weights([weight for name, weight in case.weights._asdict().items() if name != "bias"])
    case = case._replace(weights=case.weights._replace(bias=np.zeros(24)))
    got = layer(case.xs, masks=case.masks, initial_state=[case.h0, case.c0])
    assert_all_close(got, masked_ln_lstm(*case), 1e-5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(case.xs)[0])
    assert all(gradient is not None for gradient in tape.gradient(loss, layer.trainable_variables))


@pytest.mark.parametrize("others", ["masks", "initial_state", "both"])
def test_the_padding_mask_of_the_inputs_arrives_beside_other_tensors(others, tmp_path):
    ids = np.array([[3, 4, 0, 5, 0], [6, 0, 0, 7, 8]])
    resets, state = np.array([[1, 1, 1, 0, 1], [1, 1, 0, 1, 1]], "float32"), np.full((2, 4), 0.5, "float32")
    embedding, layer = keras.layers.Embedding(10, 3, mask_zero=True), MaskedLNLSTM(4, return_sequences=True)

    def called(embedded, resets, state, **options):
        options |= {} if others == "initial_state" else {"masks": resets}
        return layer(embedded, **options, **({} if others == "masks" else {"initial_state": [state, state]}))

    embedded = np.asarray(embedding(ids))  # without its mask
    expected = called(embedded, resets, state, mask=ids != 0)
    assert not np.allclose(expected, called(embedded, resets, state))
    np.testing.assert_allclose(called(embedding(ids), resets, state), expected, atol=1e-6)

    inputs = [keras.Input([5], dtype="int32"), keras.Input([5]), keras.Input([4])]
    model = keras.Model(inputs, called(embedding(inputs[0]), *inputs[1:]))
    np.testing.assert_allclose(model([ids, resets, state]), expected, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded([ids, resets, state]), expected, atol=1e-6)


@pytest.mark.parametrize("time_major", [False, True])
def test_without_steps_a_padding_mask_changes_nothing(time_major):
    shape = [0, 2] if time_major else [2, 0]
    layer = MaskedLNLSTM(4, time_major=time_major)
    np.testing.assert_array_equal(layer(tf.zeros([*shape, 3]), mask=tf.zeros(shape, tf.bool)), np.zeros((2, 4)))


# What is refused, by name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unroll": True}, "unroll must be False.*got True"),
        ({"activation": "relu"}, "activation must be 'tanh'.*got 'relu'"),
        ({"activation": None}, "activation must be 'tanh'.*got None"),
        ({"recurrent_activation": "hard_sigmoid"}, "recurrent_activation must be 'sigmoid'"),
        ({"dropout": 1.0}, "dropout must be .* got 1.0"),
        ({"recurrent_dropout": -0.1}, "recurrent_dropout must be .* got -0.1"),
        ({"go_backwards": True, "time_major": True}, "go_backwards needs time_major=False"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_are_refused_by_name(arguments, message):
    with pytest.raises(UserError, match=message):
        MaskedLNLSTM(4, **arguments)


def test_default_values_of_keras_lstm_are_accepted():
    MaskedLNLSTM(4, unroll=False, activation="tanh", recurrent_activation="sigmoid")
    MaskedLNLSTM(4, activation=keras.activations.tanh, recurrent_activation=keras.activations.get("sigmoid"))
    with pytest.raises(UserError, match=r"recurrent_activation must be 'sigmoid'.*got <function tanh"):
        MaskedLNLSTM(4, recurrent_activation=keras.activations.tanh)


def test_ragged_and_sparse_tensors_are_named():
    layer = MaskedLNLSTM(4)
    with pytest.raises(UserError, match=r"RaggedTensor.*to_tensor\(\).*mask"):
        layer(tf.ragged.constant([[[1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]]], ragged_rank=1))
    with pytest.raises(UserError, match="SparseTensor"):
        layer(tf.sparse.from_dense(np.ones((2, 3, 4), "float32")))
    with pytest.raises(UserError, match="RaggedTensor"):
        layer(np.ones((2, 3, 4), "float32"), masks=tf.ragged.constant([[1.0], [1.0, 0.0]]))


def test_a_padding_mask_of_another_shape_is_named():
    with pytest.raises(UserError, match=r"mask must have shape \[batch, time\] = \[2, 3\], got \[3, 2\]"):
        MaskedLNLSTM(4)(np.ones((2, 3, 4), "float32"), mask=np.ones((3, 2), bool))


# Configuration of all of it


def test_a_model_of_every_argument_is_saved_and_loaded(tmp_path):
    inputs = keras.Input(batch_shape=(2, 4, 3))
    masked = keras.layers.Masking()(inputs)
    flags = {"dropout": 0.1, "recurrent_dropout": 0.2, "seed": 1, "use_bias": False, "zero_output_for_mask": True}
    both = keras.layers.Bidirectional(MaskedLNLSTM(4, return_sequences=True, **flags))(masked)
    model = keras.Model(inputs, MaskedLNLSTM(4, stateful=True, go_backwards=True)(both))
    xs = np.random.default_rng(0).normal(size=(2, 4, 3)).astype("float32")
    xs[0, 2:] = 0.0
    expected = model(xs)  # and it has been called
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(xs), expected)
    layer = loaded.layers[2].backward_layer
    assert {name: getattr(layer, name) for name in flags} == flags
    assert layer.go_backwards
    assert loaded.layers[3].stateful
