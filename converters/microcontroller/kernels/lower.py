"""Which module lowers which quantized operator: one table for all back ends; a module chooses the kernel by target and shape."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    FlipSign,
    Lookup,
    MaxPool2D,
    MulInt8,
    Operator,
    Program,
    SoftmaxInt8,
)
from modelfleet.converters.microcontroller.kernels import conv, dense, depthwise, elementwise, pool
from modelfleet.converters.microcontroller.lowering import Lowered, Target

Lower = Callable[[Any, Program, Target], Lowered]

LOWERS: Final[Mapping[type[Operator], Lower]] = dict[type[Operator], Lower](
    {
        Conv2D: conv.lower,
        Dense: dense.lower,
        Depthwise2D: depthwise.lower,
        AddInt8: elementwise.lower_add,
        MulInt8: elementwise.lower_mul,
        AveragePool2D: pool.lower_average,
        MaxPool2D: pool.lower_max,
        SoftmaxInt8: elementwise.lower_softmax,
        Lookup: elementwise.lower_lookup,
        FlipSign: elementwise.lower_flip,
    }
)
"""Type of operator -> its `lower(operator, program, target)`."""


def lower(operator: Operator, program: Program, target: Target) -> Lowered:
    """Return a quantized operator as C.

    Raises:
        ConversionError: it has no kernel.
    """
    found = LOWERS.get(type(operator))
    if found is None:
        raise ConversionError(
            operator.name, "c99", f"expected an operator with a kernel, got {type(operator).__name__}"
        )
    return found(operator, program, target)
