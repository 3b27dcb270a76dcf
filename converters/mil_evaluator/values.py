"""Turns the protobuf's types and values into `ir`'s; the only reader of `TensorValue`, which holds dtypes in seven fields."""

import math
from typing import Any

import numpy as np

from modelfleet.converters.mil_evaluator.blob import BlobFile, unpack
from modelfleet.converters.mil_evaluator.errors import MilError
from modelfleet.converters.mil_evaluator.ir import BITS, STORED, Array, ListType, Shape, TensorType, Value, ValueType
from modelfleet.converters.mil_evaluator.package import PackageFiles

_NAMES = {
    1: "bool", 2: "string", 10: "fp16", 11: "fp32", 21: "int8", 22: "int16", 23: "int32", 25: "int4",
    31: "uint8", 32: "uint16", 33: "uint32", 35: "uint4", 36: "uint2", 37: "uint1", 38: "uint6", 39: "uint3",
}  # fmt: skip
"""DataType of MIL.proto; fp64, bfloat16, fp8 and the 64-bit integers are in no operation's domain."""

_MAX_CONST_RANK = 16
_MAX_ELEMENTS = 1 << 40


class Values:
    """Reads values; opens each weight file once."""

    def __init__(self, files: PackageFiles) -> None:
        self._files = files
        self._blobs: dict[str, BlobFile] = {}

    def read(self, proto: Any) -> Value:
        """Return the value of a `MILSpec.Value` (MilError: it is malformed)."""
        declared = read_type(proto.type)
        which = proto.WhichOneof("value")
        if which == "blobFileValue" and isinstance(declared, TensorType):
            return self._blob(proto.blobFileValue, declared)
        kind = proto.immediateValue.WhichOneof("value") if which == "immediateValue" else None
        if kind == "tensor" and isinstance(declared, TensorType):
            return _immediate(proto.immediateValue.tensor, declared)
        if kind == "list" and isinstance(declared, ListType):
            return tuple(self.read(item) for item in proto.immediateValue.list.values)
        raise MilError(f"expected a tensor, a list or a blob as value, got {kind or which}")

    def _blob(self, proto: Any, declared: TensorType) -> Array:
        name = str(proto.fileName)
        if name not in self._blobs:
            self._blobs[name] = BlobFile(self._files.blob(name))
        shape = fixed_shape(declared)
        if declared.dtype not in STORED or declared.dtype == "bool":
            raise MilError(f"expected a dtype that weight files hold, got {declared.dtype}")
        return self._blobs[name].read(proto.offset, declared.dtype, math.prod(shape)).reshape(shape)


def read_type(proto: Any) -> ValueType:
    """Return the type of a `MILSpec.ValueType` (MilError: it is none that the runtime has)."""
    which = proto.WhichOneof("type")
    if which == "tensorType":
        return _tensor_type(proto.tensorType)
    if which == "listType" and proto.listType.type.WhichOneof("type") == "tensorType":
        return ListType(_tensor_type(proto.listType.type.tensorType))
    raise MilError(f"expected a tensor or a list of tensors as type, got {which}")


def fixed_shape(declared: TensorType) -> tuple[int, ...]:
    """Return the shape of a type all of whose dimensions are known (MilError: one is not)."""
    shape = declared.shape
    if shape is None or any(dim is None for dim in shape):
        raise MilError(f"expected known dimensions, got {shape}")
    known = tuple(dim for dim in shape if dim is not None)
    if math.prod(known) > _MAX_ELEMENTS:
        raise MilError(f"expected at most {_MAX_ELEMENTS} elements, got {known}")
    return known


def _tensor_type(proto: Any) -> TensorType:
    dtype = _NAMES.get(proto.dataType)
    if dtype is None:
        raise MilError(f"unknown dtype: number {proto.dataType}")
    kinds = [dim.WhichOneof("dimension") for dim in proto.dimensions]
    if any(kind == "unknown" and dim.unknown.variadic for kind, dim in zip(kinds, proto.dimensions, strict=True)):
        return TensorType(dtype, None)
    if proto.rank != len(kinds) or None in kinds or len(kinds) > _MAX_CONST_RANK:
        raise MilError(f"expected {proto.rank} dimensions, got {kinds}")
    dims = (
        int(dim.constant.size) if kind == "constant" else None
        for kind, dim in zip(kinds, proto.dimensions, strict=True)
    )
    shape: Shape = tuple(dims)
    return TensorType(dtype, shape)


def _immediate(proto: Any, declared: TensorType) -> Value:
    shape = fixed_shape(declared)
    count = math.prod(shape)
    field = proto.WhichOneof("value")
    if declared.dtype == "string":
        return _strings(list(proto.strings.values) if field == "strings" else [], shape)
    if field == "bytes":
        flat = _from_bytes(proto.bytes.values, declared.dtype, count)
    elif field in ("floats", "ints", "bools") and declared.dtype in _FIELD_DTYPES[field]:
        flat = _from_numbers(list(getattr(proto, field).values), declared.dtype)
    elif field is None and count == 0:
        flat = np.zeros(0, STORED[declared.dtype])
    else:
        raise MilError(f"expected {declared.dtype} in its field, got {field}")
    if flat.size != count:
        raise MilError(f"expected {count} values of {declared.dtype}, got {flat.size}")
    return flat.reshape(shape)


_FIELD_DTYPES = {
    "floats": ("fp32",),
    "ints": ("int8", "int16", "int32", "uint8", "uint16", "uint32"),
    "bools": ("bool",),
}


def _strings(texts: list[str], shape: tuple[int, ...]) -> Value:
    if shape == () and len(texts) == 1:
        return texts[0]
    if len(shape) == 1 and len(texts) == shape[0]:
        return tuple(texts)
    raise MilError(f"expected strings of shape {shape}, got {len(texts)}")


def _from_bytes(raw: bytes, dtype: str, count: int) -> Array:
    bits = BITS.get(dtype, 8 * STORED[dtype].itemsize)
    if dtype in ("fp32", "int32", "bool") or len(raw) != -(-count * bits // 8):
        raise MilError(f"expected {count} values of {dtype} as bytes, got {len(raw)} bytes")
    array = np.frombuffer(raw, np.uint8)
    return unpack(array, dtype, count) if dtype in BITS else array.view(STORED[dtype])


def _from_numbers(numbers: list[Any], dtype: str) -> Array:
    wide = np.array(numbers, np.float32 if dtype == "fp32" else np.int64)
    flat = wide.astype(STORED[dtype])
    if dtype != "fp32" and bool((flat.astype(np.int64) != wide).any()):
        raise MilError(f"expected values of {dtype}, got one beyond its range")
    return flat
