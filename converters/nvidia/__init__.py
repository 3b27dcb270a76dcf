"""ONNX -> TensorRT-RTX engines, TensorRT build recipes, ONNX Runtime on CUDA."""
