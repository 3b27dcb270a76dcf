"""Cases that MVE kernels compute: those of all kernels, and shapes on either side of what the assembly unrolls and blocks."""

from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Backend, Target
from tests.unit.converters.microcontroller import product_cases as products
from tests.unit.converters.microcontroller.product_cases import Case, alone

DENSE = [(1, 640, 5), (2, 128, 8), (3, 129, 6), (3, 160, 4), (5, 15, 4), (2, 16, 3), (1, 300, 1), (4, 8, 16)]
CONV = [
    ((5, 1, 33), (5, 1), 5, (1, 1), (1, 1), (0, 0, 0, 0), 1),
    ((6, 6, 32), (3, 3), 8, (1, 1), (1, 1), (1, 1, 1, 1), 1),
    ((3, 17, 1), (3, 3), 4, (1, 1), (1, 1), (1, 1, 1, 1), 1),
    ((22, 17, 1), (20, 3), 4, (1, 1), (1, 1), (0, 0, 0, 0), 1),
]
DEPTHWISE = [
    ((6, 5, 64), (3, 3), (1, 1), (1, 1), (1, 1, 1, 1)),
    ((5, 9, 33), (3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
    ((4, 6, 16), (2, 2), (2, 2), (1, 1), (0, 0, 0, 0)),
    ((7, 6, 20), (5, 5), (1, 1), (1, 1), (2, 2, 2, 2)),
    ((9, 9, 8), (5, 5), (2, 2), (1, 1), (1, 2, 2, 1)),
    ((12, 1, 35), (9, 1), (1, 1), (1, 1), (4, 0, 4, 0)),
    ((4, 9, 16), (4, 4), (1, 2), (1, 1), (1, 1, 2, 2)),
    ((9, 5, 6), (8, 4), (1, 1), (1, 1), (0, 1, 0, 1)),
]


def vector_cases(seed: int = 0) -> list[Case]:
    """Return every case that has an MVE kernel."""
    cases = [*products.product_cases(seed, least=-128), *products.cases_of(DENSE, CONV, DEPTHWISE, seed, least=-128)]
    return [case for case in cases if _vector(case)]


def _vector(case: Case) -> bool:
    program = alone(case)
    lowered = lower(program.operators[0], program, Target(backend=Backend.MVE))
    return any("mve" in fragment for fragment in lowered.fragments)
