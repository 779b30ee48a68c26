"""What `layer.py` compares: the masked LN-LSTM and its alternatives, each in a process of its own."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from measure import matmul_rate, peak_memory, reset_peak_memory, seconds_of

RESETS = 0.02  # fraction of all steps that reset the state


class Size(NamedTuple):
    batch: int
    time: int
    features: int
    units: int

    def __str__(self) -> str:
        return f"[{self.batch}, {self.time}, {self.features}] -> {self.units}"

    @classmethod
    def parse(cls, text: str) -> Size:
        return cls(*map(int, text.split(",")))

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and masks, batch-major."""
        rng = np.random.default_rng(0)
        inputs = rng.standard_normal((self.batch, self.time, self.features), np.float32)
        return inputs, (rng.random((self.batch, self.time)) > RESETS).astype(np.float32)


class TensorFlowCandidate:
    """Forward pass and training step (the loss and its gradients of all weights) as `tf.function`s of a layer.

    Args:
        make_layer: from units to a layer.
        masked: the layer takes masks.
        jit_compile: as for `tf.function`.
        size: of what is measured.
        threads: of an operation; 0 is one for each core.
    """

    def __init__(
        self, make_layer: Callable[[int], Any], masked: bool, jit_compile: bool, size: Size, threads: int = 0
    ) -> None:
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        self._make_layer, self._masked, self._size = make_layer, masked, size
        self._function = functools.partial(tf.function, autograph=False, jit_compile=jit_compile)
        self._signature = [tf.TensorSpec(size[:3]), tf.TensorSpec(size[:2])]
        self._data = tuple(map(tf.constant, size.data()))
        # The costs that each process has once: thread pools, lazy imports, the first trace.
        small = Size(2, 2, size.features, size.units)
        for function in self._functions(small):
            function(*map(tf.constant, small.data()))
        self._forward, self._training = self._functions(size)

    def _functions(self, size: Size) -> tuple[Callable, Callable]:
        """Forward pass and training step of a new layer, not traced yet."""
        import tensorflow as tf

        layer = self._make_layer(size.units)
        layer.build(size[:3])

        def forward(inputs: Any, masks: Any) -> Any:
            return layer(inputs, masks=masks) if self._masked else layer(inputs)

        def training(inputs: Any, masks: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(forward(inputs, masks)))
            return loss, tape.gradient(loss, layer.trainable_variables)

        return self._function(forward), self._function(training)

    def _trace(self, index: int, time: int | None = None) -> float:
        import tensorflow as tf

        batch, known, features, units = self._size
        size = Size(batch, known if time is None else time, features, units)
        function = self._functions(size)[index]
        gc.collect()
        specs = [tf.TensorSpec(size[:3]), tf.TensorSpec(size[:2])]
        return seconds_of(lambda: function.get_concrete_function(*specs))

    def graph_forward(self, time: int | None = None) -> float:
        return self._trace(0, time)

    def graph_training(self, time: int | None = None) -> float:
        return self._trace(1, time)

    def first_call(self) -> float:
        """The time of a new layer's first forward pass: trace, compile and run."""
        function = self._functions(self._size)[0]
        gc.collect()
        return seconds_of(lambda: function(*self._data))

    def forward(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._forward(*self._data), at_least)

    def training(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._training(*self._data), at_least)

    def memory(self) -> float:
        """The peak memory that three training steps add to the process, including tracing and compiling."""
        return added_memory(self.training)

    def matmul_rate(self) -> float:
        return matmul_rate()


class TorchCandidate:
    """The same for `torch.nn.LSTM`, which builds no graph."""

    def __init__(self, size: Size) -> None:
        import torch

        self._torch, self._size = torch, size
        self._inputs = torch.from_numpy(size.data()[0])
        self._layer = torch.nn.LSTM(size.features, size.units, batch_first=True)
        self._training_step(self._inputs[:2, :2])

    def _training_step(self, inputs: Any) -> None:
        self._layer.zero_grad()
        self._layer(inputs)[0].square().mean().backward()

    def _forward(self, layer: Any) -> None:
        with self._torch.no_grad():
            layer(self._inputs)

    def first_call(self) -> float:
        layer = self._torch.nn.LSTM(self._size.features, self._size.units, batch_first=True)
        return seconds_of(lambda: self._forward(layer))

    def forward(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._forward(self._layer), at_least)

    def training(self, at_least: float = 0.0) -> float:
        return seconds_of(lambda: self._training_step(self._inputs), at_least)

    def memory(self) -> float:
        return added_memory(self.training)


def added_memory(operation: Callable[[], Any]) -> float:
    gc.collect()
    before = reset_peak_memory()
    for _ in range(3):
        operation()
    return peak_memory() - before


class NaiveLNLSTM:
    """The same equations as written by hand in many RL projects, after OpenAI baselines: unrolled in Python."""

    def __init__(self, units: int) -> None:
        self.units = units

    def build(self, shape: tuple[int, ...]) -> None:
        import tensorflow as tf

        def variable(*shape: int, scale: float = 0.0, start: float = 0.0) -> Any:
            return tf.Variable(start + scale * tf.random.normal(shape))

        features, units = shape[-1], self.units
        self.trainable_variables = (
            variable(features, 4 * units, scale=features**-0.5),
            variable(units, 4 * units, scale=units**-0.5),
            variable(4 * units, start=1),
            variable(4 * units, start=1),
            variable(4 * units),
            variable(units, start=1),
            variable(units),
        )

    def __call__(self, inputs: Any, masks: Any) -> Any:
        import tensorflow as tf

        def normalise(v: Any) -> Any:
            mean, variance = tf.nn.moments(v, -1, keepdims=True)
            return (v - mean) / tf.sqrt(variance + 1e-5)

        kernel, recurrent_kernel, kernel_gamma, recurrent_gamma, bias, cell_gamma, cell_beta = self.trainable_variables
        h = c = tf.zeros([inputs.shape[0], self.units])
        outputs = []
        for x, m in zip(tf.unstack(inputs, axis=1), tf.unstack(masks[..., tf.newaxis], axis=1), strict=True):
            h, c = h * m, c * m
            z = normalise(x @ kernel) * kernel_gamma + normalise(h @ recurrent_kernel) * recurrent_gamma + bias
            i, f, o, u = tf.split(z, 4, axis=1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(u)
            h = tf.sigmoid(o) * tf.tanh(normalise(c) * cell_gamma + cell_beta)
            outputs.append(h)
        return tf.stack(outputs, axis=1)


def stock_layer(units: int) -> Any:
    import keras

    return keras.layers.LSTM(units, return_sequences=True)


def our_layer(units: int) -> Any:
    from rl_lnlstm import MaskedLNLSTM

    return MaskedLNLSTM(units, return_sequences=True, backend="while_loop")


def our_kernel(units: int) -> Any:
    from rl_lnlstm import MaskedLNLSTM

    return MaskedLNLSTM(units, return_sequences=True, backend="kernel")


KERNEL = "MaskedLNLSTM, kernel"
KERNEL_JIT = "MaskedLNLSTM, kernel, jit_compile"
OURS, OURS_JIT = "MaskedLNLSTM, while_loop", "MaskedLNLSTM, while_loop, jit_compile"
STOCK, STOCK_JIT = "keras.layers.LSTM", "keras.layers.LSTM, jit_compile"
NAIVE, TORCH = "naive LN-LSTM, unrolled", "torch.nn.LSTM"
CANDIDATES: dict[str, tuple[Any, ...]] = {  # name -> its class, and arguments before the size
    STOCK: (TensorFlowCandidate, stock_layer, False, False),
    KERNEL: (TensorFlowCandidate, our_kernel, True, False),
    OURS: (TensorFlowCandidate, our_layer, True, False),
    KERNEL_JIT: (TensorFlowCandidate, our_kernel, True, True),
    OURS_JIT: (TensorFlowCandidate, our_layer, True, True),
    STOCK_JIT: (TensorFlowCandidate, stock_layer, False, True),
    TORCH: (TorchCandidate,),
    NAIVE: (TensorFlowCandidate, NaiveLNLSTM, True, False),
}
