"""ONNX models of float operators, made on the spot, and their C: compared with onnxruntime, or run under sanitizers."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper, shape_inference

from modelfleet.benchmarks.runtimes.onnxruntime import OnnxRuntimeSession
from modelfleet.converters.microcontroller.generate import Generated, generate
from modelfleet.converters.microcontroller.ir import Array
from modelfleet.converters.microcontroller.lowering import Rounding, Target
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.microcontroller.programs import STRICT, compiled, open_files

FLAGS = (*STRICT, "-O1", "-shared", "-fPIC", "-ffp-contract=off")
OPSET = 17


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """Return a node; inputs and outputs are parted by blanks, "_" is none."""
    names = [["" if name == "_" else name for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op_type, names[0], names[1], **attributes)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Array],
    outputs: Sequence[str],
    weights: Mapping[str, Array] | None = None,
    *,
    opset: int = OPSET,
) -> ModelProto:
    """Return a model whose inputs have the types and shapes of these arrays."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    graph = helper.make_graph(
        list(nodes),
        "floats",
        [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in inputs.items()],
        [helper.make_value_info(name, helper.make_tensor_type_proto(1, None)) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    for value in made.graph.output:
        value.type.Clear()
    return shape_inference.infer_shapes(made)


def as_c(made: ModelProto, folder: Path) -> Generated:
    """Return the model's C as a build makes it for `generic-c99`."""
    normalised = normalise(made, folder, load_profiles()["generic-c99"])
    return generate(normalised, "floats", Target(rounding=Rounding.ONNXRUNTIME))


def differences(made: ModelProto, inputs: Mapping[str, Array], folder: Path) -> dict[str, float]:
    """Return, for each output, the greatest difference from onnxruntime, relative to its greatest number (inf: other type)."""
    session = open_files(as_c(made, folder).files(), folder, flags=FLAGS)
    wanted = OnnxRuntimeSession(made.SerializeToString(), optimise=False).run(dict(inputs))
    got = session.run(dict(inputs))
    return {name: _difference(got[name], value) for name, value in wanted.items()}


def _difference(got: Array, wanted: Array) -> float:
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    if wanted.size == 0 or np.array_equal(got, wanted, equal_nan=wanted.dtype.kind == "f"):
        return 0.0
    gap = np.abs(got.astype(np.float64) - wanted.astype(np.float64)).max()
    return float(gap / max(np.abs(wanted.astype(np.float64)).max(), 1e-30))


_MAIN = """#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"
static void *room(size_t bytes)
{
    void *found = NULL;
    return posix_memalign(&found, 16, bytes) ? NULL : found;
}
int main(void)
{
    FILE *given = fopen("inputs.bin", "rb"), *made = fopen("outputs.bin", "wb");
"""


def run_sanitized(made: Generated, inputs: Mapping[str, Array], folder: Path) -> dict[str, Array]:
    """Return the answers of a program in which AddressSanitizer and UBSan watch every byte of every buffer.

    It fails where anything is read or written outside, or is undefined behaviour.
    """
    program = made.program
    for name, data in made.files().items():
        (folder / name).write_bytes(data)
    (folder / "inputs.bin").write_bytes(
        b"".join(np.ascontiguousarray(inputs[name]).tobytes() for name in program.inputs)
    )
    lines = [_MAIN]
    size = {name: program.tensors[name].size_bytes for name in (*program.inputs, *program.outputs)}
    for index, name in enumerate(program.inputs):
        lines.append(
            f"void *i{index} = room({size[name]}); if (fread(i{index}, 1, {size[name]}, given) != {size[name]}) return 2;"
        )
    for index, name in enumerate(program.outputs):
        lines.append(f"void *o{index} = room({size[name]}); memset(o{index}, 0xa5, {size[name]});")
    names = [f"i{index}" for index in range(len(program.inputs))] + [
        f"o{index}" for index in range(len(program.outputs))
    ]
    lines.append(f"void *work = room({made.workspace_bytes}), *blob = room({len(made.text.blob.data)});")
    lines.append(f"memcpy(blob, model_weights, {len(made.text.blob.data)});")
    lines.append(f"if (model_run(blob, work, {', '.join(names)}) != 0) return 3;")
    lines += [f"fwrite(o{index}, 1, {size[name]}, made);" for index, name in enumerate(program.outputs)]
    (folder / "main.c").write_text("\n".join([*lines, "fclose(made); return 0; }"]))
    flags = [
        "-std=c99",
        "-D_POSIX_C_SOURCE=200809L",
        "-O0",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=all",
    ]
    compiled(["gcc", *flags, "main.c", "model.c", "weights.c", "-lm", "-o", "main"], folder)
    done = subprocess.run(
        ["./main"], cwd=folder, capture_output=True, text=True, timeout=60, env={"ASAN_OPTIONS": "detect_leaks=0"}
    )
    assert done.returncode == 0, done.stderr[:2000]
    data = (folder / "outputs.bin").read_bytes()
    answers: dict[str, Array] = {}
    for name in program.outputs:
        tensor = program.tensors[name]
        answers[name] = np.frombuffer(data[: size[name]], np.dtype(tensor.dtype)).reshape(tensor.shape)
        data = data[size[name] :]
    return answers
