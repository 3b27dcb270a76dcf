"""What onnxruntime's quantizer makes of a float network, in every format and type that it offers."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from modelfleet.converters.graphs import read_model, write_model
from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.interpret import interpret
from modelfleet.converters.microcontroller.ir import Onnx
from modelfleet.converters.microcontroller.lowering import Rounding
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import load_profiles
from tests.unit.converters.microcontroller.qdq_nets import Net, answers

MOVING = {"Concat", "Transpose", "Resize", "QuantizeLinear", "DequantizeLinear"}


def float_network() -> tuple[ModelProto, np.ndarray]:
    """Return a small network of what detection and keyword networks are made of, and samples."""
    net = Net(11)
    x = net.input((1, 3, 12, 12), "float32")

    def conv(x: str, shape: tuple[int, ...], **attributes: object) -> str:
        size = float(np.sqrt(np.prod(shape[1:])))
        weights = net.constant(net.draw(shape, "float32") / size)
        return net.node("Conv", x, weights, net.constant(net.draw(shape[:1], "float32") * 0.1), **attributes)

    a = net.node("Relu", conv(x, (8, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    b = net.node("Clip", conv(a, (8, 1, 3, 3), pads=[1, 1, 1, 1], group=8), net.constant(0.0), net.constant(6.0))
    b = net.node("Add", a, conv(b, (8, 8, 1, 1)))
    c = net.node("MaxPool", b, kernel_shape=[2, 2], strides=[2, 2])
    c = net.node("Resize", c, "", net.constant([1.0, 1.0, 2.0, 2.0]), mode="nearest")
    d = net.node("Concat", net.node("Sigmoid", b), net.node("LeakyRelu", c, alpha=0.1), axis=1)
    e = conv(d, (6, 16, 1, 1))
    e = net.node("Mul", e, net.node("HardSigmoid", e))
    f = net.node("Flatten", net.node("GlobalAveragePool", e))
    f = net.node("MatMul", f, net.constant(net.draw((6, 5), "float32")))
    f = net.node("Add", f, net.constant(net.draw((5,), "float32")))
    return net.model(net.node("Softmax", f, axis=-1)), np.concatenate([net.draw((8, 3, 12, 12), "float32")])


class Samples:
    def __init__(self, samples: np.ndarray) -> None:
        self._rest: Iterator[np.ndarray] = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        sample = next(self._rest, None)
        return None if sample is None else {"x0": sample[None]}


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator], ids=str)
@pytest.mark.parametrize(
    ("activations", "weights", "per_channel", "reduce_range"),
    [
        (QuantType.QUInt8, QuantType.QInt8, True, True),
        (QuantType.QUInt8, QuantType.QUInt8, False, False),
        (QuantType.QInt8, QuantType.QInt8, True, False),
        (QuantType.QInt8, QuantType.QInt8, False, True),
    ],
    ids=str,
)
def test_every_form_becomes_integers_and_answers_as_onnxruntime(
    form: QuantFormat,
    activations: QuantType,
    weights: QuantType,
    per_channel: bool,
    reduce_range: bool,
    tmp_path: Path,
) -> None:
    model, samples = float_network()
    source, target = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    write_model(model, source)
    quantize_static(
        source,
        target,
        Samples(samples),
        quant_format=form,
        activation_type=activations,
        weight_type=weights,
        per_channel=per_channel,
        reduce_range=reduce_range,
    )
    quantized = normalise(read_model(target), tmp_path, load_profiles()["cortex-m4"])
    program = read_program(quantized, "network", Rounding.INTEGER)
    kept = {operator.op_type for operator in program.operators if isinstance(operator, Onnx)}
    assert kept <= MOVING, kept
    for sample in samples[:4]:
        (wanted,) = answers(quantized, {"x0": sample[None]}).values()
        (found,) = interpret(program, {"x0": sample[None]}).values()
        assert np.abs(found - wanted).max() <= 2.02 / 256
