"""ONNX operators on tensors of any type and static shape, as portable loops."""
