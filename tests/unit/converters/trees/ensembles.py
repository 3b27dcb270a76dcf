"""Random ensembles and single nodes of `ai.onnx.ml`, and onnxruntime's answers before and after lowering."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, checker, helper, numpy_helper

from modelfleet.converters.trees.lower import lower_trees

KINDS = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE, np.int64: TensorProto.INT64}
MODES = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")


def model_of(
    node: NodeProto,
    x: np.ndarray,
    outputs: Sequence[int | None],
    *,
    version: int = 3,
    opset: int = 17,
    dims_of: Sequence[str | int | None] | None = None,
) -> ModelProto:
    """A model of one node with input `x`; each output's type is given (None: that of float32).

    Labels have one dimension and scores two, where `dims_of` does not say otherwise for all.
    """
    kinds = [kind or TensorProto.FLOAT for kind in outputs]
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", KINDS[x.dtype.type], ["N", *x.shape[1:]])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(node.output, kinds, strict=True)],
    )
    for value, kind in zip(graph.output, kinds, strict=True):
        dims = ["N"] if kind == TensorProto.INT64 else ["N", None]
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, dims if dims_of is None else dims_of))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", version)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def answers(model: ModelProto, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def require_equal(model: ModelProto, inputs: dict[str, np.ndarray], *, rtol: float = 1e-6) -> ModelProto:
    """Lower, and compare all outputs: integers exactly, scores within `rtol` of the greatest."""
    before = model.SerializeToString()
    lowered = lower_trees(model, "test")
    assert model.SerializeToString() == before
    checker.check_model(lowered)
    assert not [node for node in lowered.graph.node if node.domain == "ai.onnx.ml"]
    expected, got = answers(model, inputs), answers(lowered, inputs)
    assert list(expected) == list(got)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        if array.dtype.kind in "ib":
            assert np.array_equal(got[name], array), f"{name}: {(got[name] != array).sum()} of {array.size} differ"
        else:
            scale = np.abs(array[np.isfinite(array)]).max(initial=1e-30)
            assert np.allclose(got[name], array, rtol=rtol, atol=rtol * scale, equal_nan=True), name
    return lowered


def ensemble(
    random: np.random.Generator,
    *,
    kind: str,
    targets: int,
    trees: int = 5,
    depth: int = 3,
    modes: Sequence[str] = MODES[:1],
    missing: bool = False,
    features: int = 4,
    signed: bool = True,
    one_class: bool = False,
    sparse: bool = False,
    **more: Any,
) -> tuple[NodeProto, np.ndarray]:
    """A random TreeEnsembleClassifier ("class") or -Regressor ("target"), and inputs of which many lie on a threshold."""
    rows: dict[str, list[Any]] = {
        name: [] for name in ("tree", "node", "feature", "value", "mode", "true", "false", "nan")
    }
    votes: dict[str, list[Any]] = {name: [] for name in ("tree", "node", "id", "weight")}
    grid = np.round(random.uniform(-2, 2, 7), 1).astype(np.float32)

    def grow(tree: int, count: int, level: int) -> int:
        number = count
        leaf = level == depth or (level > 0 and random.random() < 0.2)
        row = {
            "tree": tree, "node": number, "feature": 0 if leaf else int(random.integers(features)),
            "value": 0.0 if leaf else float(random.choice(grid)), "mode": "LEAF" if leaf else str(random.choice(modes)),
            "true": 0, "false": 0, "nan": int(missing and random.random() < 0.5),
        }  # fmt: skip
        at = len(rows["tree"])
        for name, value in row.items():
            rows[name].append(value)
        if leaf:
            for target in [0] if one_class else range(targets):
                if (
                    sparse and target and random.random() < 0.6
                ):  # no vote at all, which is another thing than a vote of 0
                    continue
                weight = np.float32(np.round(random.uniform(-1 if signed else 0, 1), 1)) / np.float32(trees)
                for name, value in zip(votes, (tree, number, target, float(weight)), strict=True):
                    votes[name].append(value)
            return count + 1
        rows["true"][at] = count + 1
        rows["false"][at] = after = grow(tree, count + 1, level + 1)
        return grow(tree, after, level + 1)

    for tree in range(trees):
        grow(tree, 0, 0)
    told: dict[str, Any] = {
        "nodes_treeids": rows["tree"], "nodes_nodeids": rows["node"], "nodes_featureids": rows["feature"],
        "nodes_values": rows["value"], "nodes_modes": rows["mode"], "nodes_truenodeids": rows["true"],
        "nodes_falsenodeids": rows["false"], f"{kind}_treeids": votes["tree"], f"{kind}_nodeids": votes["node"],
        f"{kind}_ids": votes["id"], f"{kind}_weights": votes["weight"],
    }  # fmt: skip
    if missing:
        told["nodes_missing_value_tracks_true"] = rows["nan"]
    if kind == "class":
        told.setdefault("classlabels_int64s", more.pop("labels", list(range(targets))))
    else:
        told["n_targets"] = targets
    name = "TreeEnsembleClassifier" if kind == "class" else "TreeEnsembleRegressor"
    outputs = ["label", "scores"] if kind == "class" else ["scores"]
    node = helper.make_node(name, ["x"], outputs, name="trees", domain="ai.onnx.ml", **told, **more)
    x = random.uniform(-2, 2, (400, features)).astype(np.float32)
    on = random.random(x.shape) < 0.5
    x[on] = random.choice(grid, int(on.sum()))
    x[on & (random.random(x.shape) < 0.2)] = np.float32(-0.0)
    if missing:
        x[random.random(x.shape) < 0.1] = np.nan
    return node, x


def tensor(values: Any, kind: Any) -> TensorProto:
    return numpy_helper.from_array(np.array(values, kind), "")
