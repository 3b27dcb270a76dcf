"""ONNX -> freestanding C99: import, exact passes, kernels chosen, memory planned, sources written, proved on the host."""
