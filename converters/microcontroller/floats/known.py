"""Values that follow from shapes and constants alone, computed now as ONNX defines them."""

from typing import Any, Final

import numpy as np

from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError
from modelfleet.converters.microcontroller.ir import Array

_NUMPY: Final[Any] = np  # its functions that make arrays have no types


def known_value(node: Node) -> Array:
    """Return the output's value.

    Raises:
        UnsupportedError: it depends on an input of the run.
    """
    output = node.output()
    if output.elements == 0:
        return np.zeros(output.shape, _numpy(output.dtype))
    found = np.asarray(_value(node)).astype(_numpy(output.dtype)).reshape(output.shape)
    return np.ascontiguousarray(found)


def _value(node: Node) -> Any:
    name, numpy = node.operator.op_type, _NUMPY
    if name == "Shape":
        first, last = int(node.attribute("start", 0)), node.attribute("end")
        return node.input(0).shape[first : None if last is None else int(last)]
    if name == "Size":
        return node.input(0).elements
    if name == "EyeLike":
        return numpy.eye(*node.output().shape, k=int(node.attribute("k", 0)))
    if name == "ConstantOfShape":
        given = node.attribute("value")
        return numpy.full(node.output().shape, 0 if given is None else _array(given).reshape(-1)[0])
    if name == "Range":
        return numpy.arange(*(node.constant(index, "bounds").reshape(-1)[0] for index in range(3)))
    given = next((value for key, value in node.operator.attributes.items() if key.startswith("value")), None)
    if given is None:
        raise UnsupportedError("expected a value, got none")
    return _array(given)


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
