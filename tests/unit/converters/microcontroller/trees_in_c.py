"""Models of many `ai.onnx.ml` nodes on one input, so that one compiled program answers for all of them; and what ORT answers."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from modelfleet.converters.microcontroller.generate import Generated, generate_program
from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.lowering import Target
from tests.unit.converters.microcontroller.programs import open_files
from tests.unit.converters.trees.ensembles import KINDS, answers

WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-Werror")
FLAGS = ("-std=c99", "-O0", "-shared", "-fPIC", *WARNINGS)
CHECKED = (
    "-O2",
    "-fsanitize=undefined",
    "-fsanitize-undefined-trap-on-error",
    "-std=c99",
    "-shared",
    "-fPIC",
    *WARNINGS,
)
CHUNK = 8
"""Nodes of one program: the planner looks at orders of all that do not depend on each other."""
SMALL, FAST = Target(small=True), Target()


def together(nodes: Sequence[NodeProto], x: np.ndarray, *, version: int = 3) -> ModelProto:
    """One model of all nodes, each on input `x` of its rows; outputs `label_3`, `scores_3` are the fourth's."""
    graph = helper.make_graph([], "many", [helper.make_tensor_value_info("x", KINDS[x.dtype.type], x.shape)], [])
    for index, node in enumerate(nodes):
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}_{index}"
        del copy.output[:]
        copy.output.extend(f"{name}_{index}" for name in node.output)
        graph.node.append(copy)
        wide = x.dtype == np.float64 and node.op_type == "TreeEnsemble"
        for name in copy.output:
            kind = TensorProto.INT64 if name.startswith("label") else TensorProto.DOUBLE if wide else TensorProto.FLOAT
            dims = [len(x)] if name.startswith("label") else [len(x), None]
            graph.output.append(helper.make_tensor_value_info(name, kind, dims))
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def made(model: ModelProto, target: Target) -> Generated:
    return generate_program(read_program(model, "trees", target.rounding), target)


def run_in_c(
    model: ModelProto, inputs: Sequence[Mapping[str, np.ndarray]], target: Target, flags: Sequence[str] = FLAGS
) -> list[dict[str, np.ndarray]]:
    """What the generated C answers, compiled strictly."""
    with tempfile.TemporaryDirectory() as folder:
        session = open_files(dict(made(model, target).files()), Path(folder), flags=flags)
        return [dict(session.run(given)) for given in inputs]


def require_all_exact(
    nodes: Sequence[NodeProto],
    x: np.ndarray,
    *,
    near: Sequence[NodeProto] = (),
    version: int = 3,
    targets: Sequence[Target] = (SMALL, FAST),
) -> None:
    """Every node's outputs are onnxruntime's (`require_exact`), but for the scores of those in `near`."""
    for begin in range(0, len(nodes), CHUNK):
        chunk = nodes[begin : begin + CHUNK]
        loose = [f"scores_{index}" for index, each in enumerate(chunk) if any(each is other for other in near)]
        require_exact(together(chunk, x, version=version), x, near=loose, targets=targets)


def require_exact(
    model: ModelProto, x: np.ndarray, *, near: Sequence[str] = (), targets: Sequence[Target] = (SMALL, FAST)
) -> None:
    """All outputs are onnxruntime's bit for bit, in all forms; those in `near` to 2e-6 (PROBIT's to 3e-5: it is itself
    the difference of two large numbers)."""
    expected = answers(model, {"x": x})
    for target in targets:
        (got,) = run_in_c(model, [{"x": x}], target)
        for output, array in expected.items():
            where = f"{output}, {'small' if target.small else 'fast'}"
            assert (got[output].dtype, got[output].shape) == (array.dtype, array.shape), where
            if output in near:
                share = 3e-5 if b"PROBIT" in model.graph.node[int(output.split("_")[1])].SerializeToString() else 2e-6
                assert np.allclose(got[output], array, rtol=share, atol=share, equal_nan=True), where
            else:
                assert np.array_equal(got[output], array, equal_nan=True), (
                    f"{where}: {(got[output] != array).sum()} of {array.size} differ, "
                    f"by {np.nanmax(np.abs(got[output] - array))}"
                )
