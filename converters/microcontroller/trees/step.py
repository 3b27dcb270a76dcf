"""What lowering one operator of `ai.onnx.ml` needs: its tensors and attributes as ONNX has them, and how it refuses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from modelfleet.converters.errors import ConversionError
from modelfleet.converters.microcontroller.ir import Onnx, Program, Tensor
from modelfleet.converters.trees.ensemble import attributes_of

PROFILE: Final = "c99"
C_TYPES: Final[Mapping[str, str]] = {
    "float32": "float",
    "float64": "double",
    "int64": "int64_t",
    "int32": "int32_t",
}
"""Types of numbers that these operators take and give."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One operator while it is lowered. index: its place in the program, for names of C functions."""

    operator: Onnx
    program: Program
    index: int
    node: NodeProto
    told: Mapping[str, Any]

    def refuse(self, reason: str) -> NoReturn:
        """Raise ConversionError for this operator."""
        raise ConversionError(self.operator.name, PROFILE, f"{self.operator.op_type}: {reason}")

    def input(self, position: int = 0) -> Tensor:
        """Return an input (ConversionError: it is of no type of numbers)."""
        return self._checked(self.operator.inputs[position])

    def output(self, position: int = 0) -> Tensor:
        """Return an output that is wanted."""
        return self._checked(self.operator.outputs[position])

    def wants(self, position: int) -> bool:
        """Return whether the operator has the output."""
        return position < len(self.operator.outputs) and self.operator.outputs[position] != ""

    def reads_label(self, texts: object) -> bool:
        """Return whether the label is wanted (ConversionError: it is, and is a text)."""
        name = self.operator.outputs[0] if self.wants(0) else ""
        used = name in self.program.outputs or any(name in each.inputs for each in self.program.operators)
        if name and used and texts:
            self.refuse(
                "expected integer class labels, got texts: train on LabelEncoder().fit_transform(y), or let the graph's "
                "outputs be the scores alone"
            )
        return name != "" and not texts

    def table(self, features: int | None = None) -> tuple[int, int]:
        """Return rows and features of the first input (ConversionError: it is no table, or of other features)."""
        shape = self.input().shape
        if len(shape) != 2 or (features is not None and shape[1] != features):
            wanted = "features" if features is None else features
            self.refuse(f"expected an input (N, {wanted}), got {list(shape)}")
        return shape[0], shape[1]

    def _checked(self, name: str) -> Tensor:
        tensor = self.program.tensors[name]
        if tensor.dtype not in C_TYPES:
            self.refuse(f"expected tensors of {sorted(C_TYPES)}, got {tensor.dtype}")
        return tensor


def step_of(operator: Onnx, program: Program) -> Step:
    """Return the step of an operator (ConversionError: its attributes are none that ONNX has)."""
    given = {name: value for name, value in operator.attributes.items() if not _is_empty(value)}
    try:
        node = helper.make_node(
            operator.op_type, operator.inputs, operator.outputs, name=operator.name, domain=operator.domain
        )
        for name, value in given.items():
            node.attribute.append(helper.make_attribute(name, _as_onnx(value)))
        told = attributes_of(node)
    except (TypeError, ValueError) as error:
        reason = f"{operator.op_type}: expected attributes of ONNX, got {error}"
        raise ConversionError(operator.name, PROFILE, reason) from error
    index = next(place for place, each in enumerate(program.operators) if each is operator)
    return Step(operator=operator, program=program, index=index, node=node, told=told)


def _as_onnx(value: Any) -> Any:
    return numpy_helper.from_array(value, "") if isinstance(value, np.ndarray) else value  # pyright: ignore[reportUnknownArgumentType]


def _is_empty(value: object) -> bool:
    return isinstance(value, list | tuple) and not value
