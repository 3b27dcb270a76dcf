"""The networks that ship in the onnx package and those of MLPerf Tiny: float variants of every tensor target agree with
onnxruntime within 1e-4 of the greatest value. A part of the large ones runs for each commit, all with MODELFLEET_ALL=1."""

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from modelfleet.converters.graphs import read_model
from tests.integration.converters.zoo import (
    FLOAT_ERROR,
    TARGETS,
    answered,
    float_error,
    light_networks,
    missing,
    original,
    variant,
)
from tests.turns import has_its_turn

ROOT = Path(__file__).parents[3]
PARTS = 9
SMALL = ("shufflenet", "squeezenet")
"""Those that the flash of a microcontroller holds, the most generous one's."""
LARGE = [
    (network, target)
    for network in light_networks()
    for target in TARGETS
    if (target != "c99" or network in SMALL) and has_its_turn(f"{network} {target}", PARTS)
]
TINY = ("ad", "ic", "kws", "vww")


def samples_of(model: ModelProto, count: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    held = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        if value.name not in held:
            assert kind.elem_type == TensorProto.FLOAT
            dims = [dim.dim_value or 1 for dim in kind.shape.dim]
            shape = [dims[0] if kind.shape.dim[0].dim_value else count, *dims[1:]]
            found[value.name] = random.standard_normal(shape).astype(np.float32)
    return found


def require_agreement(path: Path, target: str, folder: Path, count: int = 2) -> None:
    if missing(target):
        pytest.skip(missing(target))
    model = read_model(path)
    samples = samples_of(model, count)
    expected = original(model, samples)
    assert float_error(answered(variant(model, target, samples, folder), samples), expected) <= FLOAT_ERROR


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("network", "target"), LARGE)
def test_the_networks_that_ship_with_onnx(network: str, target: str, tmp_path: Path):
    require_agreement(light_networks()[network], target, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("network", TINY)
def test_the_networks_of_mlperf_tiny(network: str, target: str, tmp_path: Path):
    require_agreement(ROOT / "examples" / "mlperf_tiny" / f"{network}_f32.onnx", target, tmp_path)
