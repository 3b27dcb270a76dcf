"""ONNX in, C out: read, simplify, lower, plan, write."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
from onnx import ModelProto

from modelfleet.converters.microcontroller.emitting.description import (
    BLOB,
    ENTRY,
    HEADER,
    SOURCE,
    WEIGHTS,
    Description,
    ports,
)
from modelfleet.converters.microcontroller.emitting.header import write_header
from modelfleet.converters.microcontroller.emitting.package import package_files
from modelfleet.converters.microcontroller.emitting.plan import Plan, plan
from modelfleet.converters.microcontroller.emitting.program_text import Text, write_program
from modelfleet.converters.microcontroller.emitting.weights_text import write_weights
from modelfleet.converters.microcontroller.exact.simplify import simplify
from modelfleet.converters.microcontroller.floats.expand import written_out
from modelfleet.converters.microcontroller.importing.read import read_program
from modelfleet.converters.microcontroller.ir import Program
from modelfleet.converters.microcontroller.lower import lower_all
from modelfleet.converters.microcontroller.lowering import Lowered, Target

LEAST_WORKSPACE_BYTES: Final = 16
RUN_STACK_BYTES: Final = 96
"""Of the run function itself, where no compiler says it."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What the code takes beside its weights. by: the compiler that says so, "" for none; exact: it is the target's own."""

    stack_bytes: int
    code_bytes: int
    by: str = ""
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Generated:
    """A program as C, before anything has measured it."""

    program: Program
    target: Target
    lowered: tuple[Lowered, ...]
    plan: Plan
    text: Text

    @property
    def workspace_bytes(self) -> int:
        """What the caller lends."""
        return max(self.plan.size_bytes, LEAST_WORKSPACE_BYTES)

    @property
    def io_bytes(self) -> int:
        """All inputs and outputs."""
        names = (*self.program.inputs, *self.program.outputs)
        return sum(self.program.tensors[name].size_bytes for name in names)

    def heaviest(self) -> str:
        """Return the node with the most weights, "" where none has any."""
        return self._node_of_most([sum(one.data.nbytes for one in lowered.constants) for lowered in self.lowered])

    def widest(self) -> str:
        """Return the node with the most bytes of inputs, outputs and scratch, "" where there is no node."""
        tensors = self.program.tensors
        known = [{*operator.inputs, *operator.outputs} - {""} for operator in self.program.operators]
        moved = [sum(tensors[name].size_bytes for name in names if tensors[name].data is None) for names in known]
        return self._node_of_most([a + one.scratch_bytes for a, one in zip(moved, self.lowered, strict=True)])

    def _node_of_most(self, figures: Sequence[int]) -> str:
        best = max(range(len(figures)), key=figures.__getitem__, default=None)
        return "" if best is None else self.program.operators[best].name

    @property
    def shapes_digest(self) -> str:
        """SHA-256 of model.c: blobs of programs with equal digests are exchangeable."""
        return hashlib.sha256(self.text.source.encode()).hexdigest()

    def estimated(self) -> Footprint:
        """Return the footprint by the lowerings' own figures; code is taken for a fifth of its text."""
        deepest = max((one.stack_bytes for one in self.lowered), default=0)
        return Footprint(stack_bytes=deepest + RUN_STACK_BYTES, code_bytes=len(self.text.source) // 5)

    def description(self, footprint: Footprint) -> Description:
        """Return model.json's content."""
        weights_bytes = len(self.text.blob.data)
        return Description(
            model=self.program.name,
            backend=str(self.target.backend),
            rounding=str(self.target.rounding),
            inputs=ports(self.program, self.program.inputs, "input"),
            outputs=ports(self.program, self.program.outputs, "output"),
            weights_bytes=weights_bytes,
            workspace_bytes=self.workspace_bytes,
            workspace_bound_bytes=self.plan.bound_bytes,
            stack_bytes=footprint.stack_bytes,
            code_bytes=footprint.code_bytes,
            flash_bytes=weights_bytes + footprint.code_bytes,
            ram_bytes=self.workspace_bytes + footprint.stack_bytes + self.io_bytes,
            figures="measured" if footprint.exact else "estimated",
            figures_by=footprint.by,
            needs_math=self.text.needs_math,
            shapes_digest=self.shapes_digest,
            weights_digest=hashlib.sha256(self.text.blob.data).hexdigest(),
        )

    def code(self, footprint: Footprint) -> Mapping[str, bytes]:
        """Return what a compiler needs, without the weights: model.h and model.c."""
        header = write_header(
            self.program,
            weights_bytes=len(self.text.blob.data),
            workspace_bytes=self.workspace_bytes,
            stack_bytes=footprint.stack_bytes,
            stack_by=f"{'' if footprint.exact else 'estimated, '}{footprint.by or 'from its kernels'}",
            needs_math=self.text.needs_math,
        )
        return {HEADER: header.encode(), SOURCE: self.text.source.encode()}

    def files(self, footprint: Footprint | None = None) -> Mapping[str, bytes]:
        """Return file name -> content: `code`, weights.c, weights.bin, model.json, and what `package_files` adds."""
        known = footprint or self.estimated()
        described = self.description(known)
        return {
            **self.code(known),
            WEIGHTS: write_weights(self.text.blob).encode(),
            BLOB: self.text.blob.data,
            ENTRY: msgspec.json.format(msgspec.json.encode(described), indent=2) + b"\n",
            **package_files(described),
        }


def generate(model: ModelProto, name: str, target: Target) -> Generated:
    """Return a model as C.

    Args:
        model: normalised, all shapes known.
        name: of the model, for comments.
        target: what the C is for.

    Raises:
        ConversionError: an operator, a type or a shape has no C; names the node.
    """
    program = simplify(read_program(written_out(model), name, target.rounding), fixed_shapes=target.fixed_shapes)
    return generate_program(program, target)


def generate_program(program: Program, target: Target) -> Generated:
    """Return a program as C, as it is (errors as `generate`)."""
    lowered = lower_all(program, target)
    planned = plan(program, lowered)
    text = write_program(program, lowered, planned)
    return Generated(program=program, target=target, lowered=lowered, plan=planned, text=text)
