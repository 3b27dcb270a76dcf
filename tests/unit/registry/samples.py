"""A model and a golden set small enough to make in every test."""

import io

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WEIGHTS = np.random.default_rng(7).normal(size=(4, 3)).astype(np.float32)


def small_model(scale: float = 1.0) -> bytes:
    """A softmax over a matrix product that is always right about `golden_of`; `scale` changes bytes, not answers."""
    return model_of(scale * WEIGHTS)


def worse_model() -> bytes:
    """Right about most of `golden_of`: good enough for the gates, but not as good as `small_model`."""
    return model_of(WEIGHTS + 0.05 * np.random.default_rng(3).normal(size=(4, 3)))


def constant_model() -> bytes:
    """Gives every class the same score."""
    return model_of(0 * WEIGHTS)


def model_of(values: np.ndarray) -> bytes:
    """Input `x` float32 (N, 4), output `scores` float32 (N, 3): softmax of x times `values`."""
    weights = values.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["product"], name="product"),
            helper.make_node("Softmax", ["product"], ["scores"], name="softmax", axis=1),
        ],
        "shapes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def golden_of(*, samples: int = 256, width: int = 4, name: str = "x") -> bytes:
    """Inputs with the labels that `small_model` gives them."""
    inputs = np.random.default_rng(11).normal(size=(samples, width)).astype(np.float32)
    labels = np.argmax(inputs[:, :4] @ WEIGHTS[: min(width, 4)], axis=1).astype(np.int64)
    file = io.BytesIO()
    np.savez_compressed(file, **{f"input.{name}": inputs, "label": labels})
    return file.getvalue()
