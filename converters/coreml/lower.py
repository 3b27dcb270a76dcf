"""Walk an ONNX graph and lower each node to MIL: known ones are computed here, the rest by `operators.OPERATORS`.

An operator without a lowering of its own that ONNX defines as a function is replaced by that function's body. Whatever is
refused names the node of the model, never one of a body.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any, NoReturn, cast

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from modelfleet.converters.coreml.bodies import function_body
from modelfleet.converters.coreml.calc import dims, is_known, type_of
from modelfleet.converters.coreml.fold import fold
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.operators import OPERATORS
from modelfleet.converters.coreml.values import (
    MAX_RANK,
    DType,
    Operand,
    RefusedError,
    Value,
    known_value,
    mil_type,
    shown,
)
from modelfleet.converters.errors import ConversionError

Environment = MutableMapping[str, Value]
_TAKES_EMPTY = frozenset({"Concat", "If", "Resize", "Shape", "Size"})
"""Operators whose first input may have no elements: Core ML has no such tensors, so what is empty must be known."""


class Lowering:
    """Lowers the nodes of one model for one profile (named in errors)."""

    def __init__(self, opsets: Mapping[str, int], profile: str) -> None:
        self.opsets = opsets
        self.profile = profile
        self.made: dict[str, list[str]] = {}
        """Node -> the names of its results in MIL."""

    def graph(self, graph: GraphProto, environment: Environment, within: str = "") -> None:
        """Lower a graph's nodes in order; the environment gains a value for each of their outputs."""
        for tensor in graph.initializer:
            environment[tensor.name] = known_value(numpy_helper.to_array(tensor))
        dtypes = dtypes_of(graph)
        for index, node in enumerate(graph.node):
            name = within or node.name or f"{node.op_type}#{index}"
            try:
                values = self._node(node, name, environment, dtypes)
            except RefusedError as error:
                raise ConversionError(name, self.profile, f"{node.op_type}: {error}") from error
            except (ConversionError, MemoryError, OSError):
                raise
            except Exception as error:  # coremltools raises whatever it meets
                raise ConversionError(name, self.profile, f"{node.op_type}: {_first_line(error)}") from error
            environment.update(values)
            names = [
                value.variable.op.name for value in values.values() if value.variable is not None and value.variable.op
            ]
            self.made.setdefault(name, []).extend(names)

    def _node(
        self, node: NodeProto, name: str, environment: Environment, dtypes: Mapping[str, DType]
    ) -> dict[str, Value]:
        inputs = [environment[source] if source else None for source in node.input]
        opset = self.opsets.get("" if node.domain == "ai.onnx" else node.domain, 0)
        folded = fold(node, inputs, opset)
        names = [output for output in node.output if output]
        if folded is not None:
            return dict(zip(names, folded, strict=True))
        if node.op_type not in _TAKES_EMPTY and inputs and inputs[0] is not None and 0 in inputs[0].shape:
            raise RefusedError(
                f"expected a tensor with elements, got {node.input[0]!r} of shape {shown(inputs[0].shape)}"
            )
        found = Node(
            op=node.op_type,
            name=name,
            opset=opset,
            inputs=inputs,
            outputs=list(node.output),
            dtypes=[dtypes.get(output) for output in node.output],
            attributes={attribute.name: _attribute(attribute) for attribute in node.attribute},
        )
        if node.op_type == "If" and not node.domain:
            return self._choice(node, found, environment)
        lowering = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if lowering is None:
            return self._body(node, found, environment)
        answer: Any = lowering(found)
        results = cast("tuple[Operand, ...]", answer) if isinstance(answer, tuple) else (answer,)
        if len(results) < max((index + 1 for index, output in enumerate(node.output) if output), default=0):
            found.refuse(f"expected {len(results)} outputs asked for, got {len(node.output)}")
        return {
            output: _value(result, dtypes.get(output), found)
            for output, result in zip(node.output, results, strict=False)
            if output
        }

    def _choice(self, node: NodeProto, found: Node, environment: Environment) -> dict[str, Value]:
        known = found.need_known(0, "the condition of If")
        name = "then_branch" if bool(known.reshape(-1)[0]) else "else_branch"
        branch: GraphProto = found.attribute(name)
        inner = dict(environment)
        self.graph(branch, inner, found.name)
        return {output: inner[value.name] for output, value in zip(node.output, branch.output, strict=True) if output}

    def _body(self, node: NodeProto, found: Node, environment: Environment) -> dict[str, Value]:
        body = function_body(node, found)
        if body is None:
            _refuse_operator(node)
        inner: dict[str, Value] = {name: environment[name] for name in node.input if name}
        self.graph(body, inner, found.name)
        return {name: inner[name] for name in node.output if name and name in inner}


def dtypes_of(graph: GraphProto) -> dict[str, DType]:
    """Return the element type of every value whose type the graph tells."""
    tensors = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.HasField("tensor_type")
    }
    return {name: np.dtype(helper.tensor_dtype_to_np_dtype(kind)) for name, kind in tensors.items() if kind}


def _value(result: Operand, dtype: DType | None, node: Node) -> Value:
    """Return a lowering's result with its ONNX type, known where MIL's own inference knows whole numbers."""
    if is_known(result):
        array = np.asarray(result)
        return known_value(array if dtype is None else array.astype(dtype))
    kind = type_of(result)
    if len(dims(result)) > MAX_RANK:
        node.refuse(f"expected at most {MAX_RANK} dimensions, got {len(dims(result))}")
    if dtype is None:
        dtype = _dtype_of(kind, node)
    if mil_type(dtype) != kind:
        raise TypeError(f"expected a result of {mil_type(dtype)}, got {kind}")
    if 0 in dims(result) and None not in dims(result):
        return known_value(np.zeros([dim or 0 for dim in dims(result)], dtype))
    held = result.val
    if held is not None and kind in ("int32", "bool"):
        return known_value(np.asarray(held).astype(dtype))
    return Value(dtype=dtype, variable=result)


def _dtype_of(kind: str, node: Node) -> DType:
    # Shape inference did not say: then it is the type of an input that MIL holds alike.
    for value in node.inputs:
        if value is not None and value.known is None and mil_type(value.dtype) == kind:
            return value.dtype
    return np.dtype({"fp32": np.float32, "fp16": np.float16, "bool": np.bool_, "int32": np.int64}[kind])


def _refuse_operator(node: NodeProto) -> NoReturn:
    domain = f"{node.domain}::" if node.domain else ""
    raise RefusedError(f"expected an operator that Core ML has, got {domain}{node.op_type}")


def _attribute(attribute: AttributeProto) -> Any:
    value: Any = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if attribute.type == AttributeProto.STRINGS:
        return [each.decode("utf-8", "replace") for each in value]
    return value


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"coremltools refuses: {lines[0][:300]}" if lines else f"coremltools refuses: {type(error).__name__}"
