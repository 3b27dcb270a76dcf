"""model.h: all that an application needs to know, as macros and one declaration."""

from modelfleet.converters.microcontroller.emitting.c_types import c_type, comment_text, io_alignment
from modelfleet.converters.microcontroller.emitting.layout import BLOB_ALIGNMENT
from modelfleet.converters.microcontroller.emitting.program_text import signature
from modelfleet.converters.microcontroller.ir import Program, Tensor

_HEAD = """/* {title}: ONNX as C99, generated. No allocation, no libc{math}, no global state: any number of threads may call it at
 * once, each with a workspace of its own.
 *
 *     static uint8_t workspace[MODEL_WORKSPACE_BYTES] __attribute__((aligned({alignment})));
 *     int error = model_run(model_weights, workspace, {arguments});
 *
 * Returns 0, or MODEL_MISALIGNED with nothing done. weights: model_weights, or another blob of MODEL_WEIGHTS_BYTES bytes of
 * the same shapes digest. weights and workspace are aligned to {alignment} bytes, inputs and outputs as said below. What the
 * workspace holds before and after means nothing. Inputs, outputs, weights and workspace do not overlap.
 *
 * Two models in one firmware: compile each one's sources with a MODEL_PREFIX of its own (-DMODEL_PREFIX=kws: kws_run and
 * kws_weights); before each #include of a header, #undef and #define MODEL_PREFIX alike. Macros are those of the header
 * included last.
 */
#include <stdint.h>

#ifndef MODEL_PREFIX
#define MODEL_PREFIX model
#endif
#ifndef MODEL_NAME
#define MODEL_JOIN_(prefix, name) prefix##_##name
#define MODEL_JOIN(prefix, name) MODEL_JOIN_(prefix, name)
#define MODEL_NAME(name) MODEL_JOIN(MODEL_PREFIX, name)
#endif
"""


_RELEASE = """
/* Which release this is: defined in model_release.c, which `modelfleet microcontroller export` writes once it has verified it. */
extern const uint8_t MODEL_NAME(manifest_sha256)[32];
extern const char MODEL_NAME(name)[];
extern const char MODEL_NAME(version)[];
"""


def write_header(
    program: Program, *, weights_bytes: int, workspace_bytes: int, stack_bytes: int, stack_by: str, needs_math: bool
) -> str:
    """Return model.h.

    Args:
        program: its inputs and outputs.
        weights_bytes: length of the blob.
        workspace_bytes: what the caller lends.
        stack_bytes: the bound of a call's stack; stack_by: who says so.
        needs_math: whether math.h is used.
    """
    arguments = [f"input_{i}" for i in range(len(program.inputs))] + [
        f"output_{i}" for i in range(len(program.outputs))
    ]
    parts = [
        _HEAD.format(
            title=comment_text(program.name) or "model",
            math=" but math.h" if needs_math else "",
            alignment=BLOB_ALIGNMENT,
            arguments=", ".join(arguments),
        ),
        "\n",
        _macro("WORKSPACE_BYTES", workspace_bytes, "RAM that the caller lends"),
        _macro("STACK_BYTES", stack_bytes, f"a call takes no more of the stack, its arguments beside: {stack_by}"),
        _macro("WEIGHTS_BYTES", weights_bytes, "in flash"),
        _macro("MISALIGNED", 1, "a pointer is not aligned", suffix=""),
    ]
    for names, what in ((program.inputs, "INPUT"), (program.outputs, "OUTPUT")):
        parts.append(_macro(f"{what}S", len(names), "", suffix=""))
        parts += [_port(f"{what}_{i}", program.tensors[name]) for i, name in enumerate(names)]
    parts += ['\n#ifdef __cplusplus\nextern "C" {\n#endif\n']
    parts += ["extern const uint8_t MODEL_NAME(weights)[];\n", signature(program), ";\n", _RELEASE]
    return "".join([*parts, "#ifdef __cplusplus\n}\n#endif\n"])


def _port(macro: str, tensor: Tensor) -> str:
    """Return the macros of one input or output under a comment with its name, type and shape."""
    shape = ", ".join(map(str, tensor.shape))
    kind = c_type(tensor.dtype, tensor.name)
    said = f"/* {comment_text(tensor.name)}: {kind}[{shape}], aligned to {io_alignment(tensor.dtype)} bytes"
    if tensor.scale is not None:
        said += f"; stands for {tensor.scale:.9g} * (value - {tensor.zero_point})"
    return f"{said} */\n" + _macro(f"{macro}_ELEMENTS", tensor.elements, "")


def _macro(name: str, value: int, comment: str, suffix: str = "u") -> str:
    said = f" /* {comment} */" if comment else ""
    return f"#undef MODEL_{name}\n#define MODEL_{name} {value}{suffix}{said}\n"
