"""Convolutions in one to three dimensions, and transposed ones."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from modelfleet.converters.coreml import calc
from modelfleet.converters.coreml.calc import ints, like, mb
from modelfleet.converters.coreml.node import Node
from modelfleet.converters.coreml.values import Operand, dims, fixed_dims, is_known


def window(node: Node, kernel: list[int]) -> tuple[list[int], list[int]]:
    """Return a window's strides and dilations."""
    ones = [1] * len(kernel)
    return list(node.attribute("strides") or ones), list(node.attribute("dilations") or ones)


def pads_of(node: Node, x: Operand, kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """Return the padding before and after each spatial dimension, in turn: begin, end, begin, end, ..."""
    auto = node.attribute("auto_pad", "NOTSET")
    count = len(kernel)
    if auto == "NOTSET":
        pads = list(node.attribute("pads") or [0] * (2 * count))
        return [size for index in range(count) for size in (pads[index], pads[index + count])]
    if auto == "VALID":
        return [0] * (2 * count)
    found: list[int] = []
    for size, width, stride, dilation in zip(dims(x)[2:], kernel, strides, dilations, strict=True):
        if size is None and stride != 1:
            node.refuse(f"expected a size known before the run for auto_pad {auto} with strides, got a free one")
        out = -(-(size or 1) // stride)
        total = max((out - 1) * stride + (width - 1) * dilation + 1 - (size or 1), 0)
        small, large = total // 2, total - total // 2
        found += [small, large] if auto == "SAME_UPPER" else [large, small]
    return found


def _conv(node: Node) -> Operand:
    x, weight = node[0], node[1]
    kernel = list(fixed_dims(weight)[2:])
    _require_spatial(node, len(kernel))
    strides, dilations = window(node, kernel)
    pads = pads_of(node, x, kernel, strides, dilations)
    if not is_known(weight) and max(dilations) > 1:
        weight, dilations = _spread(weight, dilations), [1] * len(dilations)
    found = mb.conv(
        x=x,
        weight=weight,
        strides=ints(strides),
        dilations=ints(dilations),
        pad_type="custom",
        pad=ints(pads),
        groups=np.int32(node.attribute("group", 1)),
        **_known_bias(node),
    )
    return _with_bias(node, found)


def _require_spatial(node: Node, count: int) -> None:
    if not 1 <= count <= 3:
        node.refuse(f"expected one to three spatial dimensions, got {count}")


def _known_bias(node: Node) -> dict[str, Operand]:
    return {"bias": node[2]} if node.has(2) and is_known(node[2]) else {}


def _with_bias(node: Node, x: Operand) -> Operand:
    if not node.has(2) or is_known(node[2]):
        return x
    return mb.add(x=x, y=calc.reshape(node[2], ints([1, -1] + [1] * (len(dims(x)) - 2))))


def _spread(weight: Operand, dilations: list[int]) -> Operand:
    """Return a kernel that only the run knows with zeros put between its elements: MIL dilates known ones only."""
    for axis, dilation in enumerate(dilations, start=2):
        size = fixed_dims(weight)[axis]
        if dilation == 1 or size == 1:
            continue
        wide = (size - 1) * dilation + 1
        taken = calc.take(weight, ints([place // dilation for place in range(wide)]), axis)
        kept = np.asarray([place % dilation == 0 for place in range(wide)])
        mask = kept.reshape([-1 if index == axis else 1 for index in range(len(dims(weight)))])
        weight = mb.mul(x=taken, y=mask.astype(np.float16 if calc.type_of(weight) == "fp16" else np.float32))
    return weight


def _conv_transpose(node: Node) -> Operand:
    """Lower the whole product, then cut it or pad it: MIL's own padding has no `output_padding`."""
    x, weight = node[0], node[1]
    kernel = list(fixed_dims(weight)[2:])
    _require_spatial(node, len(kernel))
    strides, dilations = window(node, kernel)
    if not is_known(weight) and max(dilations) > 1:
        weight, dilations = _spread(weight, dilations), [1] * len(dilations)
        kernel = list(fixed_dims(weight)[2:])
    found = mb.conv_transpose(
        x=x,
        weight=weight,
        strides=ints(strides),
        dilations=ints(dilations),
        pad_type="valid",
        groups=np.int32(node.attribute("group", 1)),
    )
    found = _cut(node, found, x, kernel, strides, dilations)
    if not node.has(2):
        return found
    return mb.add(x=found, y=calc.reshape(node[2], ints([1, -1] + [1] * len(kernel))))


def _cut(
    node: Node, found: Operand, x: Operand, kernel: list[int], strides: list[int], dilations: list[int]
) -> Operand:
    count = len(kernel)
    extra = list(node.attribute("output_padding") or [0] * count)
    begins, ends = _transposed_pads(node, x, kernel, strides, dilations, extra)
    # What is padded at the end beyond what is cut there is zeros, to which the bias is added later.
    short = [max(more - end, 0) for more, end in zip(extra, ends, strict=True)]
    cut = [max(end - more, 0) for more, end in zip(extra, ends, strict=True)]
    if any(short):
        pads = [0, 0, 0, 0, *(size for each in short for size in (0, each))]
        found = mb.pad(x=found, pad=ints(pads), mode="constant", constant_val=like(0, x))
    if not any(begins) and not any(cut):
        return found
    return mb.slice_by_index(
        x=found,
        begin=ints([0, 0, *begins]),
        end=ints([0, 0, *(-each for each in cut)]),
        begin_mask=[True, True] + [False] * count,
        end_mask=[True, True] + [each == 0 for each in cut],
    )


def _transposed_pads(
    node: Node, x: Operand, kernel: list[int], strides: list[int], dilations: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    """Return what is cut off before and after each dimension (ONNX, ConvTranspose: pads from output_shape or auto_pad)."""
    count = len(kernel)
    auto, shape = node.attribute("auto_pad", "NOTSET"), node.attribute("output_shape")
    if shape is None and auto in ("NOTSET", "VALID"):
        pads = list(node.attribute("pads") or [0] * (2 * count)) if auto == "NOTSET" else [0] * (2 * count)
        return pads[:count], pads[count:]
    begins: list[int] = []
    ends: list[int] = []
    for index in range(count):
        size = dims(x)[2 + index]
        if size is None:
            node.refuse("expected a size known before the run for output_shape or auto_pad, got a free one")
        wanted = shape[-count:][index] if shape is not None else size * strides[index]
        full = (size - 1) * strides[index] + extra[index] + (kernel[index] - 1) * dilations[index] + 1
        total = full - wanted
        if total < 0:  # more is asked for than there is: zeros at the end
            begins.append(0)
            ends.append(total)
            continue
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins, ends


LOWERINGS: Final[Mapping[str, Callable[[Node], Any]]] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
