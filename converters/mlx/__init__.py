"""ONNX -> MLX graph and safetensors."""
