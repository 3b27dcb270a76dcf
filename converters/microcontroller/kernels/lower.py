"""Which module lowers which quantized operator: one table for all back ends, and before it what a back end has of its own."""

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
from modelfleet.converters.microcontroller.kernels import (
    conv,
    conv_dsp,
    conv_mve,
    dense,
    dense_dsp,
    dense_mve,
    depthwise,
    depthwise_dsp,
    depthwise_mve,
    depthwise_wide_mve,
    elementwise,
    elementwise_mve,
    pool,
)
from modelfleet.converters.microcontroller.lowering import Backend, Lowered, Target

Lower = Callable[[Any, Program, Target], Lowered]
LowerOrNot = Callable[[Any, Program, Target], Lowered | None]


def _lower_depthwise(operator: Depthwise2D, program: Program, target: Target) -> Lowered | None:
    found = depthwise_mve.lower(operator, program, target)
    return depthwise_wide_mve.lower(operator, program, target) if found is None else found


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

OWN_LOWERS: Final[Mapping[Backend, Mapping[type[Operator], LowerOrNot]]] = {
    Backend.PORTABLE: {},
    Backend.DSP: dict[type[Operator], LowerOrNot](
        {Conv2D: conv_dsp.lower, Dense: dense_dsp.lower, Depthwise2D: depthwise_dsp.lower}
    ),
    Backend.MVE: dict[type[Operator], LowerOrNot](
        {
            Conv2D: conv_mve.lower,
            Dense: dense_mve.lower,
            Depthwise2D: _lower_depthwise,
            AddInt8: elementwise_mve.lower_add,
            Lookup: elementwise_mve.lower_lookup,
        }
    ),
}
"""What a back end has of its own; None where `LOWERS` has to do it."""


def lower(operator: Operator, program: Program, target: Target) -> Lowered:
    """Return a quantized operator as C.

    Raises:
        ConversionError: it has no kernel.
    """
    own = OWN_LOWERS[target.backend].get(type(operator))
    lowered = None if own is None else own(operator, program, target)
    if lowered is not None:
        return lowered
    found = LOWERS.get(type(operator))
    if found is None:
        raise ConversionError(
            operator.name, "c99", f"expected an operator with a kernel, got {type(operator).__name__}"
        )
    return found(operator, program, target)
