"""Run a program in numpy: every quantized operator just as `ir` defines it, the yardstick of all kernels.

ONNX operators run in onnxruntime, without optimisations.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, cast

import numpy as np

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.importing.evaluate import evaluate
from modelfleet.converters.microcontroller.importing.graph import PROFILE, Node
from modelfleet.converters.microcontroller.ir import (
    AddInt8,
    Array,
    AveragePool2D,
    Conv2D,
    Dense,
    Depthwise2D,
    FlipSign,
    Lookup,
    MaxPool2D,
    MulInt8,
    Onnx,
    Operator,
    Program,
    Requantization,
    SoftmaxInt8,
    View,
    requantize,
)
from modelfleet.converters.microcontroller.lowering import Rounding


def interpret(program: Program, inputs: Mapping[str, Array], rounding: Rounding = Rounding.INTEGER) -> dict[str, Array]:
    """Return the program's outputs by name.

    Args:
        program: as `read_program` makes it, or any pass after it.
        inputs: name -> array of the tensor's type and shape.
        rounding: which arithmetic brings accumulators to int8.

    Raises:
        ConversionError: an operator that onnxruntime does not run, or an answer of another type or shape than stated.
    """
    values = trace(program, inputs, rounding)
    return {name: values[name] for name in program.outputs}


def trace(program: Program, inputs: Mapping[str, Array], rounding: Rounding = Rounding.INTEGER) -> dict[str, Array]:
    """Return every tensor's value by name: constants, inputs, and what each operator computed."""
    values = {name: tensor.data for name, tensor in program.tensors.items() if tensor.data is not None}
    for name in program.inputs:
        values[name] = np.asarray(inputs[name], program.tensors[name].dtype).reshape(program.tensors[name].shape)
    for operator in program.operators:
        results = run_operator(operator, values, program, rounding)
        for name, result in zip(operator.outputs, results, strict=True):
            if name:
                values[name] = _checked(operator, result, program, name)
    return values


def run_operator(
    operator: Operator, values: Mapping[str, Array], program: Program, rounding: Rounding
) -> tuple[Array, ...]:
    """Return what one operator answers, in the order of its outputs."""
    if isinstance(operator, Onnx):
        return _onnx(operator, values)
    given = [values[name] for name in operator.inputs]
    if isinstance(operator, View):
        return (given[0].reshape(program.tensors[operator.outputs[0]].shape),)
    rule: Callable[..., Array] = _RULES[type(operator)]
    return (rule(operator, *given, **({"rounding": rounding} if type(operator) in _ROUNDED else {})),)


def _checked(operator: Operator, result: Array, program: Program, name: str) -> Array:
    tensor = program.tensors[name]
    if result.shape != tensor.shape or str(result.dtype) != tensor.dtype:
        reason = f"expected {name!r} as {tensor.dtype} {tensor.shape}, got {result.dtype} {result.shape}"
        raise ConversionError(operator.name, PROFILE, reason)
    return result


def _onnx(operator: Onnx, values: Mapping[str, Array]) -> tuple[Array, ...]:
    from onnx import numpy_helper

    attributes = {
        name: numpy_helper.from_array(cast("Array", value)) if isinstance(value, np.ndarray) else value
        for name, value in operator.attributes.items()
    }
    node = Node(
        name=operator.name,
        op_type=operator.op_type,
        domain=operator.domain,
        inputs=list(operator.inputs),
        outputs=list(operator.outputs),
        attributes=attributes,
    )
    given = {name: values[name] for name in operator.inputs if name}
    wanted = [name for name in operator.outputs if name]
    results = evaluate([node], given, wanted, {"": 17, operator.domain: operator.opset})
    if results is None:
        raise ConversionError(
            operator.name, PROFILE, f"expected an operator that onnxruntime runs, got {operator.op_type}"
        )
    return tuple(results[name] if name else np.zeros(0) for name in operator.outputs)


def rounded(accumulator: Array, parameters: Requantization, rounding: Rounding) -> Array:
    """Return int8 for accumulators (..., channels); it never falls where they rise."""
    if rounding is Rounding.INTEGER:
        return requantize(accumulator, parameters)
    if parameters.factor is None:
        raise ConversionError("", PROFILE, "expected the factor that onnxruntime computes, got none")
    scaled = np.rint(accumulator.astype(np.float32) * parameters.factor).astype(np.float64) + parameters.zero_point
    return np.clip(scaled, parameters.lo, parameters.hi).astype(np.int8)


def _padded(image: Array, pads: tuple[int, int, int, int], value: int) -> Array:
    edges = ((0, 0), (pads[0], pads[2]), (pads[1], pads[3]), (0, 0))
    return np.pad(image.astype(np.int64), edges, constant_values=value)


def _windows(image: Array, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]) -> Array:
    """Return (OH, OW, kernel height, kernel width, C) of a padded image (1, H, W, C)."""
    spans = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    found = np.lib.stride_tricks.sliding_window_view(image[0], spans, axis=(0, 1))  # type: ignore[call-overload]
    found = found[:: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]]
    return found.transpose(0, 1, 3, 4, 2)


def _convolution(operator: Conv2D, image: Array, *, rounding: Rounding) -> Array:
    kernel = operator.weights.shape[1:3]
    taps = _windows(_padded(image, operator.pads, operator.pad_value), kernel, operator.strides, operator.dilations)
    groups, channels = operator.groups, operator.weights.shape[0]
    parts = np.split(taps, groups, axis=-1)
    weights = np.split(operator.weights.astype(np.int64), groups, axis=0)
    sums = [
        np.tensordot(part, weight, axes=([2, 3, 4], [1, 2, 3])) for part, weight in zip(parts, weights, strict=True)
    ]
    accumulator = np.concatenate(sums, axis=-1).reshape(1, *taps.shape[:2], channels) + operator.bias
    return rounded(accumulator, operator.requantization, rounding)


def _depthwise(operator: Depthwise2D, image: Array, *, rounding: Rounding) -> Array:
    kernel = operator.weights.shape[:2]
    taps = _windows(_padded(image, operator.pads, operator.pad_value), kernel, operator.strides, operator.dilations)
    accumulator = (taps * operator.weights.astype(np.int64)).sum(axis=(2, 3))[None] + operator.bias
    return rounded(accumulator, operator.requantization, rounding)


def _dense(operator: Dense, rows: Array, *, rounding: Rounding) -> Array:
    accumulator = rows.astype(np.int64) @ operator.weights.astype(np.int64).T + operator.bias
    return rounded(accumulator, operator.requantization, rounding)


def _add(operator: AddInt8, first: Array, second: Array) -> Array:
    left, right = operator.multipliers
    total = first.astype(np.int64) * left + second.astype(np.int64) * right + operator.offset >> operator.shift
    return np.clip(total, operator.lo, operator.hi).astype(np.int8)


def _mul(operator: MulInt8, first: Array, second: Array, *, rounding: Rounding) -> Array:
    left, right = (
        value.astype(np.int64) - zero for value, zero in zip((first, second), operator.zero_points, strict=True)
    )
    return rounded(left * (right if right.ndim == left.ndim else right.reshape(-1)), operator.requantization, rounding)


def _average(operator: AveragePool2D, image: Array, *, rounding: Rounding) -> Array:
    padded = _padded(image, operator.pads, operator.input_zero_point) - operator.input_zero_point
    total = _windows(padded, operator.kernel, operator.strides, (1, 1)).sum(axis=(2, 3))[None]
    return rounded(total, operator.requantization, rounding)


def _greatest(operator: MaxPool2D, image: Array) -> Array:
    taps = _windows(_padded(image, operator.pads, -128), operator.kernel, operator.strides, operator.dilations)
    return taps.max(axis=(2, 3))[None].astype(np.int8)


def _softmax(operator: SoftmaxInt8, rows: Array) -> Array:
    wide = rows.astype(np.int64)
    e = operator.exponentials.astype(np.int64)[wide.max(axis=-1, keepdims=True) - wide]
    total = e.sum(axis=-1, keepdims=True)
    answer = operator.zero_point + (e * operator.inverse_scale + total // 2) // total
    return np.clip(answer, -128, 127).astype(np.int8)


def _lookup(operator: Lookup, values: Array) -> Array:
    return operator.table[values.astype(np.int64) + 128].astype(np.int8)


def _flip(operator: FlipSign, values: Array) -> Array:
    del operator
    flipped: Array = values.view(np.uint8) ^ np.uint8(128)
    return flipped.view(np.int8) if values.dtype == np.uint8 else flipped


_RULES: Final[Mapping[type[Operator], Callable[..., Any]]] = {
    Conv2D: _convolution,
    Depthwise2D: _depthwise,
    Dense: _dense,
    AddInt8: _add,
    MulInt8: _mul,
    AveragePool2D: _average,
    MaxPool2D: _greatest,
    SoftmaxInt8: _softmax,
    Lookup: _lookup,
    FlipSign: _flip,
}
_ROUNDED: Final = frozenset({Conv2D, Depthwise2D, Dense, MulInt8, AveragePool2D})
