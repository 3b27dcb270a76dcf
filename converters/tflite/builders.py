"""Our own builders of TFLite operators in onnx2tf, in place of its own where these are inexact. Its version is pinned by hash.

onnx2tf computes Where as c * x + (1 - c) * y, which is wrong where the value not taken is infinite or NaN; here it is SELECT_V2.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any


@contextlib.contextmanager
def own_builders() -> Iterator[None]:
    """Let onnx2tf use our builders meanwhile."""
    from onnx2tf.tflite_builder import op_registry as _op_registry

    registry: dict[str, Any] = getattr(_op_registry, "_DISPATCH_REGISTRY")  # noqa: B009 - it has no public way in
    theirs = dict(registry)
    registry["Where"] = replace(theirs["Where"], builder=_where, extra_validator=None)
    try:
        yield
    finally:
        registry.clear()
        registry.update(theirs)


def _where(node: Any, ctx: Any) -> None:
    from onnx2tf.tflite_builder.ir import OperatorIR

    names = [value.name for value in node.inputs]
    output = node.outputs[0].name
    for name in (*names, output):
        ctx.ensure_tensor(name)
    ctx.add_operator(OperatorIR(op_type="SELECT_V2", inputs=names, outputs=[output]))
