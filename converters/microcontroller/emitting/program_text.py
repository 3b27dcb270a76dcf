"""model.c: the fragments in use, then one function that calls them in the plan's order. Its SHA-256 is the shapes digest.

Nothing that training decides stands in it, and no name but those of ONNX nodes in comments: a model trained anew has the same
text, and its blob fits the firmware that was built from the old one.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.converters.microcontroller.emitting.c_types import c_type, comment_text, io_alignment
from modelfleet.converters.microcontroller.emitting.layout import BLOB_ALIGNMENT, Blob, lay_out
from modelfleet.converters.microcontroller.emitting.plan import Plan
from modelfleet.converters.microcontroller.ir import Onnx, Operator, Program, Tensor, View
from modelfleet.converters.microcontroller.lowering import Constant, Lowered, Places, fragment_text

COPY_FRAGMENT: Final = "emitting/copy.c"
MOVE_FRAGMENT: Final = "emitting/move.c"
PRELUDE: Final = "emitting/prelude.c"
_PLACEHOLDER: Final = "constant_of_tensor_{}_"


@dataclass(frozen=True, kw_only=True)
class Text:
    """model.c and the blob that its offsets point into. needs_math: it includes `math.h`."""

    source: str
    blob: Blob
    needs_math: bool


def write_program(program: Program, lowered: Sequence[Lowered], plan: Plan) -> Text:
    """Return model.c and its weights.

    Args:
        program: what it computes.
        lowered: its operators as C, in the program's order.
        plan: where everything lies, and the order of the calls.

    Raises:
        ConversionError: a tensor has a type that C has not.
    """
    read = _constants_read(program, lowered, plan)
    owned = [(constant, _title(program.operators[i])) for i in plan.order for constant in lowered[i].constants]
    held = [(_constant(program.tensors[name]), comment_text(name)) for name in read]
    blob = lay_out([*owned, *held])
    of_tensor = dict(zip(read, blob.offsets[len(owned) :], strict=True))
    expressions = _Expressions(program, plan, of_tensor)
    steps = list[str]()
    position = 0
    for index in plan.order:
        count = len(lowered[index].constants)
        offsets = blob.offsets[position : position + count]
        position += count
        if not isinstance(program.operators[index], View):
            steps.append(_step(index, program, lowered[index], expressions, plan, offsets))
    copies = [_copy(program, expressions, position) for position in _copied(program, plan)]
    needs_math = any(one.needs_math for one in lowered)
    return Text(
        source=_source(program, lowered, plan, steps, copies, math=needs_math), blob=blob, needs_math=needs_math
    )


def signature(program: Program) -> str:
    """Return the run function's declaration, without a semicolon."""
    arguments = ["const void *weights", "void *workspace"]
    arguments += [f"const {c_type(_dtype(program, name), name)} *input_{i}" for i, name in enumerate(program.inputs)]
    arguments += [f"{c_type(_dtype(program, name), name)} *output_{i}" for i, name in enumerate(program.outputs)]
    return f"int MODEL_NAME(run)({', '.join(arguments)})"


class _Expressions:
    """C expressions of tensors."""

    def __init__(self, program: Program, plan: Plan, constants: Mapping[str, int]) -> None:
        self._program, self._plan, self._constants = program, plan, constants
        self._numbers = {name: number for number, name in enumerate(program.tensors)}
        self._given = {name: f"output_{i}" for i, name in reversed(list(enumerate(program.outputs)))}
        self._given |= {name: f"input_{i}" for i, name in reversed(list(enumerate(program.inputs)))}

    def reading(self, name: str) -> str:
        """Return a `const T *` of the tensor, "NULL" where an optional one is absent."""
        return self._of(name, "const ") if name else "NULL"

    def writing(self, name: str) -> str:
        """Return a `T *` of the tensor."""
        return self._of(name, "") if name else "NULL"

    def _of(self, name: str, constness: str) -> str:
        tensor = self._program.tensors[name]
        kind = f"{constness}{c_type(tensor.dtype, name)} *"
        place = self._plan.places[name]
        if self._program.tensors[place].data is not None:
            if place not in self._constants:
                return _PLACEHOLDER.format(self._numbers[place])
            return constant_expression(c_type(tensor.dtype, name), self._constants[place])
        if place in self._given:
            expression = self._given[place]
            return (
                expression if _dtype(self._program, place) == tensor.dtype else f"(({kind})(const void *){expression})"
            )
        offset = self._plan.moved.get(name, self._plan.offsets[name]) if constness else self._plan.offsets[name]
        return f"(({kind})(void *)(places + {offset}u))"


def constant_expression(ctype: str, offset: int) -> str:
    """Return a pointer into the weights."""
    return f"((const {ctype} *)(const void *)(constants + {offset}u))"


def _constants_read(program: Program, lowered: Sequence[Lowered], plan: Plan) -> list[str]:
    """Return the constant tensors whose expressions calls really use: the others are never stored."""
    expressions = _Expressions(program, plan, {})
    names = list(program.tensors)
    found: dict[str, None] = {}
    for index in plan.order:
        if isinstance(program.operators[index], View):
            continue
        call = _call(
            index, program.operators[index], lowered[index], expressions, plan, [0] * len(lowered[index].constants)
        )
        for token in re.findall(_PLACEHOLDER.format(r"(\d+)"), call):
            found[names[int(token)]] = None
    for position in _copied(program, plan):
        place = plan.places[program.outputs[position]]
        if program.tensors[place].data is not None:
            found[place] = None
    return list(found)


def _constant(tensor: Tensor) -> Constant:
    assert tensor.data is not None
    alignment = max(4, tensor.data.dtype.itemsize)
    return Constant(ctype=c_type(tensor.dtype, tensor.name), data=tensor.data.reshape(-1), alignment=alignment)


def _call(
    index: int, operator: Operator, lowered: Lowered, expressions: _Expressions, plan: Plan, offsets: Sequence[int]
) -> str:
    constants = zip(lowered.constants, offsets, strict=True)
    places = Places(
        inputs=tuple(expressions.reading(name) for name in operator.inputs),
        outputs=tuple(expressions.writing(name) for name in operator.outputs),
        constants=tuple(constant_expression(constant.ctype, offset) for constant, offset in constants),
        scratch=f"(places + {plan.scratch[index]}u)" if lowered.scratch_bytes else "NULL",
    )
    return lowered.call(places)


def _step(
    index: int, program: Program, lowered: Lowered, expressions: _Expressions, plan: Plan, offsets: Sequence[int]
) -> str:
    operator = program.operators[index]
    call = _call(index, operator, lowered, expressions, plan, offsets).strip("\n")
    moves = "".join(_moves(operator, program, plan))
    return f"{moves}    /* {_title(operator)} */\n    {{\n{textwrap.indent(call, ' ' * 8)}\n    }}\n    MODEL_STEP();\n"


def _moves(operator: Operator, program: Program, plan: Plan) -> Iterator[str]:
    """Yield the statements that bring an operator's inputs to where it reads them."""
    for place in dict.fromkeys(plan.places[name] for name in operator.inputs if name in plan.moved):
        numbers = (
            f"places + {plan.moved[place]}u, places + {plan.offsets[place]}u, {program.tensors[place].size_bytes}u"
        )
        yield f"    model_move({numbers});\n    MODEL_STEP();\n"


def _copied(program: Program, plan: Plan) -> list[int]:
    """Return which outputs no operator writes: views of other places, inputs, constants, and outputs that are listed twice."""
    kept = {*program.inputs, *(name for name, tensor in program.tensors.items() if tensor.data is not None)}
    first = {name: position for position, name in reversed(list(enumerate(program.outputs)))}
    return [
        position
        for position, name in enumerate(program.outputs)
        if name in kept or plan.places[name] != name or first[name] != position
    ]


def _copy(program: Program, expressions: _Expressions, position: int) -> str:
    name = program.outputs[position]
    source, count = expressions.reading(name), program.tensors[name].size_bytes
    return f"    model_copy((uint8_t *)output_{position}, (const uint8_t *){source}, {count}u);\n"


def _title(operator: Operator) -> str:
    kind = operator.op_type if isinstance(operator, Onnx) else type(operator).__name__
    return f"{comment_text(kind)}: {comment_text(operator.name)}"


def _source(
    program: Program, lowered: Sequence[Lowered], plan: Plan, steps: Sequence[str], copies: Sequence[str], *, math: bool
) -> str:
    fragments = dict.fromkeys(name for index in plan.order for name in lowered[index].fragments)
    if plan.moved:
        fragments[MOVE_FRAGMENT] = None
    if copies:
        fragments[COPY_FRAGMENT] = None
    parts = ['/* Generated: operators in the order in which they run. See model.h. */\n#include "model.h"\n']
    parts += ["#include <math.h>\n"] if math else []
    parts += [fragment_text(name) for name in (PRELUDE, *fragments)]
    parts += [lowered[index].definitions for index in plan.order if lowered[index].definitions]
    return (
        "\n".join(parts)
        + "\n"
        + "".join([signature(program), " {\n", _checks(program), *steps, *copies, "    return 0;\n}\n"])
    )


def _checks(program: Program) -> str:
    """Return the locals of the run function, and its refusal of pointers that are not aligned."""
    tests = [f"((uintptr_t)weights & {BLOB_ALIGNMENT - 1}u)", f"((uintptr_t)workspace & {BLOB_ALIGNMENT - 1}u)"]
    for names, what in ((program.inputs, "input"), (program.outputs, "output")):
        for index, name in enumerate(names):
            tests.append(f"((uintptr_t){what}_{index} & {io_alignment(_dtype(program, name)) - 1}u)")
    return (
        "    const uint8_t *const constants = (const uint8_t *)weights;\n"
        "    uint8_t *const places = (uint8_t *)workspace;\n"
        "    (void)constants;\n    (void)places;\n"
        f"    if (({' | '.join(tests)}) != 0u) {{\n        return MODEL_MISALIGNED;\n    }}\n"
    )


def _dtype(program: Program, name: str) -> str:
    return program.tensors[name].dtype
