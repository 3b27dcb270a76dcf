"""Make an ONNX file as small as its answers allow: no names, shapes and constants that nothing needs.

What a runtime reads stays: operators, attributes, the names of inputs and outputs. What goes: names of nodes, documentation, who
made the file, shapes of inner tensors (inferred when loaded), attributes at their defaults, all but one of equal constants, long
names of tensors. The order of everything is kept, so equal models give equal files. A model with subgraphs keeps its names and
constants, since those reach for them.
"""

from collections.abc import Iterator
from itertools import count
from typing import Final

from onnx import ModelProto, NodeProto, TensorProto, defs, numpy_helper

from modelfleet.converters.graphs import subgraphs
from modelfleet.converters.normalise import opset_of

_DIGITS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def compact(model: ModelProto) -> None:
    """Shrink the model in place; it gives the same answers."""
    for node in model.graph.node:
        node.name = ""
        node.doc_string = ""
        del node.metadata_props[:]
        _drop_defaults(node, model)
    model.doc_string = model.graph.doc_string = ""
    model.producer_name = model.producer_version = model.domain = ""
    del model.metadata_props[:]
    del model.graph.value_info[:]
    if any(True for node in model.graph.node for _ in subgraphs(node)):
        return
    drop_zero_points_of_biases(model)
    _merge_constants(model)
    drop_unused_constants(model)
    _shorten_names(model)


def drop_zero_points_of_biases(model: ModelProto) -> None:
    """Leave out zero points of 32-bit integers, which must be zero (ONNX, DequantizeLinear)."""
    wide = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT32}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[2] in wide:
            del node.input[2]


def drop_unused_constants(model: ModelProto) -> None:
    """Remove the initializers of the main graph that no node reads; models with subgraphs keep all."""
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    if any(True for node in model.graph.node for _ in subgraphs(node)):
        return
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)


def _drop_defaults(node: NodeProto, model: ModelProto) -> None:
    if node.domain not in ("", "ai.onnx"):
        return
    try:
        schema = defs.get_schema(node.op_type, opset_of(model))
    except defs.SchemaError:
        return
    defaults = {name: known.default_value for name, known in schema.attributes.items() if not known.required}
    for attribute in [one for one in node.attribute if defaults.get(one.name) == one]:
        node.attribute.remove(attribute)


def _merge_constants(model: ModelProto) -> None:
    outputs = {value.name for value in (*model.graph.output, *model.graph.input)}
    first: dict[tuple[object, ...], str] = {}
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        if tensor.name not in outputs and tensor.data_type != TensorProto.STRING:
            key = (tensor.data_type, tuple(tensor.dims), tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
            renamed[tensor.name] = first.setdefault(key, tensor.name)
    _rename(model, renamed)


def _shorten_names(model: ModelProto) -> None:
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    fresh = (name for name in _names() if name not in fixed)
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        for name in (*node.input, *node.output):
            if name and name not in fixed and name not in renamed:
                renamed[name] = next(fresh)
    _rename(model, renamed)
    for tensor in model.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    model.graph.name = "g"


def _rename(model: ModelProto, renamed: dict[str, str]) -> None:
    for node in model.graph.node:
        for values in (node.input, node.output):
            for position, name in enumerate(values):
                values[position] = renamed.get(name, name)


def _names() -> Iterator[str]:
    for number in count():
        name, left = "", number
        while True:
            name += _DIGITS[left % len(_DIGITS)]
            left = left // len(_DIGITS) - 1
            if left < 0:
                break
        yield name
