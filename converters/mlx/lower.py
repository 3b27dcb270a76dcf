"""An ONNX model, operator by operator, in the vocabulary of `graph.json`; whatever has no rule is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from onnx import GraphProto, ModelProto, TypeProto, ValueInfoProto

from modelfleet.benchmarks.errors import MeasureError
from modelfleet.benchmarks.runtimes.mlx.graph import Body, Node
from modelfleet.benchmarks.runtimes.mlx.interpreter import plan
from modelfleet.benchmarks.session import Array
from modelfleet.converters.errors import ConversionError
from modelfleet.converters.expand import expand
from modelfleet.converters.graphs import graphs
from modelfleet.converters.mlx.rules_basic import BASIC, Rule
from modelfleet.converters.mlx.rules_layers import LAYERS
from modelfleet.converters.mlx.rules_windows import WINDOWS
from modelfleet.converters.mlx.source import (
    DTYPES,
    Known,
    Scope,
    Source,
    UnsupportedError,
    array_of,
    type_name,
    unused_name,
)
from modelfleet.converters.normalise import opset_of
from modelfleet.signer.manifest import Tensor


@dataclass(kw_only=True)
class Lowered:
    """A model in our vocabulary: nodes in order, and the constants they read, in their own types.

    prepare: nodes that read constants alone and run once, when the model is opened.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    nodes: list[Node]
    constants: dict[str, Array]
    taken: set[str]
    prepare: list[Node] = field(default_factory=list[Node])

    def fresh(self, hint: str) -> str:
        """Return a name that no value has."""
        return unused_name(self.taken, hint)


def lower(model: ModelProto, profile: str) -> Lowered:
    """Return the model's graph in the vocabulary.

    Args:
        model: normalised; it is changed.
        profile: named in errors.

    Raises:
        ConversionError: an operator, an attribute or a type that MLX has not; names the node.
    """
    try:
        model = expand(model, _RULES)
    except (RuntimeError, ValueError) as error:  # the inliner, and inference after it, raise what they meet
        raise ConversionError("", profile, f"expected functions that can be written out, got {error}") from error
    known = _known(model, profile)
    taken = {name for graph in graphs(model) for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for graph in graphs(model) for value in (*graph.input, *graph.output)}
    scope = Scope(constants={}, known=known, taken=taken, opset=opset_of(model), profile=profile)
    initializers = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initializers]
    _lower_graph(model.graph, scope)
    return Lowered(
        inputs=tuple(_tensor(value, profile) for value in inputs),
        outputs=tuple(_tensor(value, profile) for value in model.graph.output),
        nodes=scope.nodes,
        constants=scope.constants,
        taken=taken,
    )


def _lower_graph(graph: GraphProto, scope: Scope) -> None:
    for tensor in graph.initializer:
        try:
            scope.constants[tensor.name] = array_of(tensor)
        except UnsupportedError as error:
            raise ConversionError("", scope.profile, f"tensor {tensor.name!r}: {error}") from error
    for node in graph.node:
        source = Source(node, scope)
        rule = _RULES.get(node.op_type)
        where = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        before = len(scope.nodes)
        try:
            if rule is None or node.domain not in ("", "ai.onnx"):
                raise UnsupportedError("expected an operator that the MLX converter knows, got this one")
            rule(source)
            plan(tuple(scope.nodes[before:]), frozenset())  # every attribute is one that the interpreter takes
        except (UnsupportedError, MeasureError) as error:
            raise ConversionError(node.name, scope.profile, f"{where}: {error}") from error


def _body(graph: GraphProto, source: Source) -> Body:
    inner = source.scope.inner()
    _lower_graph(graph, inner)
    return Body(
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        nodes=tuple(inner.nodes),
    )


def _branch(source: Source) -> None:
    bodies = {ours: _body(source.attribute(f"{ours}_branch"), source) for ours in ("then", "else")}
    source.emit("if", source.inputs, source.outputs, bodies)


def _loop(source: Source) -> None:
    # `emit` drops what is left out at the end: the carried values may be none, and then the first two are kept as they are.
    node_inputs = [*source.inputs, None, None][: max(len(source.inputs), 2)]
    body = _body(source.attribute("body"), source)
    source.scope.nodes.append(
        Node(
            name=source.name, op="loop", inputs=tuple(node_inputs), outputs=tuple(source.outputs), bodies={"body": body}
        )
    )


def _scan(source: Source) -> None:
    if source.scope.opset < 9:
        raise UnsupportedError(f"expected opset >= 9, got {source.scope.opset}")
    count = source.attribute("num_scan_inputs")
    outputs = len(source.outputs) - (len(source.inputs) - count)
    source.emit(
        "scan",
        source.inputs,
        source.outputs,
        {"body": _body(source.attribute("body"), source)},
        scanned=count,
        input_axes=source.attribute("scan_input_axes", [0] * count),
        output_axes=source.attribute("scan_output_axes", [0] * outputs),
        input_reversed=source.attribute("scan_input_directions", [0] * count),
        output_reversed=source.attribute("scan_output_directions", [0] * outputs),
    )


_RULES: Final[Mapping[str, Rule]] = {**BASIC, **WINDOWS, **LAYERS, "If": _branch, "Loop": _loop, "Scan": _scan}


def _known(model: ModelProto, profile: str) -> dict[str, Known]:
    found: dict[str, Known] = {}
    for graph in graphs(model):
        producers = {name: node for node in graph.node for name in node.output}
        for value in (*graph.value_info, *graph.input, *graph.output):
            node = producers.get(value.name)
            where, op = (node.name, f"{node.op_type}: ") if node else ("", "")
            found[value.name] = _known_type(value.type, f"{op}value {value.name!r}", where, profile)
    return found


def _known_type(kind: TypeProto, what: str, node: str, profile: str) -> Known:
    if not kind.WhichOneof("value"):
        return Known(dtype=None, shape=None)
    if not kind.HasField("tensor_type"):
        raise ConversionError(node, profile, f"{what}: expected a tensor, got {kind.WhichOneof('value')}")
    tensor = kind.tensor_type
    if tensor.elem_type and tensor.elem_type not in DTYPES:
        reason = f"{what}: expected a tensor of {sorted(DTYPES.values())}, got {type_name(tensor.elem_type)}"
        raise ConversionError(node, profile, reason)
    if not tensor.HasField("shape"):
        return Known(dtype=DTYPES.get(tensor.elem_type), shape=None)
    sizes = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return Known(dtype=DTYPES.get(tensor.elem_type), shape=sizes)


def _tensor(value: ValueInfoProto, profile: str) -> Tensor:
    known = _known_type(value.type, f"{value.name!r}", "", profile)
    if known.dtype is None or known.shape is None or known.dtype == "bfloat16":
        reason = f"{value.name!r}: expected a tensor of numpy's types and a known rank, got {known.dtype}{known.shape}"
        raise ConversionError("", profile, reason)
    return Tensor(name=value.name, dtype=known.dtype, shape=known.shape)
