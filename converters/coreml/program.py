"""An ONNX graph as a MIL program, and the interface that stands beside it."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import coremltools as _coremltools
import numpy as np
from coremltools.converters import mil as _mil
from onnx import ModelProto, ValueInfoProto, helper

from modelfleet.benchmarks.runtimes.coreml import MAX_FREE_DIMENSION, Interface, Port
from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import mb, mil_types
from modelfleet.converters.coreml.lower import Lowering
from modelfleet.converters.coreml.values import (
    MAX_RANK,
    DType,
    RefusedError,
    Value,
    known_value,
    mil_type,
)
from modelfleet.converters.errors import ConversionError

coremltools: Any = _coremltools
mil: Any = _mil
_MIL: Any = {"fp32": mil_types.fp32, "fp16": mil_types.fp16, "int32": mil_types.int32}


def build_program(model: ModelProto, target: str, profile: str) -> tuple[Any, Interface, dict[str, list[str]]]:
    """Return the MIL program of a normalised model, its interface, and for each node the names of the operations it became.

    Args:
        model: normalised.
        target: the least system that runs it, a name of `coremltools.target`.
        profile: named in errors.

    Raises:
        ConversionError: a node, an input or an output has no counterpart; it names the node.
    """
    held = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in held]
    try:
        ports = _ports(inputs, "input")
        free: dict[str, Any] = {}
        types = {
            port.feature: _tensor_type(port, value, free)
            for port, value in zip(ports, inputs, strict=True)
            if port.feature
        }
        placeholders = {name: _placeholder(kind) for name, kind in types.items()}
        if not placeholders:
            raise RefusedError("expected an input with elements, got none: Core ML runs no model without")
    except RefusedError as error:
        raise ConversionError("", profile, str(error)) from error
    lowering = Lowering({opset.domain: opset.version for opset in model.opset_import}, profile)
    with mil.Function(placeholders, opset_version=coremltools.target[target]) as function:
        environment = {port.name: _given(port, function) for port in ports}
        lowering.graph(model.graph, environment)
        try:
            outputs = _outputs(model.graph.output, environment, [port.feature for port in ports])
            function.set_outputs(_computed(outputs, environment, function))
        except RefusedError as error:
            raise ConversionError("", profile, str(error)) from error
    _keep_names(function, {port.feature for port in (*ports, *outputs)})
    function.set_input_types(tuple(types.values()))
    program: Any = mil.Program()
    program.add_function("main", function)
    return program, Interface(target=target, inputs=tuple(ports), outputs=tuple(outputs)), lowering.made


def _ports(values: Sequence[ValueInfoProto], what: str) -> list[Port]:
    features: set[str] = set()
    ports: list[Port] = []
    for value in values:
        dtype, shape = _dtype(value, what), _shape(value)
        if len(shape) > MAX_RANK:
            raise RefusedError(f"{what} {value.name!r}: expected at most {MAX_RANK} dimensions, got {len(shape)}")
        feature = "" if 0 in shape else _feature(value.name, features)
        ports.append(Port(name=value.name, dtype=dtype.name, shape=shape, feature=feature))
    return ports


def _dtype(value: ValueInfoProto, what: str) -> DType:
    if not value.type.HasField("tensor_type"):
        raise RefusedError(f"{what} {value.name!r}: expected a tensor, got {value.type.WhichOneof('value')}")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))
    try:
        mil_type(dtype)
    except RefusedError as error:
        raise RefusedError(f"{what} {value.name!r}: {error}") from error
    return dtype


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim)


def _feature(name: str, taken: set[str]) -> str:
    """Return a name as MIL takes it, which no other has."""
    feature = re.sub(r"\W", "_", name, flags=re.ASCII) or "value"
    feature = f"_{feature}" if feature[0].isdigit() else feature
    while feature in taken:
        feature += "_"
    taken.add(feature)
    return feature


def _tensor_type(port: Port, value: ValueInfoProto, free: dict[str, Any]) -> Any:
    """Return coremltools' description of an input; dimensions of one name in ONNX are one symbol, kept in `free`."""
    names = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
    shape = [_free(name, free) if dim is None else dim for dim, name in zip(port.shape, names, strict=True)]
    kind = _travelling(np.dtype(port.dtype))
    return coremltools.TensorType(name=port.feature, shape=coremltools.Shape(shape or [1]), dtype=_MIL[kind])


def _free(name: str, free: dict[str, Any]) -> Any:
    # coremltools keeps every symbol's name for the life of the process; so it chooses the names itself.
    if not name or name not in free:
        free[name] = coremltools.RangeDim(1, MAX_FREE_DIMENSION)
    return free[name]


def _placeholder(kind: Any) -> Any:
    return mb.placeholder(shape=kind.shape.symbolic_shape, dtype=kind.dtype, allow_rank0_input=False)


def _travelling(dtype: DType) -> str:
    kind = mil_type(dtype)
    return "int32" if kind == "bool" else kind


def _given(port: Port, function: Any) -> Value:
    dtype = np.dtype(port.dtype)
    if not port.feature:
        return known_value(np.zeros([dim or 0 for dim in port.shape], dtype))
    variable = function.inputs[port.feature]
    if not port.shape:
        variable = calc.as_scalar(variable)
    return Value(dtype=dtype, variable=calc.cast_to(variable, mil_type(dtype)))


def _outputs(values: Iterable[ValueInfoProto], environment: dict[str, Value], taken: list[str]) -> list[Port]:
    features = set(taken)
    ports: list[Port] = []
    for value in values:
        found = environment[value.name]
        if len(found.shape) > MAX_RANK:
            raise RefusedError(f"output {value.name!r}: expected at most {MAX_RANK} dimensions, got {len(found.shape)}")
        dtype = _dtype(value, "output")
        if found.dtype != dtype:
            raise RefusedError(f"output {value.name!r}: expected {dtype.name}, got {found.dtype.name}")
        feature = "" if 0 in found.shape else _feature(value.name, features)
        ports.append(Port(name=value.name, dtype=dtype.name, shape=_declared(value, found), feature=feature))
    return ports


def _declared(value: ValueInfoProto, found: Value) -> tuple[int | None, ...]:
    declared = _shape(value)
    if len(declared) != len(found.shape):
        return found.shape
    return tuple(have if have is not None else want for have, want in zip(found.shape, declared, strict=True))


def _computed(ports: Sequence[Port], environment: dict[str, Value], function: Any) -> list[Any]:
    results: list[Any] = []
    for port in ports:
        if not port.feature:
            continue
        value = environment[port.name]
        operand = calc.cast_to(value.operand, _travelling(value.dtype))
        operand = calc.as_vector(operand) if not value.shape else operand
        if calc.is_known(operand):
            operand = _beside_inputs(operand, function)
        results.append(mb.identity(x=operand, name=port.feature))
    if not results:
        raise RefusedError("expected an output with elements, got none: Core ML runs no model without")
    return results


def _beside_inputs(known: Any, function: Any) -> Any:
    """Return a known value as something computed, as Core ML's outputs are: 0 made of an input is added."""
    given = next(iter(function.inputs.values()))
    flags = mb.cast(x=mb.not_equal(x=given, y=given), dtype="int32")
    axes = calc.ints(range(len(given.shape)))
    zero = mb.mul(x=mb.reduce_max(x=flags, axes=axes, keep_dims=False), y=np.int32(0))
    return mb.add(x=known, y=calc.cast_to(zero, calc.type_of(known)))


def _keep_names(function: Any, reserved: set[str]) -> None:
    """Rename inner variables that coremltools happened to name like an input or output."""
    kept = {id(variable) for variable in (*function.inputs.values(), *function.outputs)}
    for operation in function.operations:
        for variable in operation.outputs:
            if variable.name in reserved and id(variable) not in kept:
                variable.name = f"{variable.name}__inner"
