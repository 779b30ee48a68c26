"""Writes traced policies as ONNX, TFLite (LiteRT) and SavedModel."""

from __future__ import annotations

import contextlib
import importlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from rl_lnlstm.errors import UserError, missing_package, one_line
from rl_lnlstm.exporting.description import KEY
from rl_lnlstm.exporting.graph import Graph
from rl_lnlstm.terminal import silenced

OPSET = 17
PACKAGES = {  # what it takes to write a format, and to run it
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "tflite": ("ai_edge_litert",),
    "saved_model": (),
}


def check_packages(file_format: str) -> None:
    """Raises `UserError` if the packages for a format are not installed."""
    for name in PACKAGES[file_format]:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise missing_package(f"the format {file_format}", error, "rl-lnlstm[export]") from error


def write_onnx(graph: Graph, description: str, path: Path) -> None:
    """Writes an ONNX model; the description is in its metadata.

    Raises:
        UserError: ONNX has no operation for a part of the policy.
    """
    import onnx  # an optional package, as the next one
    import tf2onnx

    with quiet(), unsupported("ONNX"):
        model, _ = tf2onnx.convert.from_function(graph.function, graph.inputs, opset=OPSET)
        _name_parts(model, graph)
        onnx.checker.check_model(model, full_check=True)
    model.producer_name, model.graph.name = KEY, "policy"
    onnx.helper.set_model_props(model, {KEY: description})
    onnx.save(model, path)


def _name_parts(model: Any, graph: Graph) -> None:
    """Names the axes whose size is free "batch" and "time", and puts the outputs into their order."""
    outputs = sorted(model.graph.output, key=lambda value: list(graph.outputs).index(value.name))
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    for value in (*model.graph.input, *model.graph.output):
        axes = value.type.tensor_type.shape.dim
        state = value.name in ("h", "c", "next_h", "next_c")
        for name, axis in zip(["batch"] if state or not graph.sequence else ["batch", "time"], axes, strict=False):
            if not axis.HasField("dim_value"):
                axis.dim_param = name


def write_saved_model(graph: Graph, description: str, path: Path) -> None:
    """Writes a SavedModel, whose signature "serving_default" takes and returns tensors by their names.

    The description is in `assets.extra`, SavedModel's folder for files of the user.
    """
    module = tf.Module()
    module.constants = list(graph.concrete.graph.variables)
    module.serve = graph.function
    with quiet():
        tf.saved_model.save(module, str(path), signatures=graph.concrete)
    extra = path / "assets.extra"
    extra.mkdir()
    (extra / f"{KEY}.json").write_text(description)


def write_tflite(graph: Graph, description: str, path: Path) -> None:
    """Writes a TFLite model of TFLite's own operations; the description is in its metadata.

    Raises:
        UserError: TFLite has no operation for a part of the policy.
    """
    from tensorflow.lite.tools import flatbuffer_utils  # imports TFLite's converter, which few need

    with tempfile.TemporaryDirectory() as folder, quiet(), unsupported("TFLite"):
        write_saved_model(graph, description, Path(folder, "model"))
        content = tf.lite.TFLiteConverter.from_saved_model(str(Path(folder, "model"))).convert()
    model = flatbuffer_utils.convert_bytearray_to_object(content)
    schema = importlib.import_module("tensorflow.lite.python.schema_py_generated")
    metadata, buffer = schema.MetadataT(), schema.BufferT()
    metadata.name, metadata.buffer, buffer.data = KEY, len(model.buffers), description.encode()
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), metadata]
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))


WRITERS = {"onnx": write_onnx, "saved_model": write_saved_model, "tflite": write_tflite}


@contextlib.contextmanager
def unsupported(name: str) -> Iterator[None]:
    """Turns an error of a converter into a `UserError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error):.500}"
        raise UserError(f"the policy cannot be exported to {name}, {what}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the converters, which print much."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "absl", "tf2onnx")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with silenced():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
