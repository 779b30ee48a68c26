"""Runs an exported policy in a process of its own, which knows nothing of this package: a script, not a module.

    python player.py onnx policy.onnx inputs.npz outputs.npz step

The last argument is `sequence` if the policy was exported for sequences, otherwise `step`. `inputs.npz` contains each
input as `[steps, batch, ...]`, also the state before each step. Inputs of fewer steps are repeated. `outputs.npz` then
contains each output as `[steps, batch, ...]`, but of the state only that after each call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
LENGTHS = 1, 7, 42  # of the sequences that are given to a model of sequences, in turn


def onnx(path: str) -> Run:
    """Runs ONNX in onnxruntime, on one thread."""
    import onnxruntime  # only the package of the format is imported

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def tflite(path: str) -> Run:
    """Runs TFLite in the interpreter of LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner()
    # The runner returns views of the interpreter's memory.
    return lambda inputs: {name: np.array(output) for name, output in runner(**inputs).items()}


def saved_model(path: str) -> Run:
    """Runs a SavedModel in TensorFlow."""
    import tensorflow as tf

    model = tf.saved_model.load(path)  # keeps the variables alive
    function = model.signatures["serving_default"]
    return lambda inputs: {
        name: output.numpy()
        for name, output in function(**{name: tf.constant(value) for name, value in inputs.items()}).items()
    }


def lengths(steps: int) -> list[int]:
    """The lengths of the sequences into which `steps` steps are cut."""
    found: list[int] = []
    while (left := steps - sum(found)) > 0:
        found.append(min(LENGTHS[len(found) % len(LENGTHS)], left))
    return found


def play(run: Run, given: dict[str, np.ndarray], sequence: bool) -> dict[str, np.ndarray]:
    """All outputs for all steps; of the state, only that after each call."""
    steps, t, calls = len(given["episode_start"]), 0, []
    for length in lengths(steps) if sequence else [1] * steps:
        inputs = {}
        for name, values in given.items():
            part = values.take(range(t, t + length), 0, mode="wrap")
            inputs[name] = part.swapaxes(0, 1).copy() if sequence and name not in ("h", "c") else part[0]
        calls.append(run(inputs))
        t += length
    joined = {}
    for name in calls[0]:
        parts = [call[name] for call in calls]
        if sequence and name not in ("next_h", "next_c"):
            joined[name] = np.concatenate([np.moveaxis(part, 1, 0) for part in parts])
        else:
            joined[name] = np.stack(parts)
    return joined


if __name__ == "__main__":
    file_format, model, inputs, outputs, shape = sys.argv[1:]
    runners = {"onnx": onnx, "tflite": tflite, "saved_model": saved_model}
    with np.load(inputs) as arrays:
        given = dict(arrays)
    np.savez(outputs, **play(runners[file_format](model), given, shape == "sequence"))  # type: ignore[arg-type]
