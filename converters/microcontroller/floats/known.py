"""Values that follow from shapes and constants alone, computed now as ONNX defines them."""

from typing import Any

import numpy as np

from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError
from modelfleet.converters.microcontroller.ir import Array


def known_value(node: Node) -> Array:
    """Return the output's value.

    Raises:
        UnsupportedError: it depends on an input of the run.
    """
    output = node.output()
    name = node.operator.op_type
    value: Any
    if output.elements == 0:
        return np.zeros(output.shape, _numpy(output.dtype))
    if name == "Shape":
        shape = node.input(0).shape
        first, last = int(node.attribute("start", 0)), node.attribute("end")
        value = shape[first : None if last is None else int(last)]
    elif name == "Size":
        value = node.input(0).elements
    elif name == "EyeLike":
        value = np.eye(*output.shape, k=int(node.attribute("k", 0)))
    elif name == "ConstantOfShape":
        given = node.attribute("value")
        value = np.broadcast_to(np.asarray(0 if given is None else _array(given)).reshape(-1)[0], output.shape)
    elif name == "Range":
        start, limit, step = (node.constant(index, "bounds").reshape(-1)[0] for index in range(3))
        value = np.arange(start, limit, step)
    elif name == "Constant":
        given = next((value for key, value in node.operator.attributes.items() if key.startswith("value")), None)
        if given is None:
            raise UnsupportedError("expected a value, got none")
        value = _array(given)
    else:
        raise UnsupportedError(f"expected a known value, got {name}")
    found = np.asarray(value).astype(_numpy(output.dtype)).reshape(output.shape)
    return np.ascontiguousarray(found)


def _array(value: Any) -> Array:
    if hasattr(value, "dims"):
        from onnx import numpy_helper

        return numpy_helper.to_array(value)
    return np.asarray(value)


def _numpy(dtype: str) -> Any:
    if dtype == "bfloat16":
        import ml_dtypes

        return ml_dtypes.bfloat16
    return np.dtype(dtype)
