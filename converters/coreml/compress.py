"""Weights in fewer bits, by coremltools: 8 bits per channel, 4 bits in blocks, or indices into a table of k-means.

A weight is compressed where it is large enough to gain by it; scales and tables stay in fp16, in which the variant computes. A
result in which nothing was compressed is refused.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import coremltools.optimize.coreml as _optimize

from modelfleet.converters.coreml.palette import palette_of
from modelfleet.converters.coreml.values import Array
from modelfleet.converters.errors import ConversionError
from modelfleet.hardware_profiles.profile import Precision

optimize: Any = _optimize
LEAST_ELEMENTS: Final = 512
"""A smaller weight gains less than its scales or its table cost."""
BLOCKS: Final = (32, 16, 8)
"""Sizes of 4-bit blocks: the largest that divides the weight's input channels."""
PALETTE_BITS: Final[Mapping[Precision, int]] = {Precision.PALETTE8: 8, Precision.PALETTE6: 6, Precision.PALETTE4: 4}
_PRECISIONS: Final = frozenset(
    {Precision.FLOAT, Precision.FP16, Precision.INT8_WEIGHTS, Precision.INT4_WEIGHTS, *PALETTE_BITS}
)
_COMPRESSED: Final = ("constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_lut_to_dense")


def require_precision(precision: Precision, profile: str) -> None:
    """Return if Core ML has the precision (ConversionError: it has not)."""
    if precision not in _PRECISIONS:
        raise ConversionError("", profile, f"expected a precision of {sorted(_PRECISIONS)}, got {precision}")


def is_half(precision: Precision) -> bool:
    """Return whether the variant computes in fp16."""
    return precision is not Precision.FLOAT


def compress(
    model: Any, precision: Precision, profile: str, keep: frozenset[str] = frozenset()
) -> tuple[Any, Mapping[str, object]]:
    """Return the model with its weights in the precision, and what a report tells of it.

    Args:
        model: coremltools' model, in fp16 but for `Precision.FLOAT`; it may be changed.
        precision: one that `require_precision` lets pass.
        profile: named in errors.
        keep: names of MIL operations whose weights stay as they are.

    Raises:
        ConversionError: nothing was changed.
    """
    if precision is Precision.FLOAT:
        return model, {}
    if precision is Precision.FP16:
        if not _computes_in_half(model):
            raise ConversionError(
                "", profile, f"{precision}: expected operators of floats, got none: nothing was changed"
            )
        return model, {}
    weights, kept = _weights(model, keep)
    configs = {name: _config(precision, weight) for name, weight in weights.items()}
    config = optimize.OptimizationConfig(op_name_configs={name: found for name, found in configs.items() if found})
    act = optimize.palettize_weights if precision in PALETTE_BITS else optimize.linear_quantize_weights
    model = act(model, config) if weights else model
    count = _count_compressed(model)
    if count == 0:
        reason = f"{precision}: expected weights of {LEAST_ELEMENTS} elements at least, got none: nothing was changed"
        raise ConversionError("", profile, reason)
    return model, {"weights_compressed": count, "weights_kept": sorted(kept)}


def _weights(model: Any, keep: frozenset[str]) -> tuple[dict[str, Array], set[str]]:
    """Return the weights to compress by the names of their constants, and the names of those kept."""
    found = optimize.get_weights_metadata(model, weight_threshold=LEAST_ELEMENTS - 1)
    weights: dict[str, Array] = {}
    kept: set[str] = set()
    for name, meta in found.items():
        value: Array = meta.val
        if value.dtype.kind != "f" or value.ndim < 2:
            continue
        # In fp16 an operation is written anew, its name telling so.
        if any(re.sub(r"_cast_fp16(_\d+)?$", "", child.name) in keep for child in meta.child_ops):
            kept.add(name)
        else:
            weights[name] = value
    return weights, kept


def _config(precision: Precision, weight: Array) -> Any:
    least = LEAST_ELEMENTS - 1
    if precision is Precision.INT8_WEIGHTS:
        return optimize.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", weight_threshold=least)
    if precision is Precision.INT4_WEIGHTS:
        block = next((size for size in BLOCKS if weight.shape[1] % size == 0), 0)
        granularity = {"granularity": "per_block", "block_size": block} if block else {"granularity": "per_channel"}
        return optimize.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int4", weight_threshold=least, **granularity
        )
    bits = PALETTE_BITS[precision]
    return optimize.OpPalettizerConfig(mode="custom", lut_function=_palettes(bits), weight_threshold=least)


def _palettes(bits: int) -> Callable[[Array], tuple[Array, Array]]:
    return lambda weight: palette_of(weight, bits)


def _operations(model: Any) -> list[Any]:
    functions = model.get_spec().mlProgram.functions.values()
    return [
        operation
        for function in functions
        for block in function.block_specializations.values()
        for operation in block.operations
    ]


def _count_compressed(model: Any) -> int:
    return sum(operation.type in _COMPRESSED for operation in _operations(model))


def _computes_in_half(model: Any) -> bool:
    half = 10  # MILSpec.DataType.FLOAT16
    return any(
        output.type.tensorType.dataType == half
        for operation in _operations(model)
        if operation.type != "cast"
        for output in operation.outputs
    )
