"""Dropout of inputs and of the recurrent product, as in keras.layers.LSTM."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM, MaskedLNLSTMCell
from tests.lstm.layer_case import assert_all_close, layer_for
from tests.reference import central_differences, masked_ln_lstm, random_case


def test_dropout_applies_in_training_alone_with_the_same_factors_at_each_step():
    case = random_case(4, 6, 8, 5)
    layer = layer_for(case, dropout=0.5, seed=7)
    arguments = {"masks": case.masks, "initial_state": [case.h0, case.c0]}
    assert_all_close(layer(case.xs, **arguments), masked_ln_lstm(*case), 1e-10)
    twin = layer_for(case, dropout=0.5, seed=7)  # what it will draw
    factors = keras.random.dropout(tf.ones([4, 8], tf.float64), 0.5, seed=twin.seed_generator).numpy()
    assert set(np.unique(factors)) == {0.0, 2.0}
    dropped = case._replace(xs=case.xs * factors[:, None])
    assert_all_close(layer(case.xs, training=True, **arguments), masked_ln_lstm(*dropped), 1e-10)


@pytest.mark.parametrize("time", [1, 6])
def test_recurrent_dropout_multiplies_h_in_the_recurrent_product(time):
    case = random_case(4, time, 3, 8)
    layer, twin = (layer_for(case, recurrent_dropout=0.25, seed=7) for _ in range(2))
    factors = keras.random.dropout(tf.ones([4, 8], tf.float64), 0.25, seed=twin.seed_generator).numpy()
    assert 0 < (factors == 0).mean() < 1
    got = layer(case.xs, masks=case.masks, initial_state=[case.h0, case.c0], training=True)
    assert_all_close(got, masked_ln_lstm(*case, recurrent_dropout=factors), 1e-10)


def test_gradients_with_recurrent_dropout_equal_central_differences():
    case = random_case(2, 4, 2, 5)
    factors = np.array([[0.0, 2.0, 2.0, 0.0, 2.0], [2.0, 0.0, 2.0, 2.0, 2.0]])
    layer = layer_for(case, recurrent_dropout=0.5)
    layer._dropout_factors = lambda *_: tf.constant(factors)
    h0, kernel = tf.constant(case.h0), layer.recurrent_kernel
    with tf.GradientTape() as tape:
        tape.watch(h0)
        outputs = layer(case.xs, masks=case.masks, initial_state=[h0, case.c0], training=True)
        loss = tf.add_n([tf.reduce_sum(part**2) for part in outputs])
    gradients = tape.gradient(loss, [h0, kernel])

    def loss_of(h0=case.h0, kernel=case.weights.recurrent_kernel):
        weights = case.weights._replace(recurrent_kernel=kernel)
        outputs = masked_ln_lstm(weights, case.xs, case.masks, h0, case.c0, recurrent_dropout=factors)
        return sum((part**2).sum() for part in outputs)

    np.testing.assert_allclose(gradients[0], central_differences(lambda v: loss_of(h0=v), case.h0), atol=1e-5)
    expected = central_differences(lambda v: loss_of(kernel=v), case.weights.recurrent_kernel)
    np.testing.assert_allclose(gradients[1], expected, atol=1e-5)


def test_dropout_draws_anew_and_a_seed_repeats_it():
    xs = np.random.default_rng(0).normal(size=(3, 5, 4)).astype("float32")

    def draws(kind, seed):
        keras.utils.set_random_seed(0)
        if kind is MaskedLNLSTM:
            layer = MaskedLNLSTM(6, dropout=0.5, recurrent_dropout=0.5, seed=seed)
        else:
            layer = keras.layers.RNN(MaskedLNLSTMCell(6, dropout=0.5, recurrent_dropout=0.5, seed=seed))
        return [layer(xs, training=True).numpy() for _ in range(2)] + [layer(xs).numpy()]

    for kind in (MaskedLNLSTM, MaskedLNLSTMCell):
        first, second, without = draws(kind, 3)
        assert np.abs(first - second).max() > 1e-3
        assert np.abs(first - without).max() > 1e-3
        np.testing.assert_array_equal(draws(kind, 3)[0], first)
        assert np.abs(draws(kind, 4)[0] - first).max() > 1e-3
