"""Errors about wrong arguments of the layer name the argument, what was given and what was expected."""

import re
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM, MaskedLNLSTMCell
from rl_lnlstm.errors import UserError

BATCH, TIME, FEATURES, UNITS = 2, 5, 3, 4


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, "float32")


def shape(*sizes: int) -> str:
    """Return a pattern that matches a shape, written as a list or as a tuple."""
    return r"[\[(]" + ", ".join(map(str, sizes)) + r",?[\])]"


def assert_message(caught: pytest.ExceptionInfo, *patterns: str) -> None:
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), f"{pattern} not in: {caught.value}"


@pytest.mark.parametrize("kind", [MaskedLNLSTM, MaskedLNLSTMCell])
@pytest.mark.parametrize("units", [0, -3, 2.5, "8", None], ids=repr)
def test_units_must_be_a_positive_integer(kind, units):
    with pytest.raises(UserError) as caught:
        kind(units)
    assert_message(caught, r"\bunits\b", re.escape(repr(units)), "positive|at least 1|>= ?1")


def test_backend_must_be_known():
    with pytest.raises(UserError) as caught:
        MaskedLNLSTM(UNITS, backend="cuda")
    assert_message(caught, r"\bbackend\b", "'cuda'", "auto", "while_loop")


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("got", [(2, 4), (3, 5), (5, 2), (2, 1), (1, 5), (5,), (2, 5, 1), ()], ids=str)
def test_masks_must_have_the_shape_of_batch_and_time(got, graph):
    layer = MaskedLNLSTM(UNITS)

    def call(xs, masks):
        return layer(xs, masks=masks)

    with pytest.raises(UserError) as caught:
        (tf.function(call) if graph else call)(tf.zeros((BATCH, TIME, FEATURES)), tf.zeros(got))
    assert_message(caught, r"\bmasks\b", shape(*got), shape(BATCH, TIME))


def test_masks_of_a_time_major_layer_are_time_major():
    layer = MaskedLNLSTM(UNITS, time_major=True)
    with pytest.raises(UserError) as caught:
        layer(zeros(TIME, BATCH, FEATURES), masks=zeros(BATCH, TIME))
    assert_message(caught, r"\bmasks\b", shape(BATCH, TIME), shape(TIME, BATCH))


def test_masks_of_a_symbolic_model_are_checked_when_it_is_built():
    with pytest.raises(UserError) as caught:
        MaskedLNLSTM(UNITS)(keras.Input((TIME, FEATURES)), masks=keras.Input((TIME - 1,)))
    assert_message(caught, r"\bmasks\b", str(TIME - 1), str(TIME))


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "function"])
@pytest.mark.parametrize("which", [0, 1], ids=["h0", "c0"])
@pytest.mark.parametrize("got", [(2, 3), (3, 4), (1, 4), (4,), (2, 1, 4)], ids=str)
def test_states_must_have_the_shape_of_batch_and_units(got, which, graph):
    layer = MaskedLNLSTM(UNITS)
    state = [tf.zeros((BATCH, UNITS))] * 2
    state[which] = tf.zeros(got)

    def call(xs, h0, c0):
        return layer(xs, initial_state=[h0, c0])

    with pytest.raises(UserError) as caught:
        (tf.function(call) if graph else call)(tf.zeros((BATCH, TIME, FEATURES)), *state)
    assert_message(caught, "initial_state", shape(*got), shape(BATCH, UNITS))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_must_be_two_states(count):
    with pytest.raises(UserError) as caught:
        MaskedLNLSTM(UNITS)(zeros(BATCH, TIME, FEATURES), initial_state=[zeros(BATCH, UNITS)] * count)
    assert_message(caught, "initial_state", rf"got ({count}\b|\[\])", r"\[h0?, c0?\]|\b(2|two)\b")


def test_one_tensor_is_not_a_pair_of_states():
    # The batch is 2: unpacked along it, the tensor would pass for two states of one axis each.
    with pytest.raises(UserError) as caught:
        MaskedLNLSTM(UNITS)(zeros(BATCH, TIME, FEATURES), initial_state=tf.zeros((BATCH, UNITS)))
    assert_message(caught, "initial_state")


@pytest.mark.parametrize("got", [(TIME, FEATURES), (BATCH, TIME, FEATURES, 1), (FEATURES,)], ids=str)
def test_inputs_must_have_three_axes(got):
    with pytest.raises(UserError) as caught:
        MaskedLNLSTM(UNITS)(zeros(*got))
    assert_message(caught, r"\b(xs|inputs|sequences)\b", shape(*got), r"batch, time, features|\b3\b|three")


@pytest.mark.parametrize(
    ("masks", "h0"), [((2, 4), (2, 4)), ((2, 1), (2, 4)), ((1, 5), (2, 4)), ((2, 5), (1, 4)), ((2, 5), (3, 4))], ids=str
)
def test_shapes_that_are_unknown_when_tracing_are_checked_when_running(masks, h0):
    layer = MaskedLNLSTM(UNITS)

    @tf.function(
        input_signature=[tf.TensorSpec(spec) for spec in ([None, None, FEATURES], [None, None], [None, UNITS])]
    )
    def call(xs, masks, h0):
        return layer(xs, masks=masks, initial_state=[h0, h0])

    assert call(zeros(BATCH, TIME, FEATURES), zeros(BATCH, TIME), zeros(BATCH, UNITS)).shape == (BATCH, UNITS)
    with pytest.raises((tf.errors.InvalidArgumentError, UserError)):
        call(zeros(BATCH, TIME, FEATURES), zeros(*masks), zeros(*h0))


@pytest.mark.parametrize("how", ["recurrent dropout", "gates"])
def test_unknown_shapes_are_checked_where_the_kernel_is_not_used(how):
    layer = MaskedLNLSTM(UNITS, recurrent_dropout=0.5)
    layer.build((None, None, FEATURES))

    @tf.function(input_signature=[tf.TensorSpec([None, None, FEATURES]), tf.TensorSpec([None, None])])
    def call(xs, masks):
        return layer.gates(xs, masks).f if how == "gates" else layer(xs, masks=masks, training=True)

    call(zeros(BATCH, TIME, FEATURES), zeros(BATCH, TIME))
    with pytest.raises((tf.errors.InvalidArgumentError, UserError)):
        call(zeros(BATCH, TIME, FEATURES), zeros(1, TIME))


DTYPES = ["float32", "float64", "float16", "bfloat16", "bool", "int8", "uint8", "int32", "int64"]
SHAPES = st.lists(st.integers(0, 3), max_size=4)
SEQUENCES = st.tuples(st.integers(0, 3), st.integers(0, 3), st.just(FEATURES))


@pytest.mark.slow
@hypothesis.given(data=st.data(), backend=st.sampled_from(["kernel", "while_loop"]))
@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
def test_whatever_it_is_given_the_layer_answers_or_names_what_is_wrong(data, backend):
    """Any ranks, sizes and dtypes, eager and in graphs that know their shapes or do not."""
    dtype = data.draw(st.sampled_from(["float32", "float64"]))
    layer = LAYERS[backend, dtype]
    fits = data.draw(st.booleans())

    def draw(shape):
        shape = shape if fits or data.draw(st.booleans()) else data.draw(SHAPES)
        values = tf.cast(tf.random.stateless_uniform(shape, [1, 2], 0, 2), data.draw(st.sampled_from(DTYPES)))
        return values if data.draw(st.booleans()) else values.numpy()

    batch, time, features = data.draw(SEQUENCES)
    xs = draw([batch, time, features])
    masks = draw([batch, time]) if data.draw(st.booleans()) else None
    state = [draw([batch, UNITS]) for _ in range(2)] if data.draw(st.booleans()) else None
    given = [tensor for tensor in (xs, masks, *(state or ())) if tensor is not None]

    def call(xs, *others):
        masks_, *state_ = others if masks is not None else (None, *others)
        return layer(xs, masks=masks_, initial_state=state_ or None)

    kind = data.draw(st.sampled_from(["eager", "known", "unknown"]))
    if kind != "eager":
        signature = [
            tf.TensorSpec(tensor.shape if kind == "known" else [None] * len(tensor.shape), tensor.dtype)
            for tensor in map(tf.convert_to_tensor, given)
        ]
        if kind == "unknown" and len(xs.shape) == 3:
            signature[0] = tf.TensorSpec([None, None, xs.shape[-1]], signature[0].dtype)
        call = tf.function(call, input_signature=signature, autograph=False)
    right = [tuple(tensor.shape) for tensor in given] == [
        (batch, time, features),
        *([(batch, time)] if masks is not None else []),
        *([(batch, UNITS)] * 2 if state else []),
    ]
    error, outputs = None, None
    try:
        outputs = call(*given)
    except (UserError, tf.errors.InvalidArgumentError) as raised:
        error = raised
    assert (error is None) == right, error
    if right:
        assert outputs.shape == (batch, UNITS)
        assert outputs.dtype == dtype
        assert np.isfinite(outputs).all()
    else:
        assert isinstance(error, UserError) or kind == "unknown", "what is known is checked before"


LAYERS = {
    (backend, dtype): MaskedLNLSTM(UNITS, backend=backend, dtype=dtype)
    for backend in ("kernel", "while_loop")
    for dtype in ("float32", "float64")
}
for built in LAYERS.values():
    built.build((None, None, FEATURES))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "prelude"),
    [
        # Keras on Jax needs Jax; that Keras says it runs on Jax is all that matters here, and takes no installation.
        ("jax", "import keras; keras.config.backend = keras.backend.backend = lambda: 'jax'"),
        pytest.param("torch", "import os; os.environ['KERAS_BACKEND'] = 'torch'", marks=pytest.mark.peers),
    ],
    ids=["jax-pretended", "torch"],
)
def test_another_keras_backend_is_named(backend, prelude):
    program = f"""
{prelude}
try:
    from rl_lnlstm import MaskedLNLSTM
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert re.search(rf"\b{backend}\b", done.stdout), done.stdout or "no error"
    assert "tensorflow" in done.stdout
