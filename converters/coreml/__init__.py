"""ONNX -> MIL -> CoreML `.mlpackage`."""
