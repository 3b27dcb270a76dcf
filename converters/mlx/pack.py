"""Weights in 8 to 2 bits, packed as MLX packs them: groups of 32, 64 or 128 with a scale and a bias each.

The weights of MatMul and Gemm stay packed while the model runs; others (convolutions, embeddings, recurrent layers) are unpacked
when it is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from modelfleet.benchmarks.runtimes.mlx.graph import Node
from modelfleet.benchmarks.runtimes.mlx.values import mx
from modelfleet.benchmarks.session import Array
from modelfleet.converters.mlx.lower import Lowered
from modelfleet.hardware_profiles.profile import Precision

BITS: Final[Mapping[Precision, int]] = {
    Precision.INT8_WEIGHTS: 8,
    Precision.INT6_WEIGHTS: 6,
    Precision.INT5_WEIGHTS: 5,
    Precision.INT4_WEIGHTS: 4,
    Precision.INT3_WEIGHTS: 3,
    Precision.INT2_WEIGHTS: 2,
}
MIN_ELEMENTS: Final = 256
"""Of a weight worth packing."""
_WEIGHTS: Final[Mapping[str, tuple[int, ...]]] = {
    "matmul": (1,), "gemm": (1,), "conv": (1,), "conv_transpose": (1,), "gather": (0,), "einsum": (0, 1),
    "rnn": (1, 2), "gru": (1, 2), "lstm": (1, 2), "deform_conv": (1,),
}  # fmt: skip
_MAX_PADDING: Final = 0.25
"""Share of zeros that may be added to make rows whole groups; beyond it the rows are packed in one."""
_SMALLEST, _LARGEST = 6.2e-5, 65504.0


def pack_weights(lowered: Lowered, bits: int, keep_float: frozenset[str]) -> dict[str, Any]:
    """Pack, in place, the large weights of all nodes outside `keep_float`; return the report, {} if there are none."""
    packing = _Packing(lowered=lowered, bits=bits)
    nodes = list[Node]()
    for node in lowered.nodes:
        if node.name in keep_float:
            packing.kept.add(node.name)
            nodes.append(node)
        else:
            nodes += packing.take(node)
    lowered.nodes[:] = nodes
    if not packing.done:
        return {}
    return {"bits": bits, "packed": dict(sorted(packing.done.items())), "kept_float": sorted(packing.kept)}


@dataclass(kw_only=True)
class _Packing:
    """done: node -> how its weights were packed."""

    lowered: Lowered
    bits: int
    done: dict[str, str] = field(default_factory=dict[str, str])
    kept: set[str] = field(default_factory=set[str])
    _made: dict[tuple[str, bool], "_Packed"] = field(default_factory=dict[tuple[str, bool], "_Packed"])

    def take(self, node: Node) -> list[Node]:
        """Return what the node becomes."""
        places = [place for place in _WEIGHTS.get(node.op, ()) if self._worth(node, place)]
        if not places:
            return [node]
        name, array = node.inputs[1] or "", self.lowered.constants.get(node.inputs[1] or "")
        if node.op in ("matmul", "gemm") and array is not None and array.ndim == 2 and _is_plain(node):
            rows = array if node.attributes.get("transpose_b") else array.T
            padding = -rows.shape[1] % 32
            if padding <= _MAX_PADDING * rows.shape[1]:
                return self._product(node, self._packed(name, rows, transposed=rows is not array))
        return [self._unpacked(node, places)]

    def _worth(self, node: Node, place: int) -> bool:
        array = self.lowered.constants.get(node.inputs[place] or "") if place < len(node.inputs) else None
        return array is not None and array.dtype == np.float32 and array.ndim >= 2 and array.size >= MIN_ELEMENTS

    def _packed(self, name: str, rows: Array, *, transposed: bool = False) -> "_Packed":
        key = (name, transposed)
        if key not in self._made:
            self._made[key] = _pack(rows, self.bits)
            self._made[key].store(self.lowered, f"{name}.{'rows' if transposed else 'packed'}")
        return self._made[key]

    def _product(self, node: Node, packed: "_Packed") -> list[Node]:
        self.done[node.name] = f"{node.op}, groups of {packed.group_size}"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        found = node.outputs if bias is None else (self.lowered.fresh(node.name),)
        attributes = {"bits": self.bits, "group_size": packed.group_size}
        product = Node(
            name=node.name,
            op="quantized_matmul",
            inputs=(*node.inputs[:1], *packed.names),
            outputs=found,
            attributes=attributes,
        )
        if bias is None:
            return [product]
        return [product, Node(name=node.name, op="add", inputs=(*found, bias), outputs=node.outputs)]

    def _unpacked(self, node: Node, places: list[int]) -> Node:
        inputs = list(node.inputs)
        for place in places:
            name = node.inputs[place] or ""
            array = self.lowered.constants[name]
            rows = array.reshape(array.shape[0], -1)
            if -rows.shape[1] % 32 > _MAX_PADDING * rows.shape[1]:
                rows = array.reshape(1, -1)
            fresh = (name, False) not in self._made
            packed = self._packed(name, rows)
            inputs[place] = packed.unpacked
            if fresh:
                attributes = {
                    "bits": self.bits, "group_size": packed.group_size, "shape": array.shape, "dtype": array.dtype.name,
                }  # fmt: skip
                self.lowered.prepare.append(
                    Node(
                        name=node.name,
                        op="dequantize_packed",
                        inputs=packed.names,
                        outputs=(packed.unpacked,),
                        attributes=attributes,
                    )
                )
            self.done[node.name] = f"{node.op}, groups of {packed.group_size}, unpacked when opened"
        return msgspec.structs.replace(node, inputs=tuple(inputs))


@dataclass(kw_only=True)
class _Packed:
    group_size: int
    arrays: tuple[Array, Array, Array]
    names: tuple[str, ...] = ()
    unpacked: str = ""

    def store(self, lowered: Lowered, hint: str) -> None:
        """Make the three arrays constants of the model."""
        self.names = tuple(lowered.fresh(f"{hint}.{part}") for part in ("codes", "scales", "biases"))
        lowered.constants.update(zip(self.names, self.arrays, strict=True))
        self.unpacked = lowered.fresh(hint)


def _is_plain(node: Node) -> bool:
    given = node.attributes
    return given.get("alpha", 1) == 1 and given.get("beta", 1) == 1 and not given.get("transpose_a")


def _pack(rows: Array, bits: int) -> _Packed:
    """Return a matrix of float32 packed, its rows filled up with zeros to whole groups."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32)))
    # Few bits need small groups; with eight a scale for every 64 is enough.
    sizes = (64, 32) if bits >= 6 else (32,)
    group = next(size for size in sizes if padded.shape[1] % size == 0)
    with mx.stream(mx.cpu):
        parts = mx.quantize(mx.array(np.ascontiguousarray(padded)), group_size=group, bits=bits)
        codes, scales, biases = (np.array(part) for part in parts)
    return _Packed(group_size=group, arrays=(codes, _small(scales), _small(biases)))


def _small(array: Array) -> Array:
    """Return scales or biases in float16 where it holds them; 11 bits are more than the codes have."""
    size = np.abs(array)
    fits = bool(((size == 0) | ((size > _SMALLEST) & (size < _LARGEST))).all())
    return array.astype(np.float16) if fits else array
