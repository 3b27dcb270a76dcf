"""Convolutions and pools of one to three spatial dimensions; all are computed as three, the missing ones of size 1."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleet.converters.microcontroller.floats.kinds import Kind
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError, table
from modelfleet.converters.microcontroller.lowering import fragment_text

Rule = Callable[[Node], None]
Triple = tuple[int, int, int]
_MOST: Final = 2**20
"""Of a stride, dilation, pad or kernel: places of a window are int32_t."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """Sizes of input, output and kernel, and how the window moves; ends: padding at the end."""

    size: Triple
    output: Triple
    kernel: Triple
    strides: Triple
    dilations: Triple
    begins: Triple
    ends: Triple

    def numbers(self) -> tuple[int, ...]:
        """Return the part of the table that every window function begins with."""
        return (*self.size, *self.output, *self.kernel, *self.strides, *self.dilations, *self.begins)


def _triple(values: Sequence[int], missing: int) -> Triple:
    padded = (*(missing,) * (3 - len(values)), *values)
    return (padded[0], padded[1], padded[2])


def window_of(
    node: Node, kernel: Sequence[int], size: Sequence[int], output: Sequence[int], *, transposed: bool = False
) -> Window:
    """Return the window with automatic padding worked out.

    Raises:
        UnsupportedError: not one to three spatial dimensions.
    """
    rank = len(size)
    if not 1 <= rank <= 3:
        raise UnsupportedError(f"expected one to three spatial dimensions, got {rank}")
    strides = node.attribute("strides") or (1,) * rank
    dilations = node.attribute("dilations") or (1,) * rank
    pads = tuple(node.attribute("pads") or (0,) * (2 * rank))
    automatic = node.attribute("auto_pad", "NOTSET")
    given = node.attribute("output_shape") if transposed else None
    if automatic == "VALID":
        pads = (0,) * (2 * rank)
    elif automatic in ("SAME_UPPER", "SAME_LOWER") or given:
        begins: list[int] = []
        ends: list[int] = []
        extras = node.attribute("output_padding") or (0,) * rank
        for axis in range(rank):
            reach = (kernel[axis] - 1) * dilations[axis] + 1
            if transposed:
                total = strides[axis] * (size[axis] - 1) + extras[axis] + reach - output[axis]
            else:
                total = (output[axis] - 1) * strides[axis] + reach - size[axis]
            total = max(total, 0)
            small = automatic == "SAME_UPPER"
            begins.append(total // 2 if small else total - total // 2)
            ends.append(total - begins[-1])
        pads = (*begins, *ends)
    if min((*strides, *dilations)) < 1 or max(map(abs, (*kernel, *strides, *dilations, *pads))) > _MOST:
        raise UnsupportedError(
            f"expected strides and dilations of 1..{_MOST}, pads as small, got {strides}, {dilations}, {pads}"
        )
    return Window(
        size=_triple(size, 1),
        output=_triple(output, 1),
        kernel=_triple(kernel, 1),
        strides=_triple(strides, 1),
        dilations=_triple(dilations, 1),
        begins=_triple(pads[:rank], 0),
        ends=_triple(pads[rank:], 0),
    )


def call(node: Node, file: str, words: Mapping[str, str], arguments: Sequence[str], numbers: Sequence[int]) -> None:
    """Emit a call of the function in a file, in which words in capitals stand for types and expressions."""
    text = fragment_text(f"floats/{file}.c")
    for word, value in words.items():
        text = text.replace(word, value)
    name = f"mf_{file}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    node.include(text.replace("NAME", name))
    node.emit(f"{{ static const int32_t t[] = {table(list(numbers))}; {name}({', '.join((*arguments, 't'))}); }}")
    node.stack_bytes = max(node.stack_bytes, 224)


def _numbers_of(kind: Kind) -> dict[str, str]:
    return {"STORED": kind.ctype, "VALUE": kind.compute}


def _convolution(node: Node) -> None:
    integer = node.operator.op_type == "ConvInteger"
    tensor, weights, output = node.input(0), node.input(1), node.output()
    kind = node.kind(output)
    if not integer:
        _require_floats(node)
    group = int(node.attribute("group", 1))
    kernel = weights.shape[2:]
    window = window_of(node, kernel, tensor.shape[2:], output.shape[2:])
    channels = weights.shape[1]
    if channels * group != tensor.shape[1] or weights.shape[0] % group:
        raise UnsupportedError(f"expected {tensor.shape[1]} channels in {group} groups, got weights {[*weights.shape]}")
    if not integer:
        node.require(2, weights.shape[:1])
    node.require_output(tensor.shape[0] * weights.shape[0] * math.prod(window.output))
    numbers = (*window.numbers(), output.shape[0], group, channels, weights.shape[0] // group)
    if output.elements == 0:
        return
    if integer:
        zeros = [f"{node.read(index)}[0]" if node.has(index) else "0" for index in (2, 3)]
        if node.has(3) and node.input(3).elements != 1:
            raise UnsupportedError("expected one zero point of the weights, got one for each channel")
        text = {"XTYPE": node.kind(tensor).ctype, "WTYPE": node.kind(weights).ctype}
        call(node, "conv_integer", text, (node.read(0), node.read(1), node.write(), *zeros), numbers)
        return
    call(node, "conv", _products_of(kind), _operands(node), numbers)


def _products_of(kind: Kind) -> dict[str, str]:
    return {
        **_numbers_of(kind),
        "LOAD_X": kind.load("x[i]"),
        "LOAD_W": kind.load("w[k]"),
        "LOAD_B": kind.load("b[m]"),
        "STORE_Y": kind.store("y[at]", "s"),
    }


def _operands(node: Node) -> tuple[str, ...]:
    """Return image, weights, bias (0 where there is none) and output."""
    return node.read(0), node.read(1), node.read(2) if node.has(2) else "0", node.write()


def _require_floats(node: Node) -> None:
    kind = node.kind(node.input(0))
    if not kind.is_float:
        raise UnsupportedError(f"expected floats, got {kind.dtype}")


def _transposed(node: Node) -> None:
    _require_floats(node)
    tensor, weights, output = node.input(0), node.input(1), node.output()
    kind, group = node.kind(output), int(node.attribute("group", 1))
    window = window_of(node, weights.shape[2:], tensor.shape[2:], output.shape[2:], transposed=True)
    if tensor.shape[1] != weights.shape[0] or tensor.shape[1] % group:
        raise UnsupportedError(f"expected {weights.shape[0]} channels in {group} groups, got {tensor.shape[1]}")
    node.require(2, (weights.shape[1] * group,))
    node.require_output(tensor.shape[0] * weights.shape[1] * group * math.prod(window.output))
    numbers = (*window.numbers(), output.shape[0], group, tensor.shape[1] // group, weights.shape[1])
    if output.elements:
        call(node, "conv_transposed", _products_of(kind), _operands(node), numbers)


def _pool(node: Node) -> None:
    name = node.operator.op_type
    tensor, output = node.input(0), node.output()
    size = tensor.shape[2:]
    if name.startswith("Global"):
        kernel: Sequence[int] = size
        rank = len(size)
        if rank > 3:  # one long axis is the same
            size, kernel = (math.prod(size),), (math.prod(size),)
        window = Window(
            size=_triple(size, 1),
            output=(1, 1, 1),
            kernel=_triple(kernel, 1),
            strides=(1, 1, 1),
            dilations=(1, 1, 1),
            begins=(0, 0, 0),
            ends=(0, 0, 0),
        )
    else:
        kernel = node.attribute("kernel_shape")
        window = window_of(node, kernel, size, output.shape[2:])
    kind = node.kind(tensor)
    include = bool(node.attribute("count_include_pad", 0))
    limits = [size + (end if include else 0) for size, end in zip(window.size, window.ends, strict=True)]
    firsts = [-begin if include else 0 for begin in window.begins]
    planes = tensor.shape[0] * tensor.shape[1]
    node.require_output(planes * math.prod(window.output))
    numbers = (*window.numbers(), planes, *firsts, *limits)
    if output.elements == 0:
        return
    words = {**_pooling(node, kind), **_numbers_of(kind), "LOAD": kind.load("x[i]")}
    words |= {"INDICES": "", "STORE_INDEX": "", "KEEP": ""}
    arguments = [node.read(0), node.write()]
    if name == "MaxPool" and node.wants(1):
        by_column = int(node.attribute("storage_order", 0))
        words["STORE_INDEX"] = _column_major(window) if by_column else "q[at] = best;"
        words["INDICES"] = "int64_t *q, "
        words["KEEP"] = "best = i;"
        arguments.append(node.write(1))
    elif node.wants(1):
        raise UnsupportedError("expected no indices, got an output for them")
    call(node, "pool", words, arguments, numbers)


def _column_major(window: Window) -> str:
    if window.size[0] != 1:
        raise UnsupportedError("expected at most two spatial dimensions for indices in column major order, got three")
    return "q[at] = (int64_t)(n * t[1] * t[2]) + best % t[2] * t[1] + best / t[2] % t[1];"


def _pooling(node: Node, kind: Kind) -> dict[str, str]:
    name = node.operator.op_type
    if name.endswith("MaxPool"):
        nan = " || v != v" if kind.is_float else ""
        return {
            "START": kind.least,
            "STEP": f"if (v > s || !any{nan}) {{ s = v; any = 1; KEEP }}",
            "ANY": "int any = 0; int64_t best = 0;" if node.wants(1) else "int any = 0;",
            "FINISH": kind.store("y[at]", "s"),
            "COUNT": "",
        }
    _require_floats(node)
    zero = kind.literal(0)
    if name.endswith("AveragePool"):
        end = kind.store("y[at]", f"s / ({kind.compute})count")
        return {"START": zero, "STEP": "s += v;", "ANY": "int32_t count = 0;", "FINISH": end, "COUNT": "++count;"}
    p = int(node.attribute("p", 2))
    if p == 1:
        step, end = f"s += fabs{kind.suffix}(v);", "s"
    elif p == 2:
        step, end = "s += v * v;", f"sqrt{kind.suffix}(s)"
    else:
        step = f"s += pow{kind.suffix}(fabs{kind.suffix}(v), {kind.literal(p)});"
        end = f"pow{kind.suffix}(s, {kind.literal(1)} / {kind.literal(p)})"
    return {"START": zero, "STEP": step, "ANY": "", "FINISH": kind.store("y[at]", end), "COUNT": ""}


WINDOWS: Final[Mapping[str, Rule]] = {
    "AveragePool": _pool,
    "Conv": _convolution,
    "ConvInteger": _convolution,
    "ConvTranspose": _transposed,
    "GlobalAveragePool": _pool,
    "GlobalLpPool": _pool,
    "GlobalMaxPool": _pool,
    "LpPool": _pool,
    "MaxPool": _pool,
}
