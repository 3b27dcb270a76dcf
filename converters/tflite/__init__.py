"""ONNX -> TFLite for LiteRT."""
