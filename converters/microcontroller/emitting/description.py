"""model.json: what of a variant a program needs to know, and the file that opens it."""

from typing import Annotated, Final, Literal

import msgspec

from modelfleet.converters.microcontroller.ir import Program

FORMAT: Final = 1
ENTRY: Final = "model.json"
HEADER, SOURCE, WEIGHTS = "model.h", "model.c", "weights.c"
BLOB: Final = "weights.bin"
"""The bytes of weights.c as they are, for a flash partition or a data image."""
SOURCES: Final = (HEADER, SOURCE, WEIGHTS)


class Port(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output as ONNX has it: dtype is numpy's name, all dimensions are known; argument: the C function's name of it.

    scale, zero_point: what its whole numbers stand for, `scale * (value - zero_point)`, where the model says so.
    """

    name: str
    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    argument: str
    scale: float | None = None
    zero_point: int = 0


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A variant of C. All sizes in bytes.

    shapes_digest: SHA-256 of model.c; blobs of one shapes digest are exchangeable. weights_digest: SHA-256 of the blob.
    workspace_bytes: what the caller lends; workspace_bound_bytes: the least that in-place execution of this model needs, operator
    by operator. stack_bytes: a bound for one call. code_bytes: instructions and read-only data beside the weights. flash_bytes:
    both. ram_bytes: workspace, stack, inputs and outputs. figures: whether the target's own compiler said stack and code;
    figures_by: which compiler did, with its flags, "" where none.
    """

    format: Literal[1] = FORMAT
    model: str
    backend: str
    rounding: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights_bytes: int
    workspace_bytes: int
    workspace_bound_bytes: int
    stack_bytes: int
    code_bytes: int
    flash_bytes: int
    ram_bytes: int
    figures: Literal["measured", "estimated"]
    figures_by: str
    needs_math: bool
    shapes_digest: str
    weights_digest: str
    files: tuple[str, ...] = SOURCES


def ports(program: Program, names: tuple[str, ...], what: str) -> tuple[Port, ...]:
    """Return inputs (`what`: "input") or outputs of a program."""
    tensors = [program.tensors[name] for name in names]
    return tuple(
        Port(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            argument=f"{what}_{index}",
            scale=tensor.scale,
            zero_point=tensor.zero_point,
        )
        for index, tensor in enumerate(tensors)
    )
