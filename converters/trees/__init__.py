"""`ai.onnx.ml` operators lowered to standard tensor operators."""
