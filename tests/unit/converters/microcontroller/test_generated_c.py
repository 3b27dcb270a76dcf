"""The sources stand by themselves: clean, reentrant, harmless whatever a model's names say, and two of them in one program."""

import ctypes
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.emitting.c_types import comment_text
from modelfleet.converters.microcontroller.ir import Program, Tensor, View
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.microcontroller.programs import (
    STRICT,
    answer_of,
    compiled,
    generated,
    open_files,
    two_layers,
    write,
)

X = np.arange(-60, 60, 10, dtype=np.int8).reshape(1, 12)
HOSTILE = (
    "x */ int evil; /*",
    "h\n#include </etc/passwd>\n",
    "v\\",
    'y ??/ "%s" \u202e ../../ //',
)


def test_answers_as_the_program_means(tmp_path: Path):
    program = two_layers()
    session = open_files(generated(program).files(), tmp_path)
    for sample in (X, -X, X * 0):
        assert (session.run({"x": sample})["y"] == answer_of(program, sample)).all()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_have_nothing_to_say(compiler: str, tmp_path: Path):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    folder = write(generated(two_layers(names=HOSTILE, title=HOSTILE[0])), tmp_path / "c")
    compiled([compiler, *STRICT, "-O1", "-c", "model.c", "weights.c"], folder)


def test_hostile_names_reach_c_in_comments_only(tmp_path: Path):
    program = two_layers(names=HOSTILE, title=HOSTILE[0])
    made = generated(program)
    session = open_files(made.files(), tmp_path)
    assert (session.run({HOSTILE[0]: X})[HOSTILE[3]] == answer_of(program, X)).all()
    plain, hostile = generated().files(), made.files()
    for file in ("model.h", "model.c", "weights.c"):
        code, other = (
            re.sub(r"/\*.*?\*/", "", files[file].decode("ascii"), flags=re.DOTALL) for files in (plain, hostile)
        )
        assert code == other


@pytest.mark.parametrize("name", [*HOSTILE, "*/", "/*", "\0", "a" * 5000])
def test_a_name_ends_no_comment_and_joins_no_line(name: str):
    shown = comment_text(name)
    assert re.fullmatch(r"[A-Za-z0-9/._:, ()%\[\]~-]{0,120}", shown)


def test_has_no_state_of_its_own_and_calls_no_libc(tmp_path: Path):
    folder = write(generated(), tmp_path / "c")
    compiled(["gcc", "-std=c99", "-O2", "-ffreestanding", "-c", "model.c", "weights.c"], folder)
    assert [line.split()[1:3] for line in compiled(["size", "model.o", "weights.o"], folder).splitlines()[1:]] == [
        ["0", "0"]
    ] * 2
    assert compiled(["nm", "-u", "model.o"], folder).split() == []


def test_copies_without_memcpy(tmp_path: Path):
    tensors = {name: Tensor(name=name, dtype="int8", shape=shape) for name, shape in (("x", (1, 300)), ("y", (300,)))}
    view = View(name="view", inputs=("x",), outputs=("y",))
    constant = Tensor(name="k", dtype="float32", shape=(2,), data=np.array([1.5, -2.0], np.float32))
    program = Program(
        name="", inputs=("x",), outputs=("y", "k", "x"), tensors={**tensors, "k": constant}, operators=(view,)
    )
    made = generated(program)
    x = np.arange(300).astype(np.int8)[None]
    folder = write(made, tmp_path / "c")
    answers = open_files(made.files(), folder).run({"x": x})
    assert (answers["y"] == x[0]).all()
    assert (answers["x"] == x).all()
    assert answers["k"].tolist() == [1.5, -2.0]
    compiled(["gcc", "-std=c99", "-O3", "-c", "model.c"], folder)
    assert compiled(["nm", "-u", "model.o"], folder).split() == []


def test_threads_with_workspaces_of_their_own_do_not_disturb_each_other(tmp_path: Path):
    program = two_layers()
    folder = write(generated(program), tmp_path / "c")
    compiled(["gcc", "-std=c99", "-O1", "-shared", "-fPIC", "-o", "model.so", "model.c", "weights.c"], folder)
    library = ctypes.CDLL(str(folder / "model.so"))
    weights = ctypes.c_void_p(ctypes.addressof(ctypes.c_uint8.in_dll(library, "model_weights")))
    wrong = list[int]()

    def work(number: int) -> None:
        x = np.full((1, 12), number * 40 - 60, np.int8)
        workspace, y = np.zeros(generated(program).workspace_bytes + 16, np.uint8), np.zeros(8, np.int8)
        address = workspace.ctypes.data + -workspace.ctypes.data % 16
        for _ in range(300):
            y[:] = 0
            library.model_run(weights, *(ctypes.c_void_p(a) for a in (address, x.ctypes.data, y.ctypes.data)))
            if (y[:5] != answer_of(program, x)).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_models_live_in_one_program(tmp_path: Path):
    programs = {"one": two_layers(seed=1), "two": two_layers(seed=2)}
    for name, program in programs.items():
        folder = write(generated(program), tmp_path / name)
        compiled(["gcc", *STRICT, f"-DMODEL_PREFIX={name}", "-c", "model.c", "weights.c"], folder)
    lines = ["#include <stdio.h>"]
    for name in programs:
        lines += [
            "#undef MODEL_PREFIX",
            f"#define MODEL_PREFIX {name}",
            f'#include "{name}/model.h"',
            f'#include "{name}/model.h"',
        ]
        lines += [f"static uint8_t workspace_{name}[MODEL_WORKSPACE_BYTES] __attribute__((aligned(16)));"]
    numbers = ",".join(map(str, X.reshape(-1)))
    lines += ["int main(void) {", f"static const int8_t x[12] __attribute__((aligned(4))) = {{{numbers}}};"]
    lines += ["int8_t y[8] __attribute__((aligned(4)));"]
    for name in programs:
        lines += [f"if ({name}_run({name}_weights, workspace_{name}, x, y) != 0) return 1;"]
        lines += ['for (int i = 0; i < 5; i++) printf("%d ", y[i]);']
    (tmp_path / "main.c").write_text("\n".join([*lines, "return 0;", "}"]))
    objects = [f"{name}/{file}.o" for name in programs for file in ("model", "weights")]
    compiled(["gcc", *STRICT, "-o", "program", "main.c", *objects], tmp_path)
    said = [int(word) for word in compiled(["./program"], tmp_path).split()]
    assert said == [value for program in programs.values() for value in answer_of(program, X).tolist()]


@pytest.mark.parametrize("which", range(4))
def test_a_pointer_that_is_not_aligned_is_refused_and_nothing_written(which: int, tmp_path: Path):
    folder = write(generated(), tmp_path / "c")
    compiled(["gcc", "-std=c99", "-O1", "-shared", "-fPIC", "-o", "model.so", "model.c", "weights.c"], folder)
    library = ctypes.CDLL(str(folder / "model.so"))
    memory = np.zeros(4096, np.uint8)
    base = memory.ctypes.data + -memory.ctypes.data % 16
    weights = ctypes.addressof(ctypes.c_uint8.in_dll(library, "model_weights"))
    pointers = [weights, base, base + 2048, base + 3072]
    pointers[which] += (8, 8, 2, 2)[which]
    assert library.model_run(*map(ctypes.c_void_p, pointers)) == 1
    assert not memory.any()


def test_what_training_decides_is_in_the_blob_alone():
    before, after = generated(two_layers(seed=1)), generated(two_layers(seed=2))
    assert before.text.source == after.text.source
    assert before.shapes_digest == after.shapes_digest
    assert before.text.blob.data != after.text.blob.data
    assert len(before.text.blob.data) == len(after.text.blob.data)


def test_another_shape_is_another_digest():
    program = two_layers()
    wider = replace(program, tensors={**program.tensors, "x": Tensor(name="x", dtype="int8", shape=(2, 12))})
    assert (
        generated(program).shapes_digest
        != generated(replace(wider, operators=program.operators[:1], outputs=("h",))).shapes_digest
    )


def test_a_blob_trained_anew_runs_in_the_code_of_the_old_one(tmp_path: Path):
    old, new = two_layers(seed=1), two_layers(seed=2)
    blob = {name: data for name, data in generated(new).files().items() if name.startswith("weights.")}
    files = {**generated(old).files(), **blob}
    assert (open_files(files, tmp_path).run({"x": X})["y"] == answer_of(new, X)).all()


def test_equal_constants_are_stored_once_and_every_one_is_aligned():
    program = two_layers()
    first = program.operators[0]
    twice = replace(first, name="again", outputs=("h2",))
    tensors = {**program.tensors, "h2": replace(program.tensors["h"], name="h2")}
    both = generated(replace(program, operators=(first, twice), outputs=("h", "h2"), tensors=tensors)).text.blob
    once = generated(replace(program, operators=(first,), outputs=("h",))).text.blob
    assert both.data == once.data
    assert all(row.offset % row.constant.alignment == 0 for row in both.rows)


def test_a_type_that_c_lacks_is_refused_by_the_tensors_name():
    tensors = {name: Tensor(name=name, dtype="complex64", shape=(2,)) for name in ("x", "y")}
    view = View(name="view", inputs=("x",), outputs=("y",))
    with pytest.raises(ConversionError, match=r"tensor '[xy]': expected a type of .*got complex64"):
        generated(Program(name="", inputs=("x",), outputs=("y",), tensors=tensors, operators=(view,)))


@pytest.mark.parametrize("profile", ["cortex-m4", "cortex-m55"])
def test_links_without_a_libc_on_a_microcontroller(profile: str, tmp_path: Path):
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    chip = load_profiles()[profile].microcontroller
    assert chip is not None
    folder = write(generated(), tmp_path / "c")
    command = ["arm-none-eabi-gcc", *chip.cpu_flags, *STRICT, "-O2", "-ffreestanding", "-nostdlib", "-Wl,-e,model_run"]
    compiled([*command, "-o", "model.elf", "model.c", "weights.c", "-lgcc"], folder)


def test_a_sanitizer_finds_nothing_and_would_find_a_write_outside(tmp_path: Path):
    folder = write(generated(), tmp_path / "c")
    source = '#include "model.h"\n#include <stdlib.h>\nint main(void) {\n'
    source += (
        "void *w = aligned_alloc(16, MODEL_WORKSPACE_BYTES - SHORT);\nint8_t *x = calloc(12, 1), *y = malloc(5);\n"
    )
    source += "int e = model_run(model_weights, w, x, y); free(w); free(x); free(y); return e; }\n"
    (folder / "main.c").write_text(source)
    command = [
        "gcc",
        "-std=c11",
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "main.c",
        "model.c",
    ]
    compiled([*command, "weights.c", "-DSHORT=0", "-o", "right"], folder)
    compiled(["./right"], folder)
    compiled([*command, "weights.c", "-DSHORT=16", "-o", "wrong"], folder)
    found = subprocess.run([folder / "wrong"], capture_output=True, text=True, timeout=60, check=False)
    assert "heap-buffer-overflow" in found.stderr
