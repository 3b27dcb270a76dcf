"""ONNX graphs, quantized or float, as the program of `ir`."""
