"""What is said of flash and stack is the compiler's word, or said to be an estimate."""

import shutil

import pytest

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.converters.microcontroller.call_graph import LIBRARY_STACK_BYTES, read_calls, stack_bytes, with_assembly
from modelfleet.converters.microcontroller.footprint import footprint
from modelfleet.hardware_profiles.microcontroller import Microcontroller
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.microcontroller.programs import generated

GRAPH = """graph: { title: "model.c"
node: { title: "model.c:leaf" label: "leaf\\nmodel.c:1:1\\n40 bytes (static)" }
node: { title: "model.c:wide" label: "wide\\nmodel.c:2:1\\n100 bytes (dynamic,bounded)" }
node: { title: "model_run" label: "model_run\\nmodel.c:3:5\\n16 bytes (static)" }
node: { title: "expf" label: "expf\\nmath.h:361:14" shape : ellipse }
edge: { sourcename: "model_run" targetname: "model.c:leaf" label: "model.c:4:26" }
edge: { sourcename: "model_run" targetname: "model.c:wide" label: "model.c:4:26" }
}
"""


def with_edge(source: str, target: str) -> str:
    return GRAPH.replace("}\n}", f'}}\nedge: {{ sourcename: "{source}" targetname: "{target}" label: "" }}\n}}')


def test_the_deepest_chain_counts():
    assert stack_bytes(read_calls(GRAPH), "model_run") == 116
    assert stack_bytes(read_calls(with_edge("model.c:wide", "model.c:leaf")), "model_run") == 156


def test_a_library_function_is_taken_at_its_greatest():
    assert stack_bytes(read_calls(with_edge("model.c:leaf", "expf")), "model_run") == 56 + LIBRARY_STACK_BYTES


def test_a_call_through_a_pointer_is_taken_for_one_of_the_deepest_function_that_makes_none_itself():
    assert stack_bytes(read_calls(with_edge("model.c:leaf", "__indirect_call")), "model_run") == 16 + 40 + 100


LISTING = """
model.o:     file format elf32-littlearm

00000000 <leaf>:
   0:\te92d 4fff \tstmdb\tsp!, {r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, sl, fp, lr}
   4:\ted2d 8b10 \tvpush\t{d8-d15}
   8:\tb084      \tsub\tsp, #16
   a:\tf84d cd04 \tstr.w\tip, [sp, #-4]!
   e:\tf7ff fffe \tbl\t0 <wide>
\t\t\te: R_ARM_THM_CALL\twide
  12:\tbdf0      \tldmia.w\tsp!, {r4, r5, pc}

00000020 <model_run>:
  20:\tb510      \tpush\t{r4, lr}
"""


def test_what_assembly_pushes_and_calls_counts_though_the_compiler_does_not_see_it():
    pushed = 13 * 4 + 8 * 8 + 16 + 4
    assert stack_bytes(with_assembly(read_calls(GRAPH), LISTING), "model_run") == 16 + pushed + 100


def test_recursion_has_no_bound_and_is_refused():
    with pytest.raises(MeasureError, match=r"model_run -> model\.c:leaf -> model_run: expected calls"):
        stack_bytes(read_calls(with_edge("model.c:leaf", "model_run")), "model_run")


def test_a_frame_of_any_size_is_refused():
    with pytest.raises(MeasureError, match="expected a frame of a size known ahead"):
        stack_bytes(read_calls(GRAPH.replace("(dynamic,bounded)", "(dynamic)")), "model_run")


@pytest.mark.parametrize("name", ["cortex-m4", "cortex-m7", "cortex-m55"])
def test_the_targets_own_compiler_measures(name: str):
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    chip = load_profiles()[name].microcontroller
    assert chip is not None
    found = footprint(generated(), chip)
    assert found.exact
    assert f"-mcpu={name}" in found.by
    assert 0 < found.stack_bytes < 400
    assert 100 < found.code_bytes < 4000


def test_without_it_this_machines_compiler_estimates():
    found = footprint(generated(), Microcontroller(flash_bytes=1, ram_bytes=1))
    assert not found.exact
    assert found.by.startswith("gcc for ")


def test_without_any_compiler_the_kernels_own_figures_stand(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    made = generated()
    found = footprint(made, Microcontroller(flash_bytes=1, ram_bytes=1))
    assert found == made.estimated()
    assert (found.exact, found.by) == (False, "")
    assert found.stack_bytes > max(one.stack_bytes for one in made.lowered)


def test_the_header_says_whose_word_it_is():
    made = generated()
    assert b"estimated, from its kernels" in made.files()["model.h"]
    chip = load_profiles()["generic-c99"].microcontroller
    assert chip is not None
    found = footprint(made, chip)
    header = made.files(found)["model.h"].decode()
    assert f"#define MODEL_STACK_BYTES {found.stack_bytes}u" in header
    assert f"estimated, {found.by}" in header
