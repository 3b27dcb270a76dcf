"""ONNX -> ONNX Runtime Web, proved in Node."""
