"""Matrix products and convolutions for MVE: their packed weights mean the same everywhere, their assembly stays within a row."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.call_graph import read_calls, stack_bytes
from modelfleet.converters.microcontroller.ir import Dense
from modelfleet.converters.microcontroller.kernels import rows_mve
from modelfleet.converters.microcontroller.kernels.lower import lower
from modelfleet.converters.microcontroller.lowering import Backend, Rounding, Target
from tests.unit.converters.microcontroller.kernel_calls import require_right, source
from tests.unit.converters.microcontroller.mve_cases import vector_cases
from tests.unit.converters.microcontroller.product_cases import Case, alone, cases_of, product_cases
from tests.unit.converters.microcontroller.programs import STRICT, compiled

MVE = Target(backend=Backend.MVE)
EXACT = Target(backend=Backend.MVE, rounding=Rounding.ONNXRUNTIME)


@pytest.mark.parametrize("target", [MVE, EXACT], ids=["integer", "onnxruntime"])
def test_the_shipped_weights_answer_on_this_machine_as_the_definition_does(target: Target, tmp_path: Path) -> None:
    require_right(vector_cases(), target, tmp_path, seeds=4)


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_both_compilers_take_the_code_without_a_warning(compiler: str, tmp_path: Path) -> None:
    for target in (MVE, EXACT):
        text, _ = source([lower(p.operators[0], p, target) for p in map(alone, vector_cases())])
        (tmp_path / f"{target.rounding}.c").write_text(text)
        compiled([compiler, *STRICT, "-fsyntax-only", f"{target.rounding}.c"], tmp_path)


def test_every_other_shape_falls_to_the_portable_kernel() -> None:
    kinds = [_fragments(case) for case in product_cases()]
    assert sum("kernels/conv.c" in kind for kind in kinds) == 2  # groups, dilated columns
    assert sum("kernels/depthwise.c" in kind for kind in kinds) == 1  # dilated


@pytest.mark.parametrize("length", [*range(1, 50), 127, 128, 129, 143, 144, 145, 160, 288, 300, 577, 5000])
@pytest.mark.parametrize("pair", [False, True])
def test_the_assembly_reads_the_bytes_of_a_row_and_no_others(length: int, pair: bool) -> None:
    rows = rows_mve.Rows(length=length, pair=pair, tail=False, rounding=Rounding.INTEGER)
    for register in ("r9", "r11")[: 1 + pair]:
        read, at_end = reads(rows_mve.function(rows), register, length)
        assert read == {*range(length)}
        assert at_end == 0


def reads(text: str, register: str, length: int) -> tuple[set[int], int]:
    """Return the offsets of all bytes that are read through `register` for one block of channels, and where it points then."""
    lines = re.findall(r'"(.*)\\n"', text)
    begin, end = lines.index("2:"), next(i for i, line in enumerate(lines) if line.startswith("vldrw.u32 q3"))
    loop = lines.index("3:") if "3:" in lines else end
    times = next((int(line.split("#")[1]) for line in lines if line.startswith("movw r7")), 1)
    body = lines[begin:end]
    if "3:" in lines:
        bottom = lines.index("bne 3b")
        body = [*lines[begin:loop], *lines[loop:bottom] * times, *lines[bottom:end]]
    at, read = 0, set[int]()
    if length < rows_mve.CHUNK:  # read once for all channels, under a predicate of `length` lanes
        body = [f"mov r0, #{length}", "vctp.8 r0", *body]
        assert all(line in lines[:begin] for line in body[:2])
        assert any(line.startswith("vldrbt.u8") and f"[{register}]" in line for line in lines[:begin])
        return {*range(length)}, 0
    for line in body:
        load = re.fullmatch(rf"vldrb.u8 q[01], \[{register}(?:\], #(\d+)|, #(-?\d+)\])", line)
        if load is not None:
            place = at + int(load[2] or 0)
            read |= {*range(place, place + rows_mve.CHUNK)}
            at += int(load[1] or 0)
        back = re.fullmatch(rf"subw {register}, {register}, #(\d+)", line)
        at -= int(back[1]) if back is not None else 0
    return read, at


def test_a_shape_that_only_training_fills_gives_the_same_text() -> None:
    for first, second in zip(vector_cases(1), vector_cases(2), strict=True):
        texts = {source([lower(p.operators[0], p, MVE)])[0] for p in (alone(first), alone(second))}
        assert len(texts) == 1


def test_onnxruntimes_rounding_without_its_factor_is_refused() -> None:
    operator, shape, out_shape = vector_cases()[0]
    assert isinstance(operator, Dense)
    bare = replace(operator, requantization=replace(operator.requantization, factor=None))
    program = alone((bare, shape, out_shape))
    with pytest.raises(ConversionError, match="factor"):
        lower(program.operators[0], program, EXACT)


@pytest.mark.parametrize(("rows", "length", "channels", "distance"), [(1, 64, 12, 8), (4, 64, 64, 124), (6, 8, 16, 60)])
def test_an_answer_is_written_while_only_the_last_channels_still_read(
    rows: int, length: int, channels: int, distance: int
) -> None:
    (case,) = cases_of([(rows, length, channels)], [], [], 0)
    program = alone(case)
    assert lower(program.operators[0], program, MVE).overlap == {0: distance}


def test_the_stack_of_assembly_counts() -> None:
    name = rows_mve.Rows(length=64, pair=True, tail=False, rounding=Rounding.INTEGER).name
    text = f'node: {{ title: "model.c:{name}" label: "{name}\\nmodel.c:1:1\\n0 bytes (static)" }}\n'
    text += 'node: { title: "model_run" label: "model_run\\nmodel.c:3:5\\n16 bytes (static)" }\n'
    text += f'edge: {{ sourcename: "model_run" targetname: "model.c:{name}" label: "" }}\n'
    assert (
        stack_bytes(read_calls(text.replace("\n", "\\n").replace("}\\n", "}\n")), "model_run")
        == 16 + rows_mve.STACK_BYTES
    )


def _fragments(case: Case) -> tuple[str, ...]:
    program = alone(case)
    return lower(program.operators[0], program, MVE).fragments
