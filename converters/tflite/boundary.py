"""The model's inputs and outputs, in a form that onnx2tf leaves as it is: plain names, layouts of their own.

onnx2tf turns inputs and outputs of images to channels-last. Its inputs can be kept; an output is kept by flattening it, which
has one meaning only; the session gives it its shape again (`benchmarks.runtimes.litert`).
"""

from typing import Final

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper, numpy_helper

from modelfleet.benchmarks.runtimes.litert import Interface, Port
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.graphs import subgraphs

_DTYPES: Final = frozenset(
    {"bool", "float16", "float32", "float64"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def bounded(model: ModelProto) -> tuple[ModelProto, Interface]:
    """Return a copy of the model with plain names and boundaries, and what they were."""
    copy = ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    held = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in held]
    inputs = tuple(_port(value, f"in_{index}") for index, value in enumerate(given))
    outputs = tuple(_port(value, f"out_{index}") for index, value in enumerate(graph.output))
    _rename(graph, {port.name: port.tensor for port in inputs})
    del graph.input[:]
    graph.input.extend(given)
    for value, port in zip(graph.output, outputs, strict=True):
        _end(graph, value, port)
    ends = [
        helper.make_tensor_value_info(port.tensor, _type(value), _end_shape(port))
        for value, port in zip(graph.output, outputs, strict=True)
    ]
    del graph.output[:]
    graph.output.extend(ends)
    return copy, Interface(inputs=inputs, outputs=outputs)


def require_numpy_types(interface: Interface, profile: str) -> None:
    """Return if numpy by itself has every type of the inputs and outputs (ConversionError: it has not, bfloat16 say)."""
    for port in (*interface.inputs, *interface.outputs):
        if port.dtype not in _DTYPES:
            raise ConversionError("", profile, f"{port.name!r}: expected a type of {sorted(_DTYPES)}, got {port.dtype}")


def _port(value: ValueInfoProto, tensor: str) -> Port:
    kind = value.type.tensor_type
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim)
    # An empty output, and one of several free dimensions, could not be given its shape again.
    flat = tensor.startswith("out") and shape.count(None) <= 1 and 0 not in shape and kind.HasField("shape")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)).name
    return Port(name=value.name, dtype=dtype, shape=shape, tensor=tensor, flat=flat)


def _type(value: ValueInfoProto) -> int:
    return value.type.tensor_type.elem_type


def _end(graph: GraphProto, value: ValueInfoProto, port: Port) -> None:
    if port.flat:
        # Another rank, so that nothing takes the node for one that does nothing.
        shape = [-1] if len(port.shape) > 1 else [-1, 1]
        graph.initializer.append(numpy_helper.from_array(np.array(shape, np.int64), f"shape_{port.tensor}"))
        graph.node.append(
            helper.make_node("Reshape", [value.name, f"shape_{port.tensor}"], [port.tensor], name=f"end_{port.tensor}")
        )
    else:
        graph.node.append(helper.make_node("Identity", [value.name], [port.tensor], name=f"end_{port.tensor}"))
    graph.value_info.append(value)


def _end_shape(port: Port) -> list[int | str | None]:
    if not port.flat:
        return list(port.shape)
    size = None if None in port.shape else int(np.prod([dim or 1 for dim in port.shape]))
    return [size] if len(port.shape) > 1 else [size, 1]


def replain(model: ModelProto) -> None:
    """Give plain names to what writing out and folding named."""
    ends = {value.name: value.name for value in (*model.graph.input, *model.graph.output)}
    _rename(model.graph, ends)


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Give every value of the graph and its subgraphs a plain name."""

    def plain(name: str) -> str:
        return "" if not name else names.setdefault(name, f"t{len(names)}")

    open_graphs = [graph]
    while open_graphs:
        each = open_graphs.pop()
        for tensor in each.initializer:
            tensor.name = plain(tensor.name)
        for value in (*each.input, *each.output, *each.value_info):
            value.name = plain(value.name)
        for node in each.node:
            node.input[:] = [plain(name) for name in node.input]
            node.output[:] = [plain(name) for name in node.output]
            open_graphs.extend(subgraphs(node))
