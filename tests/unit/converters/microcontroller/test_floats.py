"""ONNX operators as C: networks and single operators agree with onnxruntime, and no input leads outside an array."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.floats.lower import lower
from modelfleet.converters.microcontroller.ir import Array, Onnx, Program, Tensor
from modelfleet.converters.microcontroller.lowering import Target
from tests.unit.converters.microcontroller.float_models import as_c, differences, model, node, run_sanitized
from tests.unit.converters.microcontroller.float_networks import (
    mobilenet_block,
    recurrent,
    residual_network,
    transformer_block,
)
from tests.unit.converters.microcontroller.programs import STRICT, compiled, write
from tests.unit.converters.microcontroller.random_floats import random_floats

TINY = Path(__file__).parents[4] / "examples" / "mlperf_tiny"
SHAPES = {"kws": (1, 49, 10, 1), "ad": (1, 640), "ic": (1, 32, 32, 3), "vww": (1, 96, 96, 3)}
NEAR = 1e-4
RNG = np.random.default_rng(5)


def floats(*shape: int) -> Array:
    return np.random.default_rng(len(shape) + sum(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", SHAPES)
def test_the_float_networks_of_mlperf_tiny_answer_as_onnxruntime(name: str, tmp_path: Path):
    made = onnx.load(str(TINY / f"{name}_f32.onnx"))
    given = made.graph.input[0]
    shape = [dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim]
    inputs = {given.name: floats(*shape)}
    assert max(differences(made, inputs, tmp_path).values()) < NEAR


@pytest.mark.parametrize("make", [recurrent, transformer_block, mobilenet_block, residual_network])
def test_families_of_networks_answer_as_onnxruntime(make, tmp_path: Path):
    made, inputs = make()
    assert max(differences(made, inputs, tmp_path).values()) < NEAR


@pytest.mark.parametrize("seed", range(3))
def test_random_graphs_answer_as_onnxruntime(seed: int, tmp_path: Path):
    made, inputs = random_floats(seed, nodes=24)
    found = differences(made, inputs, tmp_path)
    assert {name: gap for name, gap in found.items() if gap > NEAR} == {}


def everything():
    """Return a model with operators of many kinds, some in place of each other's memory, and inputs for it."""
    x, i = floats(2, 3, 8, 8), np.arange(12, dtype=np.int64).reshape(3, 4) % 3
    inputs = {"x": x, "i": i, "h": floats(3, 4).astype(np.float16), "q": RNG.integers(-9, 9, (3, 4)).astype(np.int8)}
    weights = {
        "axes": np.array([1], np.int64),
        "pads": np.array([0, 0, 2, 1, 0, 0, 1, 3], np.int64),
        "scales": np.array([1, 1, 1.5, 2.25], np.float32),
        "shape": np.array([6, 64], np.int64),
        "k": np.array([3], np.int64),
        "one": np.array([0.05, 0.1, 0.2], np.float32),
        "zero": np.array([1, 2, -3], np.int8),
        "steps": np.array([-2, 3], np.int64),
        "starts": np.array([7, 0], np.int64),
        "ends": np.array([-100, 8], np.int64),
        "which": np.array([2, 3], np.int64),
        "slope": floats(3, 1, 1),
    }
    nodes = [
        node("Sigmoid", "x", "a"),
        node("PRelu", "a slope", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 3, 1]),
        node("Softmax", "c", "d", axis=1),
        node("ReduceSum", "d axes", "e", keepdims=0),
        node("Pad", "x pads", "f", mode="reflect"),
        node("Pad", "x pads", "g"),
        node("Resize", "x _ scales", "r1", mode="linear"),
        node("Resize", "x _ scales", "r2", mode="cubic"),
        node("Slice", "x starts ends which steps", "s"),
        node("Reshape", "x shape", "m"),
        node("TopK", "m k", "t1 t2"),
        node("Einsum", "x x", "n", equation="bchw,bchv->cwv"),
        node("Gather", "x i", "o", axis=1),
        node("QuantizeLinear", "x one zero", "p", axis=1),
        node("DequantizeLinear", "p one zero", "u", axis=1),
        node("CumSum", "x k", "v", reverse=1, exclusive=1),
        node("Exp", "h", "w"),
        node("Div", "q q", "y"),
        node("Cast", "x", "z", to=3),
        node("LayerNormalization", "x slope slope", "l", axis=1),
        node("InstanceNormalization", "x one one", "ll"),
        node("MaxPool", "x", "mp mi", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
        node("AveragePool", "x", "ap", kernel_shape=[3, 2], pads=[1, 0, 1, 1], count_include_pad=1),
        node("Where", "bb x a", "wh"),
        node("Greater", "x a", "bb"),
    ]
    nodes.insert(-2, nodes.pop())
    inputs["q"] = np.where(inputs["q"] == 0, 1, inputs["q"]).astype(np.int8)
    outputs = [
        "e",
        "f",
        "g",
        "r1",
        "r2",
        "s",
        "t1",
        "t2",
        "n",
        "o",
        "u",
        "v",
        "w",
        "y",
        "z",
        "l",
        "ll",
        "mp",
        "mi",
        "ap",
        "wh",
    ]
    return model(nodes, inputs, outputs, weights), inputs


def test_operators_of_every_kind_answer_as_onnxruntime(tmp_path: Path):
    made, inputs = everything()
    found = differences(made, inputs, tmp_path)
    half = found.pop("w")
    assert half < 1e-3
    assert {name: gap for name, gap in found.items() if gap > NEAR} == {}


def test_the_sanitizers_have_nothing_to_say(tmp_path: Path):
    made, inputs = everything()
    answers = run_sanitized(as_c(made, tmp_path), inputs, tmp_path)
    assert all(np.isfinite(value.astype(np.float64)).all() for value in answers.values())


def test_clang_has_nothing_to_say_either(tmp_path: Path):  # gcc has not, wherever a session is opened here
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    folder = write(as_c(everything()[0], tmp_path), tmp_path / "c")
    compiled(["clang", *STRICT, "-fsyntax-only", "model.c"], folder)


def hostile():
    """Return a model of every operator that reads or writes by indices, all of which are inputs."""
    indices = {
        "i": np.array([[-(2**63), 2**63 - 1], [5, -6]], np.int64),
        "j": np.array([[2**31 - 1, -(2**31)], [7, -8]], np.int32),
        "n": np.array([2**31 - 1, -5], np.int32),
        "l": np.array([2**62, -4], np.int64),
        "k": np.array(-(2**62), np.int64),
    }
    x = floats(2, 2)
    nodes = [
        node("Gather", "x i", "a", axis=1),
        node("GatherElements", "x j", "b", axis=0),
        node("GatherND", "x i", "c"),
        node("ScatterElements", "x j x", "d", axis=1),
        node("ScatterND", "x i u", "e", reduction="add"),
        node("OneHot", "i depth values", "f"),
        node("ReverseSequence", "x l", "g", batch_axis=0, time_axis=1),
        node("Trilu", "x k", "h"),
        node("CumSum", "x k", "m"),
        node("GridSample", "image grid", "z", mode="bicubic", padding_mode="reflection"),
        node("GridSample", "image grid", "zz", padding_mode="border"),
        node("LSTM", "s w r _ n", "o p q", hidden_size=3, direction="bidirectional"),
    ]
    inputs = {"x": x, **indices, "u": floats(2), "s": floats(4, 2, 2), "image": floats(1, 1, 2, 3)}
    inputs["grid"] = np.array([np.nan, np.inf, -np.inf, 1e30, -1e9, 3, 0.5, 1], np.float32).reshape(1, 2, 2, 2)
    weights = {
        "depth": np.array(5, np.int64),
        "values": np.array([0, 1], np.float32),
        "w": floats(2, 12, 2),
        "r": floats(2, 12, 3),
    }
    return model(
        nodes, inputs, ["a", "b", "c", "d", "e", "f", "g", "h", "m", "o", "p", "q", "z", "zz"], weights
    ), inputs


def test_no_index_reaches_outside_its_array(tmp_path: Path):
    made, inputs = hostile()
    answers = run_sanitized(as_c(made, tmp_path), inputs, tmp_path)
    x = inputs["x"]
    assert (answers["a"] == x[:, [[0, 1], [1, 0]]]).all()
    assert (answers["b"] == np.array([[x[1, 0], x[0, 1]], [x[1, 0], x[0, 1]]])).all()
    assert answers["f"].sum() == 0


def arithmetic():
    """Return a model of everything that C leaves undefined for some numbers, and those numbers."""
    low, high = -(2**31), 2**31 - 1
    inputs = {
        "a": np.array([low, low, 7, -7, high, 0], np.int32),
        "b": np.array([-1, 0, 0, 2, high, low], np.int32),
        "c": np.array([np.nan, np.inf, -np.inf, 3e9, -3e9, 2.5], np.float32),
        "d": np.array([1, 2, 3, 200, 255, 8], np.uint8),
        "w": np.array([-(2**63), 2**63 - 1, 5, -5, 1, 0], np.int64),
        "v": np.array([-1, -1, 0, 3, 2**63 - 1, -(2**63)], np.int64),
    }
    nodes = [node(name, "a b", f"{name}1") for name in ("Add", "Sub", "Mul", "Div", "Mod", "Pow")]
    nodes += [node(name, "w v", f"{name}2") for name in ("Add", "Sub", "Mul", "Div", "Mod")]
    nodes += [node(name, "a", f"{name}3") for name in ("Neg", "Abs")]
    nodes += [node("Cast", "c", f"Cast{to}", to=to) for to in (2, 3, 4, 5, 6, 7, 12, 13, 10)]
    nodes += [node("BitShift", "d d", "Shift", direction="LEFT"), node("QuantizeLinear", "c s z", "Q")]
    nodes += [node("ReduceSum", "a", "Sum"), node("ReduceProd", "w", "Prod")]
    weights = {"s": np.array(1e-30, np.float32), "z": np.array(-128, np.int8)}
    return model(nodes, inputs, [each.output[0] for each in nodes], weights), inputs


def test_no_number_makes_arithmetic_undefined(tmp_path: Path):
    made, inputs = arithmetic()
    answers = run_sanitized(as_c(made, tmp_path), inputs, tmp_path)
    low, high = -(2**31), 2**31 - 1
    assert answers["Div1"].tolist() == [low, 0, 0, -3, 1, 0]
    assert answers["Mod1"].tolist() == [0, 0, 0, 1, 0, 0]
    assert answers["Add1"].tolist() == [high, low, 7, -5, -2, low]
    assert answers["Neg3"].tolist() == [low, low, -7, 7, -high, 0]
    assert answers["Cast6"].tolist() == [low, low, low, low, low, 2]
    assert answers["Q"].tolist() == [-128, 127, -128, 127, -128, 127]


REFUSED = {
    "a shape that is an input of the run": (
        [node("Reshape", "x s", "y")],
        {"x": floats(2, 2), "s": np.array([4], np.int64)},
        "static shape",
    ),
    "an axis that is an input of the run": (
        [node("ReduceSum", "x s", "y")],
        {"x": floats(2, 2), "s": np.array([1], np.int64)},
        "static shape",
    ),
    "an output whose shape values decide": ([node("NonZero", "x", "y")], {"x": floats(2, 2)}, "static shape"),
    "an operator that has no rule": (
        [node("MaxUnpool", "x i", "y", kernel_shape=[2, 2], strides=[2, 2])],
        {"x": floats(1, 1, 2, 2), "i": np.zeros((1, 1, 2, 2), np.int64)},
        "MaxUnpool: expected",
    ),
    "activations with parameters": (
        [node("RNN", "x w r", "y", hidden_size=2, activations=["Affine"])],
        {"x": floats(2, 1, 2), "w": floats(1, 2, 2), "r": floats(1, 2, 2)},
        "expected activations",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses_by_the_nodes_name(what: str, tmp_path: Path):
    nodes, inputs, said = REFUSED[what]
    nodes[0].name = "the node"
    with pytest.raises(ConversionError, match=said) as caught:
        as_c(model(nodes, inputs, ["y"]), tmp_path)
    assert caught.value.node == "the node"


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("BatchNormalization", {"x": (1, 4, 2), "s": (4,), "b": (4,), "m": (3,), "v": (4,)}, {}),
        ("InstanceNormalization", {"x": (1, 4, 2), "s": (4,), "b": (3,)}, {}),
        ("Conv", {"x": (1, 4, 5, 5), "w": (4, 4, 1, 1), "b": (3,)}, {"kernel_shape": [1, 1]}),
        ("ConvTranspose", {"x": (1, 4, 5, 5), "w": (4, 4, 1, 1), "b": (3,)}, {"kernel_shape": [1, 1]}),
        ("GRU", {"x": (3, 1, 4), "w": (1, 6, 4), "r": (1, 6, 2), "b": (1, 11)}, {"hidden_size": 2}),
        ("Gemm", {"x": (2, 4), "w": (3, 4)}, {"transB": 0}),
        ("QuantizeLinear", {"x": (1, 4, 2), "s": (3,)}, {"axis": 1}),
        ("Conv", {"x": (1, 4, 2, 2), "w": (4, 4, 1, 1)}, {"dilations": [2**31 - 1, 1]}),
        ("ConvTranspose", {"x": (1, 4, 2, 2), "w": (4, 4, 1, 1)}, {"strides": [0, 1]}),
        ("MaxPool", {"x": (1, 4, 2, 2)}, {}),
        ("Transpose", {"x": (1, 4, 2)}, {"perm": [0, 9, 1]}),
    ],
)
def test_refuses_parameters_that_lead_outside(op_type: str, inputs: dict[str, tuple[int, ...]], attributes: Any):
    shape = {"GRU": (3, 1, 1, 2), "Gemm": (2, 4)}.get(op_type, inputs["x"])
    dtype = "int8" if op_type == "QuantizeLinear" else "float32"
    tensors = {name: Tensor(name=name, dtype="float32", shape=each) for name, each in inputs.items()}
    tensors["y"] = Tensor(name="y", dtype=dtype, shape=shape)
    operator = Onnx(name="the node", inputs=tuple(inputs), outputs=("y",), op_type=op_type, attributes=attributes)
    program = Program(name="", inputs=tuple(inputs), outputs=("y",), tensors=tensors, operators=(operator,))
    with pytest.raises(ConversionError, match=f"{op_type}: expected .*, got") as caught:
        lower(operator, program, Target())
    assert caught.value.node == "the node"


def test_constants_lie_in_the_blob_and_shapes_in_the_code(tmp_path: Path):
    first, second = (
        as_c(model([node("Gemm", "x w b", "y")], {"x": floats(1, 4)}, ["y"], {"w": w, "b": w[0]}), tmp_path)
        for w in (floats(4, 3), -floats(4, 3))
    )
    assert first.text.source == second.text.source
    assert first.text.blob.data != second.text.blob.data


def test_equal_operators_share_a_function(tmp_path: Path):
    nodes = [node("Relu", "x", "a"), node("Mul", "a x", "b"), node("Relu", "b", "c"), node("Mul", "c a", "y")]
    source = as_c(model(nodes, {"x": floats(2, 3)}, ["y"]), tmp_path).text.source
    assert source.count("static void mf_relu") == 1
    assert source.count("static void mf_mul") == 1
