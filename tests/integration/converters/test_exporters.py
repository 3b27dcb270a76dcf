"""Transformers, detectors, recurrent and convolutional networks, as both of torch's exporters write them (`models/`), through
every tensor target: torch's own answers within 1e-4, whatever the batch where it is free."""

from pathlib import Path

import numpy as np
import pytest

from modelfleet.converters.graphs import read_model
from tests.integration.converters.zoo import (
    FLOAT_ERROR,
    TARGETS,
    answered,
    float_error,
    missing,
    variant,
)
from tests.turns import has_its_turn

MODELS = Path(__file__).parent / "models"
PARTS = {"tflite": 4}
"""Target -> into how many parts its networks are divided, one of which runs for each commit."""
NETWORKS = sorted(path.stem for path in MODELS.glob("*.onnx"))
PAIRS = [
    (network, target)
    for network in NETWORKS
    for target in TARGETS
    if has_its_turn(f"{network} {target}", PARTS.get(target, 2))
]


@pytest.mark.parametrize(("network", "target"), PAIRS)
def test_torch_and_every_target_agree(network: str, target: str, tmp_path: Path):
    if missing(target):
        pytest.skip(missing(target))
    check(network, target, tmp_path)


def check(network: str, target: str, tmp_path: Path) -> None:
    with np.load(MODELS / f"{network.rsplit('-', 1)[0]}.npz") as stored:
        arrays = dict(stored)
    inputs, outputs, more_inputs, more_outputs = (
        {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        for prefix in ("input.", "output.", "more.input.", "more.output.")
    )
    session = variant(read_model(MODELS / f"{network}.onnx"), target, inputs, tmp_path)
    assert float_error(answered(session, inputs), outputs) <= FLOAT_ERROR
    assert float_error(answered(session, more_inputs), more_outputs) <= FLOAT_ERROR


def test_the_committed_networks_are_small_and_of_both_exporters():
    assert {name.rsplit("-", 1)[1] for name in NETWORKS} == {"script", "dynamo"}
    assert len(NETWORKS) == 14
    assert max(path.stat().st_size for path in MODELS.iterdir() if path.is_file()) <= 60_000
