"""Quantized graphs become programs whose answers are onnxruntime's."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from modelfleet.benchmarks.golden import GoldenSet
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import write_model
from modelfleet.converters.microcontroller.importing.quantize import quantize_for_int8
from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import AddInt8, Conv2D, Dense, Depthwise2D, Lookup, Onnx, Program
from modelfleet.converters.microcontroller.lowering import Rounding
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.microcontroller.patterns import PATTERNS
from tests.unit.converters.microcontroller.qdq_nets import Net, answers

TINY = Path(__file__).parents[4] / "examples" / "mlperf_tiny"
NAMES = ("kws", "ic", "vww", "ad")
INTEGER = {"Conv2D", "Depthwise2D", "Dense", "AddInt8", "AveragePool2D", "SoftmaxInt8", "View"}


def kinds(program: Program) -> list[str]:
    """Return the operators' types, ONNX's names for those that are ONNX's."""
    return [
        operator.op_type if isinstance(operator, Onnx) else type(operator).__name__ for operator in program.operators
    ]


def worst(program: Program, model: ModelProto, samples: dict[str, np.ndarray], rounding: Rounding) -> float:
    """Return how far the program's answers lie from onnxruntime's, which have the same names, types and shapes."""
    wanted, found = answers(model, samples), interpret(program, samples, rounding)
    assert [(name, a.dtype, a.shape) for name, a in found.items()] == [
        (name, a.dtype, a.shape) for name, a in wanted.items()
    ]
    return max(float(np.abs(found[name].astype(np.float64) - wanted[name]).max(initial=0)) for name in wanted)


@pytest.mark.parametrize(
    ("name", "form"), [*((name, "int8") for name in NAMES), *((name, "qop") for name in NAMES if name != "vww")]
)
def test_mlperf_tiny_becomes_integers_and_answers_within_one(name: str, form: str) -> None:
    samples = np.load(TINY / f"{name}_int8_io.npz")
    program = read_program(onnx.load(TINY / f"{name}_{form}.onnx"), name, Rounding.INTEGER)
    assert set(kinds(program)) <= INTEGER
    for x, y in zip(samples["x"], samples["y_ort"], strict=True):
        found = interpret(program, {program.inputs[0]: x})[program.outputs[0]]
        assert np.abs(found.astype(np.int64) - y.reshape(found.shape)).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_mlperf_tiny_answers_bit_for_bit_as_onnxruntime_when_asked(name: str) -> None:
    samples = np.load(TINY / f"{name}_int8_io.npz")
    program = read_program(onnx.load(TINY / f"{name}_int8.onnx"), name, Rounding.ONNXRUNTIME)
    assert {Conv2D, Depthwise2D, Dense} & {type(operator) for operator in program.operators}
    assert "Conv" not in kinds(program)
    for x, y in zip(samples["x"], samples["y_ort_noopt"], strict=True):
        found = interpret(program, {program.inputs[0]: x}, Rounding.ONNXRUNTIME)[program.outputs[0]]
        assert np.array_equal(found, y.reshape(found.shape))


@pytest.mark.parametrize("activation", ["int8", "uint8"])
@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_of_the_field_answers_within_one_as_onnxruntime(name: str, activation: str) -> None:
    build, remain = PATTERNS[name]
    net = Net(7, activation)
    model = net.model(*build(net))
    program = read_program(model, name, Rounding.INTEGER)
    kept = {operator.op_type for operator in program.operators if isinstance(operator, Onnx)}
    assert kept <= remain | {"Transpose"} | ({"Concat"} if "asymmetric" in name else set())
    assert worst(program, model, net.samples, Rounding.INTEGER) <= 1
    net.samples = {key: net.draw(value.shape, str(value.dtype)) for key, value in net.samples.items()}
    assert worst(program, model, net.samples, Rounding.INTEGER) <= 1


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_of_the_field_answers_bit_for_bit_when_asked(name: str) -> None:
    net = Net(8, "int8")
    model = net.model(*PATTERNS[name][0](net))
    program = read_program(model, name, Rounding.ONNXRUNTIME)
    assert worst(program, model, net.samples, Rounding.ONNXRUNTIME) == 0


def qlinear(op_type: str, *shapes: tuple[int, ...], domain: str = "com.microsoft", **attributes: object) -> ModelProto:
    """Return a network of one operator of onnxruntime's, whose inputs are int8 tensors with a scale and zero point each."""
    net = Net(3)
    inputs = []
    for position, shape in enumerate(shapes):
        inputs += [net.input(shape), net.constant(0.02 + 0.01 * position), net.constant(5 * position, "int8")]
    scale = [net.constant(1 / 256 if "Softmax" in op_type else 0.03), net.constant(-7, "int8")]
    inputs = [*scale, *inputs] if op_type == "QLinearConcat" else [*inputs, *scale]
    return net.model(net.node(op_type, *inputs, domain=domain, **attributes))


QLINEAR = {
    "add": qlinear("QLinearAdd", (1, 3, 4), (1, 3, 4)),
    "mul": qlinear("QLinearMul", (1, 3, 4, 5), (1, 3, 1, 1)),
    "average": qlinear("QLinearAveragePool", (1, 3, 6, 6), kernel_shape=[2, 2], strides=[2, 2]),
    "global": qlinear("QLinearGlobalAveragePool", (1, 3, 6, 6)),
    "sigmoid": qlinear("QLinearSigmoid", (2, 9)),
    "leaky": qlinear("QLinearLeakyRelu", (2, 9), alpha=0.2),
    "softmax": qlinear("QLinearSoftmax", (2, 9), axis=-1, opset=13),
    "concat": qlinear("QLinearConcat", (1, 2, 3), (1, 4, 3), axis=1),
}


@pytest.mark.parametrize("name", QLINEAR)
def test_an_operator_of_onnxruntimes_own_answers_within_one(name: str) -> None:
    model = QLINEAR[name]
    program = read_program(model, name, Rounding.INTEGER)
    assert set(kinds(program)) <= INTEGER | {"MulInt8", "Lookup", "Concat", "Transpose"}
    random = np.random.default_rng(1)
    samples = {
        value.name: random.integers(-128, 128, program.tensors[value.name].shape).astype(np.int8)
        for value in model.graph.input
    }
    assert worst(program, model, samples, Rounding.INTEGER) <= 1


def product(domain: str, op_type: str, per_channel: bool) -> ModelProto:
    """Return a network of one QGemm, QLinearMatMul or QLinearConv."""
    net = Net(4)
    x = [net.input((1, 6, 5, 5) if "Conv" in op_type else (3, 6)), net.constant(0.02), net.constant(4, "int8")]
    shape = (8, 6, 3, 3) if "Conv" in op_type else (6, 8)
    scales = net.random.uniform(0.005, 0.02, 8) if per_channel else 0.01
    w = [
        net.constant(net.draw(shape, "int8"), "int8"),
        net.constant(scales),
        net.constant(np.zeros(np.shape(scales)), "int8"),
    ]
    bias = net.constant(net.random.integers(-999, 999, 8), "int32")
    y = [net.constant(0.3), net.constant(-9, "int8")]
    inputs = {"QGemm": [*x, *w, bias, *y], "QLinearMatMul": [*x, *w, *y], "QLinearConv": [*x, *w, *y, bias]}[op_type]
    return net.model(net.node(op_type, *inputs, domain=domain))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("rounding", Rounding)
@pytest.mark.parametrize(
    ("domain", "op_type"), [("com.microsoft", "QGemm"), ("", "QLinearMatMul"), ("", "QLinearConv")]
)
def test_a_quantized_product_answers_as_onnxruntimes_kernel(
    domain: str, op_type: str, rounding: Rounding, per_channel: bool
) -> None:
    model = product(domain, op_type, per_channel)
    program = read_program(model, op_type, rounding)
    assert set(kinds(program)) <= {"Dense", "Conv2D", "Transpose"}
    random = np.random.default_rng(2)
    samples = {name: random.integers(-128, 128, program.tensors[name].shape).astype(np.int8) for name in program.inputs}
    assert worst(program, model, samples, rounding) <= (1 if rounding is Rounding.INTEGER else 0)


def test_a_float_model_is_quantized_by_its_golden_set(tmp_path: Path) -> None:
    model = onnx.load(TINY / "ic_f32.onnx")
    x = np.load(TINY / "ic_f32_io.npz")["x"][:, 0]
    golden = GoldenSet(inputs={model.graph.input[0].name: x}, expected={}, labels=np.zeros(len(x), np.int64))
    source = tmp_path / "normalised.onnx"
    write_model(normalise(model, tmp_path, load_profiles()["cortex-m4"]), source)
    quantized, _ = quantize_for_int8(source, tmp_path / "work.onnx", golden, frozenset())
    program = read_program(quantized, "ic", Rounding.INTEGER)
    assert set(kinds(program)) <= INTEGER | {"QuantizeLinear", "DequantizeLinear"}
    weights = [operator.weights for operator in program.operators if isinstance(operator, Conv2D)]
    assert max(int(np.abs(weight.astype(np.int64)).max()) for weight in weights) > 64, "weights have all eight bits"
    assert worst(program, quantized, {model.graph.input[0].name: x[:1]}, Rounding.INTEGER) <= 1.01 / 256


def test_a_relu_behind_a_quantization_becomes_the_bounds_of_the_convolution() -> None:
    net = Net(5)
    x = net.quantized_input((1, 3, 6, 6))
    w = net.weights((4, 3, 3, 3))
    y = net.node("Conv", x, w, net.bias(x, w))
    scale, zero = net.constant(0.05), net.constant(-40, "int8")
    y = net.node("DequantizeLinear", net.node("QuantizeLinear", y, scale, zero), scale, zero)
    model = net.model(net.node("QuantizeLinear", net.node("Relu", y), scale, zero))
    program = read_program(model, "relu", Rounding.INTEGER)
    assert kinds(program) == ["Transpose", "Conv2D", "Transpose"]
    convolution = program.operators[1]
    assert isinstance(convolution, Conv2D)
    assert (convolution.requantization.lo, convolution.requantization.hi) == (-40, 127)
    assert worst(program, model, net.samples, Rounding.INTEGER) <= 1


def test_a_function_is_the_very_table_of_onnxruntime() -> None:
    net = Net(6)
    model = net.model(*PATTERNS["gelu"][0](net))
    program = read_program(model, "gelu", Rounding.INTEGER)
    (table,) = program.operators
    assert isinstance(table, Lookup)
    numbers = np.arange(-128, 128).astype(np.int8)
    padded = np.zeros((7, 40), np.int8)
    padded.reshape(-1)[:256] = numbers
    found = [answers(model, {"x0": row[None]}) for row in padded]
    assert np.array_equal(np.concatenate([next(iter(one.values())).reshape(-1) for one in found])[:256], table.table)


def test_sums_miss_onnxruntimes_by_few_of_all_pairs() -> None:
    net = Net(9)
    x, y = net.quantized_input((1, 256, 256), 0.0394), net.quantized_input((1, 256, 256), 0.1042, 4)
    model = net.model(net.quantize(net.node("Add", x, y), 0.0509, -128))
    numbers = np.arange(-128, 128).astype(np.int8)
    first, second = np.meshgrid(numbers, numbers)
    samples = {"x0": first[None], "x1": second[None]}
    program = read_program(model, "sum", Rounding.INTEGER)
    assert [type(operator) for operator in program.operators] == [AddInt8]
    (wanted,), (found,) = answers(model, samples).values(), interpret(program, samples).values()
    assert int((wanted != found).sum()) <= 4
    assert worst(program, model, samples, Rounding.INTEGER) <= 1


def one(
    op_type: str,
    inputs: list[tuple[str, int, list[object]]],
    *,
    domain: str = "",
    output: str = "y",
    **attributes: object,
) -> ModelProto:
    """Return a model of one node that gives y."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    node = helper.make_node(op_type, [name for name, _, _ in inputs], ["y"], name="odd", domain=domain, **attributes)
    graph = helper.make_graph([node], "odd", values, [helper.make_empty_tensor_value_info(output)])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("evil", 1)]
    return helper.make_model(graph, opset_imports=imports)


FLOAT = TensorProto.FLOAT
ODD = {
    "another domain": (one("Run", [("x", FLOAT, [1])], domain="evil"), "got evil::Run"),
    "an operator of onnxruntime's that is not listed": (
        one("FusedGelu", [("x", FLOAT, [1])], domain="com.microsoft"),
        "got com.microsoft::FusedGelu",
    ),
    "random numbers": (one("RandomNormalLike", [("x", FLOAT, [1])]), "whose answer follows from its inputs"),
    "a size that depends on values": (one("NonZero", [("x", FLOAT, [4])]), "static shape"),
    "a free dimension": (one("Relu", [("x", FLOAT, ["n"])]), "free dimension"),
    "an input of more numbers than any chip holds": (
        one("Relu", [("x", FLOAT, [1 << 40])]),
        "at most 16777216 elements",
    ),
    "a negative dimension": (one("Relu", [("x", FLOAT, [-3])]), "at most 16777216 elements"),
    "a tensor that grows beyond all chips": (
        one("MatMul", [("x", FLOAT, [1 << 14, 1]), ("z", FLOAT, [1, 1 << 14])]),
        "'y' to have at most 16777216 elements",
    ),
    "an output that nothing gives": (one("Relu", [("x", FLOAT, [4])], output="z"), "gives the output 'z', got none"),
    "text": (one("Identity", [("x", TensorProto.STRING, [1])]), "to be of"),
    "a computed scale": (
        one("QLinearSigmoid", [("x", TensorProto.INT8, [4]), ("s", FLOAT, [])], domain="com.microsoft"),
        "to be a constant",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_what_c_cannot_say_is_refused_by_name(what: str) -> None:
    model, reason = ODD[what]
    with pytest.raises(ConversionError, match=reason):
        read_program(model, "odd", Rounding.INTEGER)


@pytest.mark.parametrize("scale", [0.0, -0.5, float("nan"), float("inf")])
def test_a_scale_that_is_no_positive_number_is_refused(scale: float) -> None:
    net = Net()
    model = net.model(net.quantize(net.node("Relu", net.dequantize(net.input((1, 4)), scale, 0)), 0.1, 0))
    with pytest.raises(ConversionError, match="expected a finite scale > 0"):
        read_program(model, "odd", Rounding.INTEGER)


def test_accumulators_that_would_overflow_stay_in_float() -> None:
    net = Net(2)
    x = net.quantized_input((1, 4), 1e-6)
    w = net.dequantize(net.constant(net.draw((3, 4), "int8"), "int8"), 1e-6, 0, "int8")
    model = net.model(net.quantize(net.node("Gemm", x, w, net.constant([5.0, -3.0, 1.0]), transB=1), 0.05, 0))
    program = read_program(model, "overflow", Rounding.INTEGER)
    assert "Gemm" in kinds(program)
    assert worst(program, model, net.samples, Rounding.INTEGER) == 0


def test_a_clamped_tensor_that_is_read_unclamped_too_keeps_both() -> None:
    net = Net(5)
    x = net.quantized_input((1, 6))
    w = net.weights((4, 6))
    first = net.quantize(net.node("Gemm", x, w, net.bias(x, w), transB=1))
    scale, zero = net.nodes[-1].input[1:3]
    y = net.node("Relu", net.node("DequantizeLinear", first, scale, zero))
    model = net.model(first, net.node("QuantizeLinear", y, scale, zero))
    program = read_program(model, "both", Rounding.INTEGER)
    assert "Lookup" in kinds(program)
    assert worst(program, model, net.samples, Rounding.INTEGER) <= 1


@pytest.mark.parametrize("fill", [0.0, 0.5])
def test_only_a_pad_of_zeros_becomes_the_convolutions_own(fill: float) -> None:
    net = Net(5)
    x = net.quantized_input((1, 3, 6, 6))
    x = net.node("Pad", x, net.constant([0, 0, 1, 1, 0, 0, 1, 1], "int64"), net.constant(fill))
    if fill:  # onto a grid that has it, so that the Pad is one of int8
        x = net.node("QuantizeLinear", x, net.constant(0.02), net.constant(3, "int8"))
        x = net.node("DequantizeLinear", x, net.constant(0.02), net.constant(3, "int8"))
    w = net.weights((4, 3, 3, 3))
    model = net.model(net.quantize(net.node("Conv", x, w, net.bias(x, w))))
    program = read_program(model, "pad", Rounding.INTEGER)
    assert ("Pad" in kinds(program)) == (fill != 0)
    assert worst(program, model, net.samples, Rounding.INTEGER) <= 1


@pytest.mark.parametrize(
    "clips", [[(0.5, 1.0), (0.0, 0.3)], [(0.0, 0.3), (0.5, 1.0)], [(1.0, 0.2)], [(-0.5, 0.5), (-0.2, 2.0)]]
)
def test_clamps_in_a_row_are_those_of_the_last_over_the_first(clips: list[tuple[float, float]]) -> None:
    net = Net(5)
    x = net.quantized_input((1, 6))
    w = net.weights((40, 6))
    y = net.node("Gemm", x, w, net.bias(x, w), transB=1)
    for low, high in clips:
        y = net.node("Clip", y, net.constant(low), net.constant(high))
    model = net.model(net.quantize(y, 0.01, 3))
    program = read_program(model, "clips", Rounding.INTEGER)
    assert kinds(program) == ["Dense"]
    assert worst(program, model, net.samples, Rounding.INTEGER) <= 1


@pytest.mark.parametrize("name", ["kws_int8", "kws_qop"])
def test_inputs_and_outputs_tell_what_their_bytes_stand_for(name: str) -> None:
    program = read_program(onnx.load(TINY / f"{name}.onnx"), "kws", Rounding.INTEGER)
    taken, given = program.tensors[program.inputs[0]], program.tensors[program.outputs[0]]
    assert (taken.scale, taken.zero_point) == (pytest.approx(0.584702909), 83)
    assert (given.scale, given.zero_point) == (1 / 256, -128)


def test_bytes_without_sign_have_the_zero_point_of_their_type_and_floats_have_none() -> None:
    net = Net(7)
    x = net.quantized_input((1, 6))
    w = net.weights((4, 6))
    y = net.node("Gemm", x, w, net.bias(x, w), transB=1)
    z = net.node("QuantizeLinear", y, net.constant(0.125), net.constant(131, "uint8"))
    real = net.node("DequantizeLinear", z, net.constant(0.125), net.constant(131, "uint8"))
    for made, meaning in ((net.node("Identity", z), (0.125, 131)), (net.node("Identity", real), (None, 0))):
        program = read_program(net.model(made), "meaning", Rounding.INTEGER)
        tensor = program.tensors[program.outputs[0]]
        assert (tensor.scale, tensor.zero_point) == meaning
