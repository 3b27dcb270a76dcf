"""Windows of Conv and of the pools, in two dimensions: one dimension is an image of height 1."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from modelfleet.converters.microcontroller.importing.graph import Node


@dataclass(frozen=True, kw_only=True)
class Window:
    """image, kernel, output: height and width; pads: top, left, bottom, right, as far as the output reads."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    output: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]

    @property
    def plain(self) -> bool:
        """Whether it reads every element of the image, and nothing beside it, when the kernel is 1x1."""
        return self.pads == (0, 0, 0, 0) and (self.strides == (1, 1) or self.image == (1, 1))

    @property
    def whole(self) -> bool:
        """Whether the kernel is the image."""
        return self.pads == (0, 0, 0, 0) and self.kernel == self.image and self.output == (1, 1)


def window_of(node: Node, shape: Sequence[int], kernel: Sequence[int]) -> Window | None:
    """Return the window of a node that reads a tensor of `shape` (N, C, [H,] W); None for three dimensions and more.

    Dimensions of the output are rounded down, as ONNX has it; ceil_mode is for the caller.
    """
    rank = len(kernel)
    if rank not in (1, 2) or len(shape) != rank + 2:
        return None
    strides = _pair(node, "strides", rank)
    dilations = _pair(node, "dilations", rank)
    image, size = _two(shape[2:]), _two(kernel)
    spans = [dilation * (extent - 1) + 1 for dilation, extent in zip(dilations, size, strict=True)]
    pads = _pads(node, rank, image, strides, spans)
    output = tuple((image[axis] + pads[axis] + pads[axis + 2] - spans[axis]) // strides[axis] + 1 for axis in range(2))
    if min(output) < 1:
        return None
    return Window(
        image=image,
        kernel=size,
        output=cast("tuple[int, int]", output),
        strides=strides,
        dilations=dilations,
        pads=pads,
    )


def _pair(node: Node, name: str, rank: int) -> tuple[int, int]:
    return _two(node.attributes.get(name) or [1] * rank)


def _two(values: Sequence[int]) -> tuple[int, int]:
    return (1, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _pads(
    node: Node, rank: int, image: tuple[int, int], strides: tuple[int, int], spans: Sequence[int]
) -> tuple[int, int, int, int]:
    kind = node.attributes.get("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-image[axis] // strides[axis]) - 1) * strides[axis] + spans[axis] - image[axis], 0)
            for axis in range(2)
        ]
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        first, second = (small, large) if kind == "SAME_UPPER" else (large, small)
        return first[0], first[1], second[0], second[1]
    given = [int(pad) for pad in node.attributes.get("pads") or [0] * 2 * rank] if kind == "NOTSET" else [0] * 2 * rank
    return (0, given[0], 0, given[1]) if rank == 1 else (given[0], given[1], given[2], given[3])
