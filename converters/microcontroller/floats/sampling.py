"""GridSample: an image read at places that an input names; no place reaches outside the image."""

from collections.abc import Callable, Mapping
from typing import Final

from modelfleet.converters.microcontroller.floats.elementwise import typed
from modelfleet.converters.microcontroller.floats.node import Node, UnsupportedError
from modelfleet.converters.microcontroller.floats.windows import call

Rule = Callable[[Node], None]

_CUBIC: Final = """{
    const T q = -0.75_, b = part + 1_, c = 1_ - part, d = 2_ - part;
    weight[a][0] = ((q * b - 5_ * q) * b + 8_ * q) * b - 4_ * q;
    weight[a][1] = ((q + 2_) * part - (q + 3_)) * part * part + 1_;
    weight[a][2] = ((q + 2_) * c - (q + 3_)) * c * c + 1_;
    weight[a][3] = ((q * d - 5_ * q) * d + 8_ * q) * d - 4_ * q;
}"""
_MODES: Final[Mapping[str, tuple[int, int, str, str]]] = {
    "nearest": (1, 0, "v = rintF(v);", "weight[a][0] = 1_ - part;"),
    "linear": (2, 0, "", "weight[a][0] = 1_ - part; weight[a][1] = part;"),
    "cubic": (4, 1, "", _CUBIC),
}
"""Mode -> taps of an axis, those before the place, what is done to the place first, weights."""
_NAMES: Final = {"bilinear": "linear", "bicubic": "cubic"}
_BORDERS: Final[Mapping[str, tuple[str, str]]] = {
    "zeros": ("", "if (p < 0 || p >= size) { weight[a][k] = 0; }"),
    "border": ("v = v < 0 ? 0 : v > (T)(size - 1) ? (T)(size - 1) : v;", ""),
    "reflection": (
        "v = (T)mf_reflect(v, lo, hi);",
        "if (p < 0 || p >= size) { p = (int32_t)mf_reflect((T)p, lo, hi); }",
    ),
}
"""Padding -> what is done to a place outside, and to a tap outside."""


def _grid_sample(node: Node) -> None:
    image, grid, output = node.input(0), node.input(1), node.output()
    kind, rank = node.kind(image), len(image.shape) - 2
    mode = str(node.attribute("mode", "linear"))
    padding = str(node.attribute("padding_mode", "zeros"))
    if _NAMES.get(mode, mode) not in _MODES or padding not in _BORDERS:
        raise UnsupportedError(f"expected a known mode and padding_mode, got {mode!r} and {padding!r}")
    taps, before, first, weights = _MODES[_NAMES.get(mode, mode)]
    border, outside = _BORDERS[padding]
    if rank not in (2, 3) or (rank == 3 and taps == 4) or not kind.is_float or grid.dtype != image.dtype:
        raise UnsupportedError(
            f"expected floats of two or three spatial dimensions, got {mode} of {kind.dtype}[{rank}]"
        )
    size = (1,) * (3 - rank) + image.shape[2:]
    places = output.elements // max(image.shape[0] * image.shape[1], 1)
    node.require(1, (image.shape[0], *output.shape[2:], rank))
    node.require_output(image.shape[0] * image.shape[1] * places)
    if output.elements == 0 or image.elements == 0:
        raise UnsupportedError("expected an image and places, got none")
    aligned = bool(node.attribute("align_corners", 0))
    reads_bounds = "reflect" in border
    words = {
        "LOAD_G": kind.load("g[at]"),
        "LOAD_X": kind.load("x[i]"),
        "STORE_Y": kind.store("y[at]", "s"),
        "STORED": kind.ctype,
        "const VALUE lo = LOWEST, hi = HIGHEST;": "const VALUE lo = LOWEST, hi = HIGHEST;" if reads_bounds else "",
        "LOWEST": typed("0_" if aligned else "-0.5_", kind),
        "HIGHEST": typed("(T)(size - 1)" if aligned else "(T)size - 0.5_", kind),
        "POSITION": typed("(v + 1_) / 2_ * (T)(size - 1)" if aligned else "((v + 1_) * (T)size - 1_) / 2_", kind),
        "LIMIT": typed("16777216_", kind),
        "FIRST": typed(first, kind),
        "BORDER": typed(border, kind),
        "FLOOR": f"floor{kind.suffix}",
        "WEIGHTS": typed(weights, kind),
        "OUTSIDE": typed(outside, kind),
        "BEFORE": str(before),
        "TAPS": str(taps),
        "VALUE": kind.compute,
    }
    call(
        node, "grid_sample", words, (node.read(0), node.read(1), node.write()), (*image.shape[:2], *size, places, rank)
    )


SAMPLING: Final[Mapping[str, Rule]] = {"GridSample": _grid_sample}
