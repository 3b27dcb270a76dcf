"""AddInt8 and Lookup on Armv8.1-M's vector extension: as elsewhere, with many elements at once."""

from dataclasses import replace

from modelfleet.converters.microcontroller.ir import AddInt8, Lookup, Program
from modelfleet.converters.microcontroller.kernels import elementwise
from modelfleet.converters.microcontroller.lowering import Backend, Lowered, Places, Target

_PORTABLE = Backend.PORTABLE


def lower_add(operator: AddInt8, program: Program, target: Target) -> Lowered:
    """Return the operator as C for MVE."""
    return _vector(elementwise.lower_add(operator, program, replace(target, backend=_PORTABLE)), "add_int8", "add")


def lower_lookup(operator: Lookup, program: Program, target: Target) -> Lowered:
    """Return the operator as C for MVE."""
    return _vector(elementwise.lower_lookup(operator, program, target), "lookup_int8", "lookup")


def _vector(portable: Lowered, function: str, fragment: str) -> Lowered:
    """Return a call of the portable kernel with the vector kernel in its place; the portable one does what is left over."""

    def call(places: Places) -> str:
        return portable.call(places).replace(f"{function}(", f"{function}_mve(", 1)

    fragments = (*portable.fragments, f"kernels/{fragment}_mve.c")
    return replace(portable, call=call, fragments=fragments, stack_bytes=portable.stack_bytes + 48)
