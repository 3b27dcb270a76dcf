"""Small ONNX models and golden sets, made on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from modelfleet.benchmarks.golden import GoldenSet, save_golden
from modelfleet.hardware_profiles.profile import HardwareProfile, load_profiles

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


class Models:
    """Makes models of float32 (N, 8) -> (N, 4) unless told otherwise."""

    def model(
        self,
        nodes: Sequence[NodeProto],
        *,
        weights: dict[str, np.ndarray] | None = None,
        output: str = "y",
        opset: int = 17,
        functions: Sequence = (),
        domains: Sequence[str] = (),
        width: int | None = None,
    ) -> ModelProto:
        graph = self.graph(nodes, weights or {}, output, width)
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8)

    def graph(
        self, nodes: Sequence[NodeProto], weights: dict[str, np.ndarray], output: str, width: int | None
    ) -> GraphProto:
        return helper.make_graph(
            list(nodes),
            "test",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", width])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )

    def classifier(self, seed: int = 0) -> ModelProto:
        """x (N, 8) -> Gemm, Relu, Gemm -> y (N, 4); random weights."""
        random = np.random.default_rng(seed)
        weights = {
            "w1": random.standard_normal((8, 32)).astype(np.float32),
            "b1": random.standard_normal(32).astype(np.float32),
            "w2": random.standard_normal((32, 4)).astype(np.float32),
        }
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="last"),
        ]
        return self.model(nodes, weights=weights, width=4)

    def relu(self) -> ModelProto:
        return self.model([helper.make_node("Relu", ["x"], ["y"], name="only")], width=8)

    def loop(self, trips: str, body_nodes: Sequence[NodeProto] | None = None) -> NodeProto:
        """A Loop over `acc`, starting at x, that computes `body_nodes`."""
        body = helper.make_graph(
            [
                *(body_nodes or [helper.make_node("Add", ["acc", "acc"], ["next"], name="inner")]),
                helper.make_node("Identity", ["go"], ["again"]),
            ],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("go", TensorProto.BOOL, []),
                helper.make_tensor_value_info("acc", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("again", TensorProto.BOOL, []),
                helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            ],
        )
        return helper.make_node("Loop", [trips, "", "x"], ["y"], name="spin", body=body)


@pytest.fixture(scope="session")
def models() -> Models:
    return Models()


@pytest.fixture(scope="session")
def profiles() -> dict[str, HardwareProfile]:
    return load_profiles()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[ModelProto], Path]:
    def write(model: ModelProto) -> Path:
        path = tmp_path / "source.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """A golden set for models of x (N, 8): 64 random samples, all labelled 0, so that only parity speaks."""
    inputs = {"x": np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)}
    golden = GoldenSet(inputs=inputs, expected={}, labels=np.zeros(64, np.int64))
    save_golden(golden, tmp_path / "samples.npz")
    return tmp_path / "samples.npz"
