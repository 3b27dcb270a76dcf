"""What an operator becomes: C text and constants, and what the memory planner must know of it.

`kernels`, `floats` and `trees` each have a function `lower(operator, program, target) -> Lowered` in `lower.py`; `emitting`
writes what they return and knows no operator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelfleet.converters.microcontroller.ir import Array
from modelfleet.hardware_profiles.microcontroller import Backend as Backend
from modelfleet.hardware_profiles.microcontroller import Rounding as Rounding


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the C is for.

    small: the least flash for trees, not the least time. fixed_shapes: a model trained anew has the same
    code, at the price of what only these weights allow (dead channels, tight bounds).
    """

    backend: Backend = Backend.PORTABLE
    rounding: Rounding = Rounding.INTEGER
    small: bool = False
    fixed_shapes: bool = False


@dataclass(frozen=True, kw_only=True)
class Constant:
    """An array that goes to the weights blob. ctype: `int8_t`, `int16_t`, `int32_t`, `uint8_t`, `uint32_t`, `float`, ...

    data: one dimension, of the numpy type that ctype names. alignment: in bytes, a power of two, 16 at most. Everything that
    training decides (weights, biases, multipliers, zero points, tables) is a constant, and never a literal in C: the blob alone
    can be replaced on a device. What follows from shapes alone is a literal in C.
    """

    ctype: str
    data: Array
    alignment: int = 4


@dataclass(frozen=True, kw_only=True)
class Places:
    """C expressions for what a call needs: pointers, `const T *` (inputs, constants), `T *` (outputs), `uint8_t *` (scratch)."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]
    scratch: str


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """One operator as C.

    fragments: C texts that must come before, in order, each once in a file (see `fragment_text`); definitions: C text of this
    operator alone, before the call (rarely needed). constants: in the order of `Places.constants`. scratch_bytes: of workspace
    while it runs, aligned to 16. stack_bytes: an upper bound of what the deepest call below the run function takes, by the
    compiler's own figures. call: returns the C statements. needs_math: it calls functions of `math.h`.

    overlap: index of an input -> distance d in bytes: the output (the first) may overlap that input where
    `output's offset + d <= input's offset`; an input that is absent must lie apart. 0: in place is fine.
    """

    call: Callable[[Places], str]
    fragments: tuple[str, ...] = ()
    definitions: str = ""
    constants: tuple[Constant, ...] = ()
    scratch_bytes: int = 0
    stack_bytes: int = 64
    overlap: Mapping[int, int] = field(default_factory=dict[int, int])
    needs_math: bool = False


FOLDER: Final = Path(__file__).parent


def fragment_text(fragment: str) -> str:
    """Return the C text of a fragment: a file of this package, as `kernels/dense_dsp.c`; what has lines is itself the text."""
    return fragment if "\n" in fragment else (FOLDER / fragment).read_text(encoding="utf-8")


def distance_of_steps(steps: Sequence[tuple[int, int]]) -> int:
    """Return the distance of `Lowered.overlap` for an operator that works in steps from low addresses to high ones.

    Args:
        steps: in order, (end, begin): output bytes written once the step is done, and the first input byte that a later step
            still reads (what a step copied to scratch before it wrote counts as read by it).
    """
    return max((end - begin for end, begin in steps), default=0)
