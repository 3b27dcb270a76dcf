"""NVIDIA's runtimes without a GPU: what they refuse by name, and what they ask of the driver and of an engine.

The driver is a library of C with the driver's functions over the host's memory, so that every call crosses the real ABI; the
engine beside it doubles its input. What only a GPU can show is in `tests/unit/converters/nvidia/test_on_a_gpu.py`.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modelfleet.benchmarks.errors import MeasureError, RuntimeMissingError
from modelfleet.benchmarks.runtimes.cuda import Cuda, gpu_name
from modelfleet.benchmarks.runtimes.engine_session import EngineSession
from modelfleet.benchmarks.runtimes.onnxruntime_gpu import open_onnxruntime_gpu
from modelfleet.benchmarks.runtimes.table import open_session

DRIVER = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static long held = 0;
long held_blocks(void) { return held; }
static int devices = 1;
void set_devices(int count) { devices = count; }
int cuInit(unsigned flags) { return flags; }
int cuDeviceGetCount(int *count) { *count = devices; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return devices ? 0 : 100; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)&held; return device; }
int cuCtxSetCurrent(void *context) { return context == (void *)&held ? 0 : 201; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Toy GPU", length); return device; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 8 : 7; return device; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0x1234; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return stream == (void *)0x1234 ? 0 : 400; }
int cuMemAlloc_v2(uint64_t *address, size_t length) { *address = (uint64_t)malloc(length); held++; return 0; }
int cuMemFree_v2(uint64_t address) { free((void *)address); held--; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t length, void *stream) {
  memcpy((void *)to, from, length); return stream == (void *)0x1234 ? 0 : 400; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t length, void *stream) {
  memcpy(to, (void *)from, length); return stream == (void *)0x1234 ? 0 : 400; }
int cuGetErrorName(int code, const char **name) { *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : 0; return 0; }
"""
NEEDS_GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc to build the driver's stand-in")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "libcuda.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    return str(library)


class Doubler:
    """TensorRT's Python API, as far as a session uses it, over an engine of x (N, 3) -> y (N, 3) = 2 x, N <= 4."""

    ILogger = SimpleNamespace
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    num_io_tensors = 2

    def __init__(self) -> None:
        self.shape = (-1, 3)
        self.addresses: dict[str, int] = {}
        self.loads = True

    class _Logger:
        INTERNAL_ERROR = ERROR = 0

        def __init__(self) -> None:
            pass

    def Runtime(self, logger: Any) -> "Doubler":  # noqa: N802 - TensorRT's name
        return self

    def deserialize_cuda_engine(self, data: bytes) -> "Doubler | None":
        return self if self.loads else None

    def create_execution_context(self) -> "Doubler":
        return self

    def get_tensor_name(self, index: int) -> str:
        return ("x", "y")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "x" else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name="FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return shape[0] <= 4

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        count = int(np.prod(self.shape))
        source, target = ((ctypes.c_float * count).from_address(self.addresses[name]) for name in "xy")
        for index in range(count):
            target[index] = 2 * source[index]
        return stream == 0x1234


Doubler.ILogger = Doubler._Logger  # type: ignore[misc,assignment]


@NEEDS_GCC
def test_an_engine_answers_for_every_batch_within_its_range(driver: str) -> None:
    session = EngineSession("tensorrt", b"engine", cuda=Cuda(driver), module=Doubler())
    assert [(t.name, t.dtype, t.shape) for t in session.inputs] == [("x", "float32", (None, 3))]
    assert [(t.name, t.dtype, t.shape) for t in session.outputs] == [("y", "float32", (None, 3))]
    for batch in (1, 4, 2):
        x = np.arange(batch * 3, dtype=np.float32).reshape(batch, 3)
        assert np.array_equal(session.run({"x": x})["y"], 2 * x)
    apart = np.arange(12, dtype=np.float32).reshape(3, 4).T[:, :3]  # not contiguous
    assert np.array_equal(session.run({"x": apart})["y"], 2 * apart)


@NEEDS_GCC
def test_memory_on_the_gpu_is_kept_between_inferences_and_given_back(driver: str) -> None:
    session = EngineSession("tensorrt", b"engine", cuda=Cuda(driver), module=Doubler())
    library = ctypes.CDLL(driver)
    before = library.held_blocks()
    for batch in (1, 2, 4, 1):
        session.run({"x": np.zeros((batch, 3), np.float32)})
    assert library.held_blocks() == before + 2
    del session
    assert library.held_blocks() == before


@NEEDS_GCC
def test_shapes_and_types_that_the_engine_does_not_take_are_refused(driver: str) -> None:
    session = EngineSession("tensorrt", b"engine", cuda=Cuda(driver), module=Doubler())
    with pytest.raises(MeasureError, match=r"\[5, 3\] is outside the engine's range"):
        session.run({"x": np.zeros((5, 3), np.float32)})
    with pytest.raises(MeasureError, match="expected float32, got float64"):
        session.run({"x": np.zeros((1, 3))})
    with pytest.raises(MeasureError, match="expected float32, got None"):
        session.run({})


@NEEDS_GCC
def test_an_output_whose_shape_values_decide_is_refused(driver: str) -> None:
    engine = Doubler()
    session = EngineSession("tensorrt", b"engine", cuda=Cuda(driver), module=engine)
    engine.get_tensor_shape = lambda name: (-1, 3)  # type: ignore[method-assign]
    with pytest.raises(MeasureError, match="expected a shape that inputs' shapes decide"):
        session.run({"x": np.zeros((1, 3), np.float32)})


@NEEDS_GCC
def test_an_engine_that_does_not_load_is_refused(driver: str) -> None:
    engine = Doubler()
    engine.loads = False
    with pytest.raises(MeasureError, match="does not load the engine"):
        EngineSession("tensorrt", b"engine", cuda=Cuda(driver), module=engine)


@NEEDS_GCC
def test_a_gpu_has_a_name_and_a_driver_without_one_says_so(driver: str) -> None:
    assert Cuda(driver).name() == "Toy GPU (8.7)"
    library = ctypes.CDLL(driver)
    library.set_devices(0)
    try:
        with pytest.raises(RuntimeMissingError, match="expected a GPU, got 0: cuDeviceGet: CUDA_ERROR_NO_DEVICE"):
            Cuda(driver)
    finally:
        library.set_devices(1)


def test_a_machine_without_a_driver_is_refused_by_name() -> None:
    with pytest.raises(RuntimeMissingError, match=r"expected NVIDIA's driver \(libcuda-missing\.so\)"):
        Cuda("libcuda-missing.so")


@pytest.mark.skipif(bool(gpu_name()), reason="there is a GPU")
def test_an_engine_or_model_for_a_gpu_is_not_opened_without_one(tmp_path: Path) -> None:
    (tmp_path / "model.engine").write_bytes(b"engine")
    with pytest.raises(RuntimeMissingError, match=r"expected NVIDIA's driver|is not installed"):
        open_session(tmp_path / "model.engine", "tensorrt-rtx")
    digits = Path(__file__).parents[3] / "examples" / "digits" / "digits-1.0.0.onnx"
    with pytest.raises(RuntimeMissingError, match="CUDAExecutionProvider"):
        open_onnxruntime_gpu(digits)
