"""MLPerf Tiny's networks on emulated boards: what they cost as our C, and what answers they give."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from modelfleet.benchmarks.microcontroller.board import BOARDS
from modelfleet.benchmarks.microcontroller.callgrind import host_instructions
from modelfleet.benchmarks.microcontroller.measure import Measurement, measure, model_call
from modelfleet.converters.graphs import read_model
from modelfleet.converters.microcontroller.generate import Generated, generate
from modelfleet.converters.microcontroller.lowering import Target
from modelfleet.converters.normalise import normalise
from modelfleet.hardware_profiles.profile import load_profiles

FOLDER: Final = Path(__file__).resolve().parents[2] / "examples" / "mlperf_tiny"


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network in int8, and what TensorFlow Lite Micro with CMSIS-NN needs for it on the same emulated boards.

    tflm_flash_kib, tflm_ram_kib: on the Cortex-M4 (RAM with stack, inputs and outputs), in units of 1,024 bytes;
    instructions: on the Cortex-M55 by its MVE kernels. macs, weights_bytes: of the network as it was trained; bound_bytes: the
    least workspace in place.
    """

    name: str
    macs: int
    weights_bytes: int
    bound_bytes: int
    flash_limit_bytes: int
    tflm_flash_kib: float
    tflm_ram_kib: float
    tflm_m4_instructions: float
    tflm_m55_instructions: float

    @property
    def tflm_instructions(self) -> Mapping[str, float]:
        """Board -> instructions of TensorFlow Lite Micro."""
        return {"cortex-m4": self.tflm_m4_instructions, "cortex-m55": self.tflm_m55_instructions}


NETWORKS: Final = (
    Network(
        name="kws",
        macs=2_657_000,
        weights_bytes=22_016,
        bound_bytes=8_640,
        flash_limit_bytes=22_016 + (16 << 10),
        tflm_flash_kib=104.6,
        tflm_ram_kib=23.7,
        tflm_m4_instructions=7.70e6,
        tflm_m55_instructions=1.81e6,
    ),
    Network(
        name="ic",
        macs=12_500_000,
        weights_bytes=77_360,
        bound_bytes=33_792,
        flash_limit_bytes=77_360 + (16 << 10),
        tflm_flash_kib=146.0,
        tflm_ram_kib=55.1,
        tflm_m4_instructions=29.86e6,
        tflm_m55_instructions=4.91e6,
    ),
    Network(
        name="vww",
        macs=7_490_000,
        weights_bytes=208_112,
        bound_bytes=37_248,
        flash_limit_bytes=60 << 10,
        tflm_flash_kib=377.4,
        tflm_ram_kib=99.8,
        tflm_m4_instructions=24.1e6,
        tflm_m55_instructions=6.57e6,
    ),
    Network(
        name="ad",
        macs=264_192,
        weights_bytes=264_192,
        bound_bytes=768,
        flash_limit_bytes=264_192 + (16 << 10),
        tflm_flash_kib=297.8,
        tflm_ram_kib=3.5,
        tflm_m4_instructions=0.584e6,
        tflm_m55_instructions=0.286e6,
    ),
)


@dataclass(frozen=True, kw_only=True)
class OnBoard:
    """A network as our C on a board. error_lsb: the greatest distance of an output from onnxruntime's, in units of the output."""

    network: Network
    board: str
    figures: Measurement
    planned_bytes: int
    error_lsb: int

    @property
    def instructions(self) -> int:
        """Of the sample that takes the most."""
        return max(self.figures.instructions)

    @property
    def ratio(self) -> float:
        """Our instructions over those of TensorFlow Lite Micro."""
        return self.instructions / self.network.tflm_instructions[self.board]


def on_board(network: Network, board: str) -> OnBoard:
    """Convert a network for the profile of a board's name, build and run it there, on every sample that came with it."""
    samples, expected = _samples(network.name)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as name:
        folder = Path(name)
        made = _generated(network.name, board, folder)
        call = model_call(folder, inputs=1, output_bytes=[expected[0].nbytes])
        figures = measure(call, BOARDS[board], [[x.tobytes()] for x in samples])
    got = np.array([np.frombuffer(outputs[0], np.int8) for outputs in figures.outputs]).reshape(expected.shape)
    return OnBoard(
        network=network,
        board=board,
        figures=figures,
        planned_bytes=made.workspace_bytes,
        error_lsb=int(np.abs(got.astype(np.int32) - expected).max()),
    )


def on_host(network: Network) -> int:
    """Return how many instructions the portable C of a network takes on this machine."""
    samples, expected = _samples(network.name)
    with tempfile.TemporaryDirectory(prefix="modelfleet-bench-") as name:
        folder = Path(name)
        _generated(network.name, "generic-c99", folder)
        call = model_call(folder, inputs=1, output_bytes=[expected[0].nbytes])
        return host_instructions(call, [samples[0].tobytes()])


def _samples(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(FOLDER / f"{name}_int8_io.npz") as data:
        return data["x"], data["y_ort"]


def _generated(name: str, profile_name: str, folder: Path) -> Generated:
    """Convert a network as a build does, and write its sources into `folder`."""
    profile = load_profiles()[profile_name]
    chip = profile.microcontroller
    assert chip is not None
    model = normalise(read_model(FOLDER / f"{name}_int8.onnx"), folder, profile)
    made = generate(model, name, Target(backend=chip.backend))
    for file, data in made.files().items():
        (folder / file).write_bytes(data)
    return made
