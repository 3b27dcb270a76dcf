"""Any function of one int8 tensor, element by element -> `Lookup`, its table computed by onnxruntime.

The whole float part between DequantizeLinear and QuantizeLinear is run on all 256 numbers; further quantizations in between
are part of the function, so that `x * sigmoid(x)` with a quantized sigmoid is one table.
"""

from typing import Final

import numpy as np

from modelfleet.converters.microcontroller.importing.evaluate import evaluate
from modelfleet.converters.microcontroller.importing.graph import Node
from modelfleet.converters.microcontroller.importing.layout import Stores
from modelfleet.converters.microcontroller.importing.scales import BYTES, scale_of
from modelfleet.converters.microcontroller.importing.sight import Fused, Sight
from modelfleet.converters.microcontroller.ir import Array, Lookup

ELEMENTWISE: Final = frozenset(
    {
        *(
            "Abs",
            "Acos",
            "Acosh",
            "Add",
            "And",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "Cast",
            "Ceil",
            "Celu",
            "Clip",
            "Cos",
        ),
        *("Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid"),
        *(
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "Max",
            "Min",
            "Mish",
            "Mod",
            "Mul",
            "Neg",
        ),
        *("Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
        *(
            "Sinh",
            "Softplus",
            "Softsign",
            "Sqrt",
            "Sub",
            "Sum",
            "Swish",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Where",
            "Xor",
        ),
    }
)
_MAX_NODES: Final = 64


def lookup(sight: Sight, last: Node) -> Fused | None:
    """Return the function of one int8 tensor that the QuantizeLinear `last` ends."""
    target = scale_of(last, sight.graph)
    root = _root_of_nodes(sight, [last.inputs[0]], {})
    if target is None or root is None:
        return None
    if sight.graph.shape(root) != sight.graph.shape(last.outputs[0]):
        return None
    table = _table(sight, root, last)
    if table is None:
        return None

    def emit(stores: Stores) -> None:
        order = stores.common_order(root)
        shape = stores.shape_of(root, order)
        source = stores.need(root, dtype="int8", order=order, shape=shape)
        if np.array_equal(table, np.arange(-128, 128)):
            stores.forward(last.outputs[0], root, target)
            return
        output = stores.produce(last.outputs[0], dtype="int8", order=order, shape=shape, scale=target)
        stores.add(Lookup(name=last.name, inputs=(source,), outputs=(output,), table=table))

    return Fused(inputs=(root,), output=last.outputs[0], emit=emit)


def _root_of_nodes(sight: Sight, names: list[str], known: dict[str, str | None]) -> str | None:
    """Return the one int8 tensor that all of these float tensors are functions of, element by element."""
    roots = {_root(sight, name, known) for name in names if not _is_number(sight, name)}
    return roots.pop() if len(roots) == 1 else None


def _root(sight: Sight, name: str, known: dict[str, str | None]) -> str | None:
    if name not in known:
        known[name] = None  # what needs itself has no root
        if len(known) <= _MAX_NODES:
            known[name] = _found_root(sight, name, known)
    return known[name]


def _found_root(sight: Sight, name: str, known: dict[str, str | None]) -> str | None:
    found = sight.quantized(name)
    if found is not None:
        before = sight.maker(found.name, "QuantizeLinear")
        if before is not None and scale_of(before, sight.graph) is not None:
            root = _root_of_nodes(sight, [before.inputs[0]], known)
            if root is not None and sight.graph.shape(root) == sight.graph.shape(found.name):
                return root
        return found.name if found.name not in sight.graph.constants else None
    node = sight.maker(name, *ELEMENTWISE)
    if node is None or len(node.outputs) != 1:
        return None
    return _root_of_nodes(sight, [given for given in node.inputs if given], known)


def _is_number(sight: Sight, name: str) -> bool:
    value = sight.graph.constants.get(name)
    if value is None:
        value = sight.real(name)
    return value is not None and value.size == 1


def _table(sight: Sight, root: str, last: Node) -> Array | None:
    """Return the function as `Lookup.table`; None where onnxruntime does not compute it."""
    kind = sight.graph.dtype(root)
    nodes: list[Node] = []
    constants: dict[str, Array] = {}
    seen: set[str] = set()

    def gather(name: str) -> None:
        if not name or name == root or name in seen:
            return
        seen.add(name)
        if name in sight.graph.constants:
            value = sight.graph.constants[name]
            constants[name] = value.reshape(()) if value.size == 1 else value
            return
        node = sight.producers[name]
        for given in node.inputs:
            gather(given)
        nodes.append(node)

    gather(last.outputs[0])
    source = np.arange(256, dtype=np.uint8) if kind == "uint8" else np.arange(-128, 128).astype(np.int8)
    results = evaluate(nodes, {root: source} | constants, [last.outputs[0]], sight.graph.opsets)
    if results is None or kind not in BYTES:
        return None
    table = results[last.outputs[0]].reshape(-1)
    if table.size != 256:
        return None
    return table.astype(np.int8) if str(table.dtype) == "int8" else (table ^ np.uint8(128)).view(np.int8)
