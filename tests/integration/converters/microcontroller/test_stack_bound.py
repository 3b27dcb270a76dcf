"""The stack and flash that model.h and model.json state are those of a board."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from modelfleet.benchmarks.microcontroller.board import BOARDS, COMPILER, EMULATOR
from modelfleet.benchmarks.microcontroller.measure import measure, model_call
from modelfleet.converters.graphs import read_model
from modelfleet.converters.microcontroller.footprint import footprint
from modelfleet.converters.microcontroller.generate import generate
from modelfleet.converters.microcontroller.lowering import Target
from modelfleet.hardware_profiles.profile import load_profiles

TINY = Path(__file__).parents[4] / "examples" / "mlperf_tiny"
MISSING = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}")
@pytest.mark.parametrize("board", BOARDS)
def test_a_call_takes_no_more_than_is_stated(board: str, tmp_path: Path):
    chip = load_profiles()[board].microcontroller
    assert chip is not None
    generated = generate(read_model(TINY / "kws_int8.onnx"), "kws", Target(backend=chip.backend))
    known = footprint(generated, chip)
    described = generated.description(known)
    for name, data in generated.files(known).items():
        (tmp_path / name).write_bytes(data)
    data = np.load(TINY / "kws_int8_io.npz")
    found = measure(model_call(tmp_path, inputs=1, output_bytes=[12]), BOARDS[board], [[data["x"][0].tobytes()]])
    assert np.abs(np.frombuffer(found.outputs[0][0], np.int8).astype(int) - data["y_ort"][0]).max() <= 1
    assert described.stack_bytes // 2 < found.stack_bytes <= described.stack_bytes
    assert found.static_bytes == 0
    assert found.workspace_bytes == described.workspace_bytes
    assert abs(found.flash_bytes - described.flash_bytes) <= 256
