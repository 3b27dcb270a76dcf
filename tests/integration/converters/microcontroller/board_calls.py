"""Kernels on an emulated board: what they answer over their own input, and what they take of the stack."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modelfleet.benchmarks.microcontroller.board import BOARDS, COMPILER, FLAGS
from modelfleet.benchmarks.microcontroller.measure import Call, measure
from modelfleet.converters.microcontroller.call_graph import read_calls, stack_bytes
from modelfleet.converters.microcontroller.emitting.layout import lay_out
from modelfleet.converters.microcontroller.emitting.program_text import PRELUDE, constant_expression
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import Program
from modelfleet.converters.microcontroller.lowering import Lowered, Places, Rounding, fragment_text
from tests.unit.converters.microcontroller.product_cases import given
from tests.unit.converters.microcontroller.programs import compiled

SEEDS = (0, 1, 7)
MARGIN = 32
UNTOUCHED = 0xA5
MEASURING_BYTES = 32
NOINLINE = "__attribute__((noinline))"

Made = Sequence[tuple[Program, Rounding, Lowered]]
"""Programs of one operator, from "x" to "y", and what they became."""


def require_right_on_board(made: Made, board: str, tmp_path: Path) -> None:
    """Return if every case answers as the definition does, writes nothing beside, and takes no more stack than is stated."""
    write_calls(made, tmp_path)
    command = [COMPILER, *BOARDS[board].cpu, *FLAGS, "-fcallgraph-info=su", "-c", "cases.c", "-o", "cases.o"]
    compiled(command, tmp_path)
    sizes = [program.tensors["y"].elements + 2 * MARGIN for program, _, _ in made]
    call = Call(
        sources=[tmp_path / "cases.o"],
        header="cases.h",
        statement="answer = run_cases((const int8_t *)input_0, (uint8_t *)output_0);",
        output_bytes=[sum(sizes)],
        include=[tmp_path],
    )
    samples = [np.concatenate([given(program, seed)["x"].reshape(-1) for program, _, _ in made]) for seed in SEEDS]
    found = measure(call, BOARDS[board], [[sample.tobytes()] for sample in samples])
    for seed, (data,) in zip(SEEDS, found.outputs, strict=True):
        at = 0
        for (program, rounding, _), size in zip(made, sizes, strict=True):
            got = np.frombuffer(data[at : at + size], np.int8)
            wanted = interpret(program, given(program, seed), rounding)["y"].reshape(-1)
            margins = np.concatenate([got[:MARGIN], got[-MARGIN:]]).view(np.uint8)
            assert (got[MARGIN:-MARGIN] == wanted).all(), f"{program.operators[0]}, {rounding}, seed {seed}"
            assert (margins == UNTOUCHED).all(), f"margins of {program.operators[0]}, {rounding}, seed {seed}"
            at += size
    stated = stack_bytes(read_calls((tmp_path / "cases.ci").read_text()), "run_cases")
    assert found.stack_bytes <= stated + MEASURING_BYTES, (found.stack_bytes, stated)


def write_calls(made: Made, folder: Path) -> None:
    """Write `run_cases`: every case's input `distance` bytes behind its output's place, and what lies there afterwards."""
    blob = lay_out([(constant, "") for _, _, one in made for constant in one.constants])
    offsets = iter(blob.offsets)
    lines, most, deepest, offset = [], 0, 0, 0
    for program, _, one in made:
        constants = tuple(constant_expression(constant.ctype, next(offsets)) for constant in one.constants)
        places = Places(inputs=("input",), outputs=("place",), constants=constants, scratch="(uint8_t *)scratch")
        distance, count, out = one.overlap[0], program.tensors["x"].elements, program.tensors["y"].elements
        source, place = MARGIN + max(0, distance), MARGIN + max(0, -distance)
        end = max(source + count, place + out)
        most, deepest = max(most, end + MARGIN), max(deepest, one.scratch_bytes)
        lines.append(
            f"    fill(arena, {end + MARGIN});\n    copy(arena + {source}, x + {offset}, {count});\n"
            f"    {{ const int8_t *const input = arena + {source};\n"
            f"      int8_t *const place = arena + {place};\n{one.call(places)} }}\n"
            f"    copy((int8_t *)y, arena, {MARGIN});\n    copy((int8_t *)y + {MARGIN}, arena + {place}, {out});\n"
            f"    copy((int8_t *)y + {MARGIN + out}, arena + {end}, {MARGIN});\n    y += {out + 2 * MARGIN};\n"
        )
        offset += count
    fragments = dict.fromkeys((PRELUDE, *(name for _, _, one in made for name in one.fragments)))
    weights = ",".join(map(str, blob.data))
    head = f"static const uint8_t constants[] __attribute__((aligned(16))) = {{{weights}}};\n"
    head += f"static int8_t arena[{most}] __attribute__((aligned(16)));\n"
    head += f"static uint32_t scratch[{deepest // 4 + 4}] __attribute__((aligned(16)));\n"
    head += (
        f"static {NOINLINE} void copy(int8_t *to, const int8_t *from, int n) {{ while (n-- > 0) *to++ = *from++; }}\n"
    )
    head += f"static {NOINLINE} void fill(int8_t *to, int n) {{ for (int i = 0; i < n; ++i) to[i] = (int8_t){UNTOUCHED}; }}\n"
    run = f"uint32_t run_cases(const int8_t *x, uint8_t *y) {{\n{''.join(lines)}    return 0;\n}}\n"
    (folder / "cases.h").write_text("#include <stdint.h>\nuint32_t run_cases(const int8_t *x, uint8_t *y);\n")
    texts = [fragment_text(name) for name in fragments]
    (folder / "cases.c").write_text("\n".join(['#include "cases.h"', *texts, head, run]))
