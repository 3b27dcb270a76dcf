"""The evaluator against coremltools' own inference of values: the inputs are constants there, and come at run time here."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil.mil.operation import Operation
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from modelfleet.converters.mil_evaluator.table import OPERATIONS
from tests.unit.converters.mil_evaluator.packages import Case, evaluate, inferred

RNG = np.random.default_rng(20261121)
X = RNG.uniform(-3, 3, (2, 3, 4)).astype(np.float32)
Y = RNG.uniform(0.5, 3, (3, 1)).astype(np.float32)
IMAGE = RNG.uniform(-3, 3, (2, 3, 4, 5)).astype(np.float32)
INTS = RNG.integers(-9, 10, (2, 3, 4)).astype(np.int32)
DIVISORS = np.array([[3], [-4], [5]], np.int32)
BOOLS = RNG.integers(0, 2, (2, 3, 4)).astype(bool)
OTHER_BOOLS = RNG.integers(0, 2, (3, 4)).astype(bool)
HALVES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.2, -3.7], np.float32)
UNIT = RNG.uniform(-0.9, 0.9, (2, 3, 4)).astype(np.float32)
POSITIVE = RNG.uniform(0.1, 4, (2, 3, 4)).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def with_halves(case: Case) -> list[Case]:
    """The case, and once more in fp16, to three digits."""
    halved = {
        name: [one.astype(np.float16) for one in value] if isinstance(value, list) else value.astype(np.float16)
        for name, value in case.given.items()
    }
    fixed = {
        name: np.float16(value) if isinstance(value, (float, np.float32)) else _half_array(value)
        for name, value in case.fixed.items()
    }
    return [case, Case(case.op, halved, fixed, case.opset, f"{case.label}fp16", 4e-3, 4e-3)]


def _half_array(value: Any) -> Any:
    return value.astype(np.float16) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


FLOATS: Sequence[Case] = [
    *(
        Case(op, {"x": X})
        for op in ("abs", "ceil", "cos", "erf", "exp", "exp2", "floor", "sign", "sin", "square", "tan", "tanh")
    ),
    *(Case(op, {"x": UNIT}) for op in ("acos", "asin", "atan", "atanh", "cosh", "sinh")),
    *(Case(op, {"x": POSITIVE}) for op in ("inverse", "log", "rsqrt", "sqrt")),
    Case("inverse", {"x": POSITIVE}, {"epsilon": 0.25}, label="epsilon"),
    Case("log", {"x": POSITIVE}, {"epsilon": 0.25}, label="epsilon"),
    Case("rsqrt", {"x": POSITIVE}, {"epsilon": 0.25}, label="epsilon"),
    Case("round", {"x": HALVES}),
    Case("clip", {"x": X}, {"alpha": -1.0, "beta": 2.0}),
    Case("threshold", {"x": X}, {"alpha": 0.5}),
    *(Case(op, {"x": X, "y": Y}) for op in ("add", "sub", "mul", "real_div", "floor_div", "mod", "maximum", "minimum")),
    Case("mod", {"x": X, "y": -Y}, label="negative"),
    Case("pow", {"x": POSITIVE, "y": Y}),
    *(Case(op, {"x": X}) for op in ("gelu", "relu", "relu6", "sigmoid", "softmax", "softplus", "softsign")),
    Case("gelu", {"x": X}, {"mode": "TANH_APPROXIMATION"}, label="tanh"),
    Case("gelu", {"x": X}, {"mode": "SIGMOID_APPROXIMATION"}, label="sigmoid"),
    Case("softmax", {"x": X}, {"axis": 1}, label="axis"),
    Case("clamped_relu", {"x": X}, {"alpha": 0.5, "beta": 1.5}),
    Case("elu", {"x": X}, {"alpha": 0.5}),
    Case("leaky_relu", {"x": X}, {"alpha": 0.1}),
    Case("linear_activation", {"x": X}, {"alpha": 2.0, "beta": -1.0}),
    Case("scaled_tanh", {"x": X}, {"alpha": 2.0, "beta": 0.5}),
    Case("sigmoid_hard", {"x": X}, {"alpha": 0.2, "beta": 0.5}),
    Case("thresholded_relu", {"x": X}, {"alpha": 0.5}),
    Case("prelu", {"x": IMAGE}, {"alpha": np.array([0.1, 0.2, 0.3], np.float32)}),
    Case(
        "softplus_parametric",
        {"x": IMAGE},
        {"alpha": np.array([0.1, 0.2, 0.3], np.float32), "beta": np.array([1, 2, 0.5], np.float32)},
    ),
    Case("l2_norm", {"x": IMAGE}),
    Case("l2_norm", {"x": X}, {"epsilon": 0.1}, label="whole"),
    Case("layer_norm", {"x": IMAGE}, {"axes": [2, 3]}),
    Case(
        "layer_norm",
        {"x": IMAGE},
        {"axes": [-1], "gamma": np.arange(5, dtype=np.float32), "beta": np.ones(5, np.float32), "epsilon": 0.01},
        label="scaled",
    ),
    Case(
        "linear",
        {"x": X},
        {"weight": RNG.normal(size=(5, 4)).astype(np.float32), "bias": np.arange(5, dtype=np.float32)},
        rtol=1e-4,
    ),
    Case("matmul", {"x": X, "y": IMAGE[:1, 0, :, :4]}),
    Case("matmul", {"x": X, "y": X}, {"transpose_y": True}, label="transposed"),
    Case("matmul", {"x": X, "y": X}, {"transpose_x": True}, label="transposed-x"),
    Case("einsum", {"values": [IMAGE, IMAGE.transpose(0, 3, 2, 1)]}, {"equation": "bnij,bjik->bnik"}),
    Case("einsum", {"values": [X, X.transpose(2, 1, 0)]}, {"equation": "vnm,mno->vno"}, label="rank3"),
    *(
        Case(f"reduce_{op}", {"x": X}, {"axes": [1], "keep_dims": False})
        for op in ("l1_norm", "l2_norm", "max", "mean", "min")
    ),
    *(
        Case(f"reduce_{op}", {"x": X}, {"axes": [-1, 0], "keep_dims": True})
        for op in ("log_sum_exp", "prod", "sum", "sum_square")
    ),
    Case("reduce_log_sum", {"x": POSITIVE}, {"axes": [0, 2]}),
    Case("reduce_log_sum_exp", {"x": X}, {"axes": [1], "keep_dims": False}, label="squeezed"),
    *(Case(f"reduce_arg{op}", {"x": X}, {"axis": axis}, label=str(axis)) for op in ("max", "min") for axis in (0, -1)),
    Case("reduce_argmax", {"x": X}, {"axis": 1, "keep_dims": True}, label="kept"),
    Case("cumsum", {"x": X}, {"axis": 1}),
    Case("cumsum", {"x": X}, {"axis": 2, "reverse": True}, label="reverse"),
    Case("band_part", {"x": X}, {"lower": 1, "upper": 0}),
    Case("band_part", {"x": X}, {"lower": -1, "upper": 1}, label="all-below"),
    Case("argsort", {"x": X}, {"axis": 1}),
    Case("argsort", {"x": X}, {"axis": -1, "ascending": True}, label="ascending"),
    Case("topk", {"x": X}, {"k": 2, "axis": -1}),
    Case("topk", {"x": X}, {"k": 2, "axis": 1, "ascending": True}, label="ascending"),
    Case("topk", {"x": X}, {"k": 1, "axis": 0, "return_indices": False}, label="values"),
    Case("pad", {"x": X}, {"pad": [1, 2, 0, 3], "mode": "constant", "constant_val": 1.5}),
    Case("pad", {"x": X}, {"pad": [1, 0, 2, 1, 3, 2], "mode": "reflect"}, label="reflect"),
    Case("pad", {"x": X}, {"pad": [2, 1], "mode": "replicate"}, label="replicate"),
    Case("scaled_dot_product_attention", {"query": X, "key": X[:, :2], "value": X[:, 1:, :3]}, opset=8),
    Case(
        "scaled_dot_product_attention",
        {"query": X, "key": X[:, :2], "value": X[:, 1:, :3], "attn_mask": X[0, :, :2]},
        opset=8,
        label="mask",
    ),
]

OTHERS: Sequence[Case] = [
    *(
        Case(op, {"x": INTS, "y": DIVISORS}, label="int")
        for op in ("add", "sub", "mul", "floor_div", "mod", "maximum", "minimum")
    ),
    Case("pow", {"x": INTS, "y": ints(2)}, label="int"),
    *(Case(op, {"x": INTS}, label="int") for op in ("abs", "sign", "square")),
    *(
        Case(op, {"x": X, "y": X[:1]})
        for op in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    ),
    *(Case(op, {"x": INTS, "y": INTS[:1]}, label="int") for op in ("equal", "greater_equal", "less")),
    *(Case(op, {"x": BOOLS, "y": OTHER_BOOLS}) for op in ("logical_and", "logical_or", "logical_xor")),
    Case("logical_not", {"x": BOOLS}),
    Case("select", {"cond": BOOLS, "a": X, "b": -X}),
    *(Case("cast", {"x": X}, {"dtype": to}, label=to) for to in ("int32", "bool", "fp16", "fp32", "int8", "int16")),
    *(Case("cast", {"x": INTS}, {"dtype": to}, label=f"int-{to}") for to in ("fp32", "fp16", "bool", "int16")),
    Case("cast", {"x": BOOLS}, {"dtype": "fp32"}, label="bool-fp32"),
    Case("concat", {"values": [X, X[:, :1]]}, {"axis": 1}),
    Case("concat", {"values": [INTS, INTS]}, {"axis": -1}, label="int"),
    Case("expand_dims", {"x": X}, {"axes": [0, -1]}),
    Case("fill", {"shape": ints(2, 3)}, {"value": 1.5}),
    Case("fill_like", {"ref_tensor": X}, {"value": 3}),
    *(Case("flatten2d", {"x": X}, {"axis": axis}, label=str(axis)) for axis in (1, 2, -1)),
    Case("gather", {"x": X, "indices": ints(2, 0, 2)}, {"axis": 1}),
    Case("gather", {"x": INTS, "indices": np.array([[0, 1], [1, 1]], np.int32)}, {"axis": 0}, label="rank2"),
    Case(
        "gather", {"x": X, "indices": np.array([[0, 1], [3, 2]], np.int32)}, {"axis": 2, "batch_dims": 1}, label="batch"
    ),
    Case("gather", {"x": X, "indices": ints(-1, 0)}, {"axis": 1}, opset=6, label="negative"),
    Case("gather_along_axis", {"x": X, "indices": RNG.integers(0, 3, (2, 5, 4)).astype(np.int32)}, {"axis": 1}),
    Case("identity", {"x": INTS}),
    Case("non_zero", {"x": INTS}),
    Case("range_1d", {"start": ints(2).reshape(()), "end": ints(11).reshape(()), "step": ints(3).reshape(())}),
    Case("range_1d", {"start": np.float32(3), "end": np.float32(-1), "step": np.float32(-0.75)}, label="float"),
    Case("reshape", {"x": X}, {"shape": [4, -1, 3]}),
    Case("reshape", {"x": X}, {"shape": [0, 4, 3]}, label="0"),
    Case("reshape", {"x": X}, {"shape": [6, 0]}, label="0-right"),
    Case("reshape", {"x": X}, {"shape": [0, 1, -1, 0]}, label="0-beyond"),
    Case("reshape", {"x": X}, {"shape": [0, 4, -1]}, opset=5, label="0"),
    Case("reverse", {"x": X}, {"axes": [0, 2]}),
    Case("reverse", {"x": INTS}, label="all"),
    Case(
        "scatter_along_axis",
        {"data": X, "indices": ints(2, 0, 1, 1).reshape(1, 1, 4).repeat(2, 0), "updates": X[:, :1]},
        {"axis": 1, "mode": "update"},
    ),
    Case("shape", {"x": X}),
    Case("slice_by_index", {"x": X, "begin": ints(0, 2, 1), "end": ints(2, 0, 4)}, {"stride": [1, -1, 2]}),
    Case(
        "slice_by_index",
        {"x": X, "begin": ints(-1, 0, 9), "end": ints(9, -1, -2)},
        {"stride": [1, 1, -1]},
        label="clipped",
    ),
    Case(
        "slice_by_index",
        {"x": X, "begin": ints(1, 5, -3), "end": ints(0, 0, 0)},
        {"begin_mask": [False, True, False], "end_mask": [True, True, True], "squeeze_mask": [True, False, False]},
        label="masks",
    ),
    Case(
        "slice_by_index",
        {"x": X, "begin": ints(0, 2, 0), "end": ints(0, 0, 0)},
        {"stride": [1, -2, -1], "begin_mask": [True, True, True], "end_mask": [True, True, True]},
        label="reversed",
    ),
    Case("slice_by_size", {"x": X, "begin": ints(0, 1, -2)}, {"size": [2, -1, 1]}),
    Case("slice_update", {"x": X, "update": X[:1, :2], "begin": ints(1, 0, 0), "end": ints(2, 2, 4)}, opset=8),
    Case("split", {"x": X}, {"axis": 2, "num_splits": 2}),
    Case("split", {"x": X}, {"axis": -1, "split_sizes": [1, 3]}, label="sizes"),
    Case("squeeze", {"x": X[:1, :, None]}),
    Case("squeeze", {"x": X[:1, :, None]}, {"axes": [-2]}, label="axes"),
    Case("stack", {"values": [X, -X]}, {"axis": -1}),
    Case("stack", {"values": [INTS, INTS]}, {"axis": 1}, label="int"),
    Case("tile", {"x": X}, {"reps": [1, 2, 3]}),
    Case("transpose", {"x": X}, {"perm": [2, 0, -2]}),
    *(
        Case(f"reduce_{op}", {"x": INTS}, {"axes": [1]}, label="int")
        for op in ("max", "min", "sum", "prod", "l1_norm", "sum_square")
    ),
    Case("matmul", {"x": INTS, "y": INTS.transpose(0, 2, 1)}, label="int"),
    Case("quantize", {"input": X}, {"scale": np.float32(0.05), "zero_point": np.int8(3), "output_dtype": "int8"}),
    Case(
        "quantize",
        {"input": X},
        {"scale": np.array([0.01, 0.02, 0.03], np.float32), "axis": 1, "output_dtype": "uint8"},
        label="axis",
    ),
]

_FP32_ONLY = {"range_1d", "einsum", "matmul"}
CASES = [
    *(one for case in FLOATS for one in (with_halves(case) if case.op not in _FP32_ONLY else [case])),
    *OTHERS,
]

UNTOLD = {
    "list_length": "lists are inferred only where their length is fixed",
    "reverse_sequence": "coremltools raises NotImplementedError; see test_operations.py",
}
"""Operations that define an inference which infers nothing."""


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> list[list[np.ndarray]]:
    return evaluate(CASES, tmp_path_factory.mktemp("packages"))


@pytest.mark.parametrize("index", range(len(CASES)), ids=[str(case) for case in CASES])
def test_as_coremltools_infers(evaluated: list[list[np.ndarray]], index: int) -> None:
    case, expected = CASES[index], inferred(CASES[index])
    assert expected is not None, "coremltools infers no value: no reference"
    assert len(evaluated[index]) == len(expected)
    for found, wanted in zip(evaluated[index], expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), case.rtol, case.atol)


def test_every_inferred_operation_of_the_table_is_compared() -> None:
    compared = {case.op for case in CASES}
    inferring = {
        name
        for name, versions in SSAOpRegistry.core_ops.items()
        if any("value_inference" in vars(cls) for cls in _classes(versions))
    }
    assert sorted((inferring & set(OPERATIONS)) - compared - set(UNTOLD)) == []


def _classes(versions: Any) -> list[type]:
    newest = versions[max(versions, key=lambda version: version.value)]
    return [cls for cls in inspect.getmro(newest) if cls not in (Operation, object)]
