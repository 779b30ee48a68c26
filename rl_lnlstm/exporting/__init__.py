"""Exporting policies, so that they run without this package: ONNX, TFLite (LiteRT) and SavedModel."""
