"""Compressed weights, as coremltools writes them and as it decompresses them itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelfleet.converters.mil_evaluator.program import MilProgram
from tests.unit.converters.mil_evaluator.packages import TARGETS, Function, ct, hushed, mb, save, types

RNG = np.random.default_rng(11)
CENTROIDS = np.sort(RNG.normal(size=64)).astype(np.float32)


def typed(values: Any, name: str) -> np.ndarray:
    """Values in one of coremltools' dtypes narrower than a byte."""
    return np.asarray(values).astype(types.nptype_from_builtin(types.string_to_builtin(name)))


def _packed_indices(bits: int, count: int) -> np.ndarray:
    places = RNG.integers(0, 2**bits, count)
    return np.packbits((places[:, None] >> np.arange(bits)) & 1, bitorder="little")


def affine(dtype: Any, scale: Any, zero: Any, axis: int, kind: Any = np.float32) -> Callable[[], Any]:
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    data = RNG.integers(low, high + 1, (4, 5)).astype(dtype)
    return lambda: mb.constexpr_affine_dequantize(
        quantized_data=data, scale=np.asarray(scale, kind), zero_point=np.asarray(zero, dtype), axis=axis
    )


def palette(bits: int) -> Callable[[], Any]:
    indices, lut = _packed_indices(bits, 15), RNG.normal(size=2**bits).astype(np.float32)
    return lambda: mb.constexpr_lut_to_dense(indices=indices, lut=lut, shape=np.array([3, 5], np.uint32))


def sparse() -> Any:
    mask = np.array([0b10110101, 0b00000110], np.uint8)
    return mb.constexpr_sparse_to_dense(
        nonzero_data=np.arange(1, 8, dtype=np.float32), mask=mask, shape=np.array([3, 4], np.uint32)
    )


def blocks(dtype: str, *, offset: bool, kind: Any = np.float32) -> Callable[[], Any]:
    low, high = (-8, 8) if dtype == "int4" else (0, 16) if dtype == "uint4" else (-128, 128)
    data = typed(RNG.integers(low, high, (4, 6)), dtype)
    scale = RNG.uniform(0.1, 1, (2, 3)).astype(kind)
    shift = {"offset": typed(RNG.integers(max(low, 0), high, (2, 3)), dtype)} if offset else {}
    return lambda: mb.constexpr_blockwise_shift_scale(data=data, scale=scale, **shift)


def grouped(bits: int, vector: int = 1, axis: int | None = None) -> Callable[[], Any]:
    indices = typed(RNG.integers(0, 2**bits, (4, 6)), f"uint{bits}")
    lut = RNG.normal(size=(2, 1, 2**bits, vector)).astype(np.float32)
    return lambda: mb.constexpr_lut_to_dense(
        indices=indices, lut=lut, **({} if axis is None else {"vector_axis": axis})
    )


MASK = np.array([[1, 0, 1], [0, 1, 1]])


def sparse_palette() -> Any:
    lut = np.array([1.5, -2.0, 3.0, 0.25], np.float32).reshape(1, 1, 4, 1)
    mask, values = mb.constexpr_lut_to_sparse(
        indices_mask=typed(MASK, "uint1"), indices_nonzero_data=typed([3, 0, 2, 1], "uint2"), lut=lut
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


def sparse_blocks() -> Any:
    mask, values = mb.constexpr_sparse_blockwise_shift_scale(
        data_mask=typed(MASK, "uint1"),
        nonzero_data=np.array([7, -3, 5, 2], np.int8),
        scale=np.array([[0.5], [0.25]], np.float32),
        offset=np.array([[1], [2]], np.int8),
    )
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


BUILDERS: dict[str, tuple[int, Callable[[], Any]]] = {
    "affine-int8": (7, affine(np.int8, [0.1, 0.2, 0.3, 0.4], [1, -2, 3, 0], 0)),
    "affine-uint8": (7, affine(np.uint8, 0.05, 128, 1)),
    "affine-fp16": (7, affine(np.int8, [0.1] * 5, [0] * 5, -1, np.float16)),
    **{f"palette-{bits}": (7, palette(bits)) for bits in (1, 2, 4, 6, 8)},
    "sparse": (7, sparse),
    "blocks-int4": (8, blocks("int4", offset=False)),
    "blocks-uint4-offset": (8, blocks("uint4", offset=True)),
    "blocks-int8-offset": (8, blocks("int8", offset=True)),
    "blocks-fp16": (8, blocks("int4", offset=True, kind=np.float16)),
    **{f"groups-{bits}": (8, grouped(bits)) for bits in (1, 2, 3, 4, 6)},
    "groups-vector": (8, grouped(2, 3, 1)),
    "groups-vector-first": (8, grouped(2, 2, 0)),
    "sparse-palette": (8, sparse_palette),
    "sparse-blocks": (8, sparse_blocks),
    "cast": (7, lambda: mb.constexpr_cast(source_val=CENTROIDS.astype(np.float16), output_dtype="fp32")),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_as_coremltools_decompresses(name: str, tmp_path: Path) -> None:
    opset, build = BUILDERS[name]
    with hushed(), Function({}, opset_version=TARGETS[opset]):
        expected = build().op.materialized_val_inference()

    def program(x: Any) -> Any:
        return mb.add(x=mb.cast(x=build(), dtype="fp32"), y=x)

    found = MilProgram(save(program, {"x": np.zeros(1, np.float32)}, tmp_path, opset)).run(
        {"x": np.zeros(1, np.float32)}
    )
    (answer,) = found.values()
    assert answer.shape == expected.shape
    np.testing.assert_allclose(answer, expected.astype(np.float32), 2e-3 if expected.dtype == np.float16 else 1e-6)


@pytest.mark.parametrize("kind", ["int8", "int4-blocks", "palette-4", "palette-6-groups", "pruned"])
def test_a_model_compressed_by_coremltools_answers_nearly_the_same(kind: str, tmp_path: Path) -> None:
    """Weights beyond 2048 elements, through coremltools' optimisation, into the weight file, and back."""
    from coremltools.optimize import coreml as cto

    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    x = RNG.normal(size=(2, 64)).astype(np.float32)
    configs = {
        "int8": lambda: (cto.linear_quantize_weights, cto.OpLinearQuantizerConfig(mode="linear_symmetric")),
        "int4-blocks": lambda: (
            cto.linear_quantize_weights,
            cto.OpLinearQuantizerConfig(dtype="int4", granularity="per_block", block_size=32),
        ),
        "palette-4": lambda: (cto.palettize_weights, cto.OpPalettizerConfig(mode="uniform", nbits=4)),
        "palette-6-groups": lambda: (
            cto.palettize_weights,
            cto.OpPalettizerConfig(mode="uniform", nbits=6, granularity="per_grouped_channel", group_size=16),
        ),
        "pruned": lambda: (cto.prune_weights, cto.OpMagnitudePrunerConfig(target_sparsity=0.5)),
    }
    allowed = {"int8": 0.02, "int4-blocks": 0.2, "palette-4": 0.3, "palette-6-groups": 0.1, "pruned": 0.8}[kind]
    package = save(lambda x: mb.linear(x=x, weight=weight), {"x": x}, tmp_path, 8)
    with hushed():
        model = ct.models.MLModel(str(package), skip_model_load=True)
        compress, config = configs[kind]()
        smaller = compress(model, config=cto.OptimizationConfig(global_config=config))
        smaller.save(str(tmp_path / "small.mlpackage"))
    (answer,) = MilProgram(tmp_path / "small.mlpackage").run({"x": x}).values()
    error = np.abs(answer - x @ weight.T).max() / np.abs(x @ weight.T).max()
    assert 0 < error < allowed
