"""AddInt8, MulInt8, Lookup, FlipSign and SoftmaxInt8 as C: each works in place."""

from typing import Final

import numpy as np

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    FlipSign,
    Lookup,
    MulInt8,
    Program,
    Requantization,
    SoftmaxInt8,
)
from modelfleet.converters.microcontroller.kernels.constants import (
    ROUNDING_FRAGMENTS,
    int8s,
    int32s,
    multipliers,
    parameter_words,
)
from modelfleet.converters.microcontroller.lowering import (
    Backend,
    Constant,
    Lowered,
    Places,
    Rounding,
    Target,
)

_UPPER_HALF: Final = 16


def lower_add(operator: AddInt8, program: Program, target: Target) -> Lowered:
    """Return the operator as C; DSP does two elements with one instruction's multiplications."""
    count = program.tensors[operator.outputs[0]].elements
    dsp = target.backend is not Backend.PORTABLE

    def call(places: Places) -> str:
        names = (*places.inputs, places.outputs[0], *places.constants, str(count))
        return f"add_int8{'_dsp' if dsp else ''}({', '.join(names)});"

    words = (*operator.multipliers, operator.offset, operator.shift, operator.lo, operator.hi, _left_shift(operator))
    return Lowered(
        call=call,
        fragments=("kernels/add.c", "kernels/add_dsp.c") if dsp else ("kernels/add.c",),
        constants=(int32s(np.array(words, np.int64)),),
        stack_bytes=128 if dsp else 64,
        overlap={0: 0, 1: 0},
    )


def _left_shift(operator: AddInt8) -> int:
    """Return how far left sums go, so that their upper halves are the results before the bounds.

    -1: they would overflow, or a multiplier is no int16.
    """
    left = _UPPER_HALF - operator.shift
    most = 128 * sum(abs(factor) for factor in operator.multipliers) + abs(operator.offset)
    halves = all(-(1 << 15) <= factor < 1 << 15 for factor in operator.multipliers)
    return left if halves and left >= 0 and most << left < 1 << 31 else -1


def lower_mul(operator: MulInt8, program: Program, target: Target) -> Lowered:
    """Return the operator as C (ConversionError: onnxruntime's rounding, and no factor)."""
    first, second = (program.tensors[name] for name in operator.inputs)
    words = (*parameter_words(operator.requantization), *operator.zero_points)

    def call(places: Places) -> str:
        names = (*places.inputs, places.outputs[0], *places.constants, str(first.elements), str(second.elements))
        return f"mul_int8({', '.join(names)});"

    return Lowered(
        call=call,
        fragments=(ROUNDING_FRAGMENTS[target.rounding], "kernels/mul.c"),
        constants=(one_multiplier(operator.name, operator.requantization, target.rounding), int32s(np.array(words))),
        overlap={0: 0, 1: 0} if first.elements == second.elements else {0: 0},
    )


def one_multiplier(name: str, requantization: Requantization, rounding: Rounding) -> Constant:
    """Return the multiplier of all channels (ConversionError: they differ, or onnxruntime's factor is not known)."""
    if requantization.multiplier.size != 1:
        raise ConversionError(
            name, "c99", f"expected one multiplier for all channels, got {requantization.multiplier.size}"
        )
    return multipliers(name, requantization, 1, rounding)


def lower_lookup(operator: Lookup, program: Program, target: Target) -> Lowered:
    """Return the operator as C, the same for every target."""
    del target
    count = program.tensors[operator.outputs[0]].elements

    def call(places: Places) -> str:
        return f"lookup_int8({places.inputs[0]}, {places.outputs[0]}, {places.constants[0]}, {count});"

    return Lowered(
        call=call, fragments=("kernels/lookup.c",), constants=(int8s(operator.table),), stack_bytes=32, overlap={0: 0}
    )


def lower_flip(operator: FlipSign, program: Program, target: Target) -> Lowered:
    """Return the operator as C; uint8 or int8 on either side."""
    count = program.tensors[operator.outputs[0]].elements
    dsp = target.backend is not Backend.PORTABLE

    def call(places: Places) -> str:
        source, to = f"(const uint8_t *){places.inputs[0]}", f"(uint8_t *){places.outputs[0]}"
        return f"flip_sign{'_dsp' if dsp else ''}({source}, {to}, {count});"

    return Lowered(
        call=call,
        fragments=("kernels/flip.c", "kernels/flip_dsp.c") if dsp else ("kernels/flip.c",),
        stack_bytes=32,
        overlap={0: 0},
    )


def lower_softmax(operator: SoftmaxInt8, program: Program, target: Target) -> Lowered:
    """Return the operator as C, the same for every target."""
    del target
    tensor = program.tensors[operator.outputs[0]]
    length = tensor.shape[-1]

    def call(places: Places) -> str:
        names = (places.inputs[0], places.outputs[0], *places.constants, str(tensor.elements // length), str(length))
        return f"softmax_int8({', '.join(names)});"

    table = Constant(ctype="uint32_t", data=np.ascontiguousarray(operator.exponentials, np.uint32))
    words = int32s(np.array((operator.inverse_scale, operator.zero_point)))
    return Lowered(
        call=call, fragments=("kernels/softmax.c",), constants=(table, words), stack_bytes=48, overlap={0: 0}
    )
