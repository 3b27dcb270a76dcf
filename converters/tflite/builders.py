"""Our own builders of TFLite operators in onnx2tf, in place of its own where these are inexact. Its version is pinned by hash.

* Where is c * x + (1 - c) * y there, which is wrong where the value not taken is infinite or NaN; here it is SELECT_V2.
* Div by a constant is a product with its reciprocal in float32 there, of whole numbers too: 49 / 49 is 0.99999994, whose floor is
  0, and whole numbers beyond 2^24 are rounded. Here it is DIV, of whole numbers in int32, the only width that LiteRT divides in.
"""

import contextlib
from collections.abc import Generator
from dataclasses import replace
from typing import Any, Final

_WHOLE: Final = frozenset({"INT32", "INT64"})


@contextlib.contextmanager
def own_builders() -> Generator[None]:
    """Let onnx2tf use our builders meanwhile."""
    from onnx2tf.tflite_builder import op_registry as _op_registry

    registry: dict[str, Any] = getattr(_op_registry, "_DISPATCH_REGISTRY")  # noqa: B009 - it has no public way in
    theirs = dict(registry)
    registry["Where"] = replace(theirs["Where"], builder=_where, extra_validator=None)
    registry["Div"] = replace(theirs["Div"], builder=_div)
    try:
        yield
    finally:
        registry.clear()
        registry.update(theirs)


def _where(node: Any, ctx: Any) -> None:
    from onnx2tf.tflite_builder.ir import OperatorIR
    from onnx2tf.tflite_builder.op_builders import elementwise as _elementwise

    cast: Any = getattr(_elementwise, "_cast_tensor_if_needed")  # noqa: B009 - as above
    condition, *taken = (value.name for value in node.inputs)
    output = node.outputs[0].name
    for name in (condition, *taken, output):
        ctx.ensure_tensor(name)
    wanted = str(ctx.get_tensor_dtype(output)).upper()
    # It keeps some whole numbers in int32 where ONNX says int64.
    same = [cast(ctx=ctx, src_name=name, dst_dtype=wanted, base_name=f"{output}_{k}") for k, name in enumerate(taken)]
    ctx.add_operator(OperatorIR(op_type="SELECT_V2", inputs=[condition, *same], outputs=[output]))


def _div(node: Any, ctx: Any) -> None:
    from onnx2tf.tflite_builder.ir import OperatorIR
    from onnx2tf.tflite_builder.op_builders import elementwise as _elementwise

    cast: Any = getattr(_elementwise, "_cast_tensor_if_needed")  # noqa: B009 - as above
    names, output = [value.name for value in node.inputs], node.outputs[0].name
    for name in (*names, output):
        ctx.ensure_tensor(name)
    given = str(ctx.get_tensor_dtype(output)).upper()
    width = "INT32" if given in _WHOLE else given
    same = [
        cast(ctx=ctx, src_name=name, dst_dtype=width, base_name=f"{output}_div_{k}") for k, name in enumerate(names)
    ]
    found = output
    if width != given:
        shape = [int(size) for size in ctx.get_tensor_shape(output)]
        found = ctx.add_intermediate_tensor(f"{output}_div_int32", dtype=width, shape=shape)
    # A later pass makes products of divisions by constants, but for those of quantized models.
    options = {"fusedActivationFunction": "NONE", "preserveDivisionForOnnxRequantization": True}
    ctx.add_operator(OperatorIR(op_type="DIV", inputs=same, outputs=[found], options=options))
    if found != output:
        types = {"inDataType": width, "outDataType": given}
        ctx.add_operator(OperatorIR(op_type="CAST", inputs=[found], outputs=[output], options=types))
