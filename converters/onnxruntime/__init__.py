"""ONNX -> ONNX Runtime on the CPU: float, fp16, int8 static and dynamic, 4-bit weights, pruned."""
