"""Reads `model.mlmodel` into an `ir.Program`: one function, whose inputs and outputs the model's description declares.

The protobuf schema is Apple's, from coremltools; nothing else of coremltools is used, no operation definition either.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.ir import (
    MAX_RANK,
    Argument,
    Block,
    Feature,
    Named,
    Operation,
    Program,
    Shape,
    TensorType,
    Value,
)
from modelfleet.converters.mil_evaluator.package import find_files
from modelfleet.converters.mil_evaluator.values import Values, read_type

_MAX_MODEL_BYTES = 1 << 31
_MAX_NESTING = 16
_OPSETS = {"CoreML5": 5, "CoreML6": 6, "CoreML7": 7, "CoreML8": 8, "CoreML9": 9}
_FEATURE_DTYPES = {65568: np.float32, 65552: np.float16, 131104: np.int32, 131080: np.int8}


def read_program(package: Path) -> Program:
    """Return the program of a saved package (MilError: it is malformed, or holds what CoreML's tensors cannot)."""
    files = find_files(package)
    model = _decode(files.model)
    if model.WhichOneof("Type") != "mlProgram":
        raise MilError(f"expected an ML program, got {model.WhichOneof('Type')}")
    if len(model.description.functions) or len(model.description.state):
        raise MilError("expected one function without state, got several or a state")
    functions = dict(model.mlProgram.functions)
    if list(functions) != ["main"]:
        raise MilError(f"expected one function, main, got {sorted(functions)}")
    return _function(functions["main"], model.description, Values(files))


def _decode(path: Path) -> Any:
    logger = logging.getLogger("coremltools")  # at import it warns of every Apple library that is not there
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        from coremltools.proto import Model_pb2  # type: ignore[import-untyped]  # pyright: ignore
    finally:
        logger.setLevel(level)
    schema: Any = Model_pb2
    if path.stat().st_size > _MAX_MODEL_BYTES:
        raise MilError(f"{path.name}: expected at most {_MAX_MODEL_BYTES} bytes, got {path.stat().st_size}")
    model = schema.Model()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # DecodeError's module depends on protobuf's back end
        raise MilError(f"{path.name}: expected a CoreML model, got {error}") from error
    return model


def _function(function: Any, description: Any, values: Values) -> Program:
    blocks = dict(function.block_specializations)
    if function.opset not in _OPSETS or function.opset not in blocks:
        raise MilError(f"expected a block for one of the opsets {[*_OPSETS]}, got {function.opset!r}: {sorted(blocks)}")
    block = _block(blocks[function.opset], values, 0)
    declared = {named.name: named.type for named in map(_named, function.inputs)}
    inputs = tuple(_input(feature, declared.pop(feature.name, None)) for feature in description.input)
    if declared:
        raise MilError(f"expected every input in the model's description, got none of {sorted(declared)}")
    made = {named.name: named.type for operation in block.operations for named in operation.outputs}
    made |= {named.name: named.type for named in map(_named, function.inputs)}
    outputs = tuple(_output(feature, made.get(feature.name)) for feature in description.output)
    if {feature.name for feature in outputs} != set(block.outputs):
        raise MilError(
            f"expected the outputs {sorted(block.outputs)} in the description, got {[f.name for f in outputs]}"
        )
    return Program(opset=_OPSETS[function.opset], inputs=inputs, outputs=outputs, block=block)


def _input(feature: Any, declared: object) -> Feature:
    name, array = str(feature.name), _array_type(feature)
    if feature.type.isOptional:
        raise MilError(f"input {name!r}: expected a required input, got an optional one")
    default = tuple(int(size) for size in array.shape)
    bounds = tuple((size, size) for size in default)
    shapes: tuple[tuple[int, ...], ...] = ()
    flexibility = array.WhichOneof("ShapeFlexibility")
    if flexibility == "shapeRange":
        ranges = [(int(size.lowerBound), int(size.upperBound)) for size in array.shapeRange.sizeRanges]
        bounds = tuple((low, None if high < 0 else high) for low, high in ranges)
    elif flexibility == "enumeratedShapes":
        shapes = tuple(tuple(int(size) for size in one.shape) for one in array.enumeratedShapes.shapes)
        if {len(one) for one in shapes} != {len(default)}:
            raise MilError(f"input {name!r}: expected shapes of rank {len(default)}, got {shapes}")
        bounds = tuple((min(sizes), max(sizes)) for sizes in zip(*shapes, strict=True))
    shape: Shape = tuple(low if low == high else None for low, high in bounds)
    result = Feature(name=name, dtype=_dtype(array, name), shape=shape, bounds=bounds, shapes=shapes)
    _require_agreement(result, declared, "input")
    return result


def _output(feature: Any, declared: object) -> Feature:
    name, array = str(feature.name), _array_type(feature)
    if not isinstance(declared, TensorType) or declared.shape is None:
        raise MilError(f"output {name!r}: expected an operation that makes a tensor of known rank, got {declared}")
    described = tuple(int(size) for size in array.shape)
    if described and described != declared.shape:
        raise MilError(f"output {name!r}: expected shape {described} in the function, got {declared.shape}")
    result = Feature(name=name, dtype=_dtype(array, name), shape=declared.shape)
    _require_agreement(result, declared, "output")
    return result


def _require_agreement(feature: Feature, declared: object, what: str) -> None:
    """The description and the function say the same; CoreML has none of rank 0, and none above 5."""
    if not isinstance(declared, TensorType) or declared.shape is None:
        raise MilError(f"{what} {feature.name!r}: expected a tensor of known rank in the function, got {declared}")
    if not 1 <= len(feature.shape) <= MAX_RANK:
        raise MilError(f"{what} {feature.name!r}: expected a rank from 1 to {MAX_RANK}, got shape {feature.shape}")
    names = {
        np.dtype(np.float32): "fp32",
        np.dtype(np.float16): "fp16",
        np.dtype(np.int32): "int32",
        np.dtype(np.int8): "int8",
    }
    fits = len(declared.shape) == len(feature.shape) and all(
        want is None or want == got for want, got in zip(declared.shape, feature.shape, strict=True)
    )
    if declared.dtype != names[feature.dtype] or not fits:
        raise MilError(
            f"{what} {feature.name!r}: expected {feature.dtype}{feature.shape} in the function, got {declared}"
        )


def _array_type(feature: Any) -> Any:
    if feature.type.WhichOneof("Type") != "multiArrayType":
        raise MilError(f"{feature.name!r}: expected a multi-array, got {feature.type.WhichOneof('Type')}")
    return feature.type.multiArrayType


def _dtype(array: Any, name: str) -> np.dtype[Any]:
    if array.dataType not in _FEATURE_DTYPES:
        raise MilError(f"{name!r}: unknown dtype: number {array.dataType}")
    return np.dtype(_FEATURE_DTYPES[array.dataType])


def _block(proto: Any, values: Values, depth: int) -> Block:
    if depth > _MAX_NESTING:
        raise MilError(f"expected at most {_MAX_NESTING} nested blocks, got more")
    operations = tuple(_operation(one, values, depth) for one in proto.operations)
    return Block(inputs=tuple(map(_named, proto.inputs)), operations=operations, outputs=tuple(map(str, proto.outputs)))


def _operation(proto: Any, values: Values, depth: int) -> Operation:
    output = str(proto.outputs[0].name) if len(proto.outputs) else ""
    try:
        return Operation(
            type=str(proto.type),
            inputs={str(key): _arguments(proto.inputs[key], values) for key in proto.inputs},
            outputs=tuple(map(_named, proto.outputs)),
            blocks=tuple(_block(block, values, depth + 1) for block in proto.blocks),
            attributes={str(key): values.read(proto.attributes[key]) for key in proto.attributes if key != "name"},
        )
    except MilError as error:
        if error.op_type:
            raise
        raise MilError(error.reason, op_type=str(proto.type), output=output) from error


def _arguments(proto: Any, values: Values) -> tuple[Argument, ...]:
    return tuple(_argument(binding, values) for binding in proto.arguments)


def _argument(binding: Any, values: Values) -> Argument:
    which = binding.WhichOneof("binding")
    if which == "name" and binding.name:
        return Argument(str(binding.name))
    if which == "value":
        value: Value = values.read(binding.value)
        return Argument("", value)
    raise MilError(f"expected a name or a value as argument, got {which}")


def _named(proto: Any) -> Named:
    return Named(str(proto.name), read_type(proto.type))
