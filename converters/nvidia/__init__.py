"""Converters for NVIDIA GPUs: engines of TensorRT-RTX, recipes for TensorRT, and ONNX Runtime on the GPU."""
