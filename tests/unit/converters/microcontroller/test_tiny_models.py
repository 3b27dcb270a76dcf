"""The four networks of MLPerf Tiny as C: no compiler warns, no sanitizer finds anything, and answers are onnxruntime's."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from modelfleet.converters.graphs import read_model
from modelfleet.converters.microcontroller.generate import Generated, generate
from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import Target
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.microcontroller.programs import STRICT, compiled, write

TINY = Path(__file__).parents[4] / "examples" / "mlperf_tiny"
MODELS = ("kws", "ic", "vww", "ad")
CHIPS = {name: profile.microcontroller for name, profile in load_profiles().items() if profile.microcontroller}
HARNESS = """#include "model.h"
#include <stdio.h>
#include <stdlib.h>
static void *take(const char *name, size_t length) {
    FILE *file = fopen(name, "rb");
    char *memory = aligned_alloc(16, (length + 15u) / 16u * 16u);
    if (file == NULL || memory == NULL || fread(memory, 1, length, file) != length) abort();
    fclose(file);
    return memory;
}
int main(void) {
    void *weights = take("blob", MODEL_WEIGHTS_BYTES), *workspace = aligned_alloc(16, MODEL_WORKSPACE_BYTES);
    int8_t *x = malloc(MODEL_INPUT_0_ELEMENTS), *y = malloc(MODEL_OUTPUT_0_ELEMENTS);
    while (fread(x, 1, MODEL_INPUT_0_ELEMENTS, stdin) == MODEL_INPUT_0_ELEMENTS) {
        if (model_run(weights, workspace, x, y) != 0) return 1;
        fwrite(y, 1, MODEL_OUTPUT_0_ELEMENTS, stdout);
    }
    free(weights), free(workspace), free(x), free(y);
    return 0;
}
"""


def made(name: str, chip: str) -> Generated:
    profile = CHIPS[chip]
    return generate(read_model(TINY / f"{name}_int8.onnx"), name, Target(backend=profile.backend))


def samples(name: str) -> tuple[Array, Array]:
    data = np.load(TINY / f"{name}_int8_io.npz")
    return data["x"][:2], data["y_ort"][:2]


@pytest.mark.parametrize("chip", ["generic-c99", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("name", MODELS)
def test_sanitizers_find_nothing_and_answers_are_within_one_step(name: str, chip: str, tmp_path: Path):
    generated = made(name, chip)
    folder = write(generated, tmp_path / "c")
    (folder / "main.c").write_text(HARNESS)
    (folder / "blob").write_bytes(generated.text.blob.data)
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compiled(["gcc", "-std=c11", *flags, "-c", "main.c"], folder)
    compiled(["gcc", *STRICT, *flags, "model.c", "main.o", "-o", "program"], folder)
    x, expected = samples(name)
    done = subprocess.run(
        [folder / "program"], cwd=folder, input=x.tobytes(), capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    got = np.frombuffer(done.stdout, np.int8).reshape(expected.shape)
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("name", MODELS)
def test_clang_has_nothing_to_say(name: str, tmp_path: Path):
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    for chip in ("generic-c99", "cortex-m4", "cortex-m55"):
        folder = write(made(name, chip), tmp_path / chip)
        compiled(["clang", *STRICT, "-fsyntax-only", "model.c"], folder)


@pytest.mark.parametrize("chip", ["cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("name", MODELS)
def test_the_cross_compiler_has_nothing_to_say_and_no_libc_is_called(name: str, chip: str, tmp_path: Path):
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    folder = write(made(name, chip), tmp_path / "c")
    command = ["arm-none-eabi-gcc", *CHIPS[chip].cpu_flags, *STRICT, "-O2", "-ffreestanding", "-c", "model.c"]
    compiled(command, folder)
    assert compiled(["arm-none-eabi-nm", "-u", "model.o"], folder).split() == []
    assert compiled(["arm-none-eabi-size", "model.o"], folder).splitlines()[1].split()[1:3] == ["0", "0"]
