"""Where the layer uses the kernel, and what takes its place elsewhere."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from rl_lnlstm import MaskedLNLSTM
from tests.lstm.fresh_process import run_fresh


def operations_of(layer: MaskedLNLSTM, dtype="float32", shape=(2, 5, 3), **kwargs) -> set[str]:
    function = tf.function(lambda xs: layer(xs), autograph=False, **kwargs)
    graph = function.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
    return {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize("backend", ["auto", "kernel"])
def test_the_layer_uses_the_kernel_just_where_it_applies(backend):
    assert "RlLnlstm>Forward" in operations_of(MaskedLNLSTM(4, backend=backend))
    assert "RlLnlstm>Forward" in operations_of(MaskedLNLSTM(4, backend=backend), jit_compile=True)
    for other in (
        operations_of(MaskedLNLSTM(4, backend=backend, dtype="float64"), "float64"),
        operations_of(MaskedLNLSTM(4, backend=backend, dtype="mixed_bfloat16")),
        operations_of(MaskedLNLSTM(4, backend="while_loop")),
    ):
        assert "RlLnlstm>Forward" not in other


def test_beside_a_tpu_the_kernel_is_not_used(monkeypatch):
    devices = [*tf.config.list_logical_devices(), tf.config.LogicalDevice("/device:TPU:0", "TPU")]
    listed = {None: devices, "CPU": devices[:1]}
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: listed.get(kind, []))
    assert "RlLnlstm>Forward" not in operations_of(MaskedLNLSTM(4))


@pytest.mark.slow
def test_without_the_kernel_while_loop_takes_its_place():
    program = """
        import numpy as np
        from rl_lnlstm import MaskedLNLSTM
        from rl_lnlstm.lstm import kernel
        layer = MaskedLNLSTM(4, backend="kernel", kernel_initializer="ones", recurrent_initializer="ones")
        print(kernel.operations(), layer(np.ones([2, 3, 4], "float32")).shape)
    """
    assert run_fresh(program, RL_LNLSTM_KERNEL="0").strip() == "None (2, 4)"
    assert run_fresh(program, CXX="no-such-compiler").strip() == "None (2, 4)"


@pytest.mark.slow
def test_exported_models_do_not_depend_on_the_kernel(tmp_path):
    inputs = keras.Input([None, 3])
    model = keras.Model(inputs, MaskedLNLSTM(4)(inputs))
    xs = np.ones([2, 5, 3], "float32")
    expected = model(xs).numpy()
    model.export(tmp_path / "exported", verbose=False)
    np.savez(tmp_path / "expected.npz", xs=xs, ys=expected)
    program = f"""
        import numpy as np
        import tensorflow as tf
        given = np.load({str(tmp_path / "expected.npz")!r})
        model = tf.saved_model.load({str(tmp_path / "exported")!r})
        np.testing.assert_allclose(model.serve(given["xs"]), given["ys"], atol=1e-5)
    """
    run_fresh(program)


def test_it_runs_under_xla_if_it_was_loaded_while_a_graph_was_built():
    program = """
        import tensorflow as tf
        from rl_lnlstm import MaskedLNLSTM
        from rl_lnlstm.lstm import kernel
        with tf.Graph().as_default():  # as where a saved policy is checked
            kernel.operations()
        layer = MaskedLNLSTM(8, return_sequences=True)
        print(tf.function(layer, jit_compile=True)(tf.ones([4, 50, 3])).shape)
    """
    assert run_fresh(program).strip() == "(4, 50, 8)"


def test_slices_of_one_tensor_are_different_weights():
    """A population of layers may be stacked. Packed weights are kept while weights stay the same."""
    layer = MaskedLNLSTM(16)
    layer.build((None, None, 8))
    rng = np.random.default_rng(0)
    stacks = [tf.constant(rng.normal(size=(3, *weight.shape)), tf.float32) for weight in layer.weights]
    call = tf.function(layer, autograph=False)
    xs = tf.constant(rng.normal(size=(2, 5, 8)), tf.float32)
    for member in (0, 1, 2, 0):
        for weight, stack in zip(layer.weights, stacks, strict=True):
            weight.assign(stack[member])
        expected = MaskedLNLSTM(16, backend="while_loop")
        expected.build((None, None, 8))
        expected.set_weights([stack[member].numpy() for stack in stacks])
        np.testing.assert_allclose(call(xs), expected(xs), atol=1e-5)
