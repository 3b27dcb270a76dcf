"""Read what onnx2tf wrote, and refuse what no LiteRT runs as it is: custom and Flex operators, inputs that nothing computes.

It puts ONNX_SOMETHING in place of an operator that it cannot convert, and says success.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from modelfleet.converters.errors import ConversionError

CUSTOM, CAST = 32, 53  # BuiltinOperator
INT32, INT64 = 2, 4  # TensorType
DTYPES = {0: "float32", 1: "float16", 2: "int32", 3: "uint8", 4: "int64", 6: "bool", 7: "int16", 9: "int8"}
"""TensorType -> numpy's name of it."""
ADDED_BY_ONNX2TF = "ONNX_"


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator: its builtin code, its custom name ("" of a builtin one), and the names of its tensors."""

    code: int
    custom: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def require_builtin(content: bytes, model: ModelProto, profile: str) -> None:
    """Return if the flatbuffer has builtin operators only, and every value that they read is there.

    Args:
        content: the flatbuffer.
        model: the ONNX model that it was made of; its values give the tensors their names.

    Raises:
        ConversionError: it has not; names the ONNX node.
    """
    for operator in operators(content):
        if operator.custom:
            node, kind = node_of(model, operator.outputs)
            wanted = kind or operator.custom.removeprefix(ADDED_BY_ONNX2TF)
            reason = f"{wanted}: expected an operator that LiteRT has, got the custom operator {operator.custom}"
            raise ConversionError(node, profile, reason)
    for tensor, outputs in unbound(content):
        node, kind = node_of(model, outputs)
        raise ConversionError(node, profile, f"{kind}: expected every input computed, got {tensor!r} from nowhere")


def operators(content: bytes) -> Iterator[Operator]:
    """Yield the operators of every subgraph."""
    model = _model(content)
    codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
    for graph in _graphs(model):
        names = _names(graph)
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            code = codes[operator.OpcodeIndex()]
            builtin = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
            yield Operator(
                code=builtin,
                custom=(code.CustomCode() or b"?").decode() if builtin == CUSTOM else "",
                inputs=tuple(names[k] for k in _indices(operator.InputsAsNumpy())),
                outputs=tuple(names[k] for k in _indices(operator.OutputsAsNumpy())),
            )


def unbound(content: bytes) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (tensor, outputs of the operator that reads it) of each that is no input, no constant and no result."""
    model = _model(content)
    for graph in _graphs(model):
        names, bound = _names(graph), set(_indices(graph.InputsAsNumpy()))
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            # A variable tensor is none of these: it is a state, which would outlive an inference.
            if _is_constant(model, tensor) or 0 in _indices(tensor.ShapeAsNumpy()):
                bound.add(index)
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            for read in _indices(operator.InputsAsNumpy()):
                if read not in bound:
                    yield names[read], tuple(names[k] for k in _indices(operator.OutputsAsNumpy()))
            bound.update(_indices(operator.OutputsAsNumpy()))


def tensor_types(content: bytes) -> list[tuple[int, tuple[int, ...], bool]]:
    """Return (type code, shape, whether it is a constant) of every tensor."""
    model = _model(content)
    return [
        (tensor.Type(), tuple(_indices(tensor.ShapeAsNumpy())), _is_constant(model, tensor))
        for graph in _graphs(model)
        for tensor in (graph.Tensors(index) for index in range(graph.TensorsLength()))
    ]


def computes_in_int32(content: bytes) -> bool:
    """Return whether any int64 is cast to int32: LiteRT has many operators in that width only, and a cast does not saturate."""
    model = _model(content)
    for graph in _graphs(model):
        types = {name: graph.Tensors(index).Type() for index, name in _names(graph).items()}
        for operator in operators(content):
            pair = [types.get(name) for name in (*operator.inputs[:1], *operator.outputs[:1])]
            if operator.code == CAST and pair == [INT64, INT32]:
                return True
    return False


def signature_types(content: bytes) -> dict[str, str]:
    """Return the name of each input and output of the main graph, and numpy's name of its type."""
    graph = next(_graphs(_model(content)))
    found: dict[str, str] = {}
    for index in (*_indices(graph.InputsAsNumpy()), *_indices(graph.OutputsAsNumpy())):
        tensor = graph.Tensors(index)
        found[(tensor.Name() or b"").decode()] = DTYPES.get(tensor.Type(), "")
    return found


def node_of(model: ModelProto, values: tuple[str, ...]) -> tuple[str, str]:
    """Return the name and the operator of the ONNX node that computes one of `values`, "" where none does."""
    for value in values:
        for node in model.graph.node:
            if any(value == name or value.startswith(f"{name}_") for name in node.output):
                return node.name, node.op_type
    return "", ""


def _model(content: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as _schema

    schema: Any = _schema  # generated, without types
    return schema.Model.GetRootAs(content, 0)


def _graphs(model: Any) -> Iterator[Any]:
    return (model.Subgraphs(index) for index in range(model.SubgraphsLength()))


def _is_constant(model: Any, tensor: Any) -> bool:
    # Buffer 0 is the empty one. Large buffers lie behind the flatbuffer: then they have a size in place of data.
    buffer = model.Buffers(tensor.Buffer())
    return bool(tensor.Buffer()) and (buffer.DataLength() > 0 or buffer.Size() > 0)


def _names(graph: Any) -> dict[int, str]:
    return {index: (graph.Tensors(index).Name() or b"").decode() for index in range(graph.TensorsLength())}


def _indices(found: Any) -> list[int]:
    # Without a vector, flatbuffers gives 0 in place of an array; -1 stands for an optional input that is not there.
    return [int(k) for k in found if k >= 0] if hasattr(found, "__len__") else []
